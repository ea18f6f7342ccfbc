// Package replay sends the past again: a range of the log, or what could not be
// delivered, becomes new deliveries to one subscription.
//
// Requests are records of a compacted topic, written by the API. A Replayer
// carries them out, in transactions that hold a few deliveries and the record of
// the progress they make, so that whatever crashes in between, each event is
// delivered once per replay. Which events those are depends on positions of the
// log that were fixed when the request was accepted, and on nothing else.
package replay

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/follow"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Replay is what is known of one replay. What its pointers lead to is shared
// and not changed any more.
type Replay struct {
	Request  *webhook.ReplayRequest
	Cancel   *webhook.ReplayCancel   // nil if nobody did
	Progress *webhook.ReplayProgress // nil before the first
}

// State returns one of the states of a replay. One that was cancelled after its
// last delivery was made is cancelled too: those that wait are discarded.
func (r Replay) State() string {
	switch {
	case r.Cancel != nil:
		return webhook.ReplayCancelled
	case r.Progress == nil:
		return webhook.ReplayWaiting
	}
	return r.Progress.State
}

// open says whether there is still something to do, if only to write down that
// it was cancelled.
func (r Replay) open() bool {
	return r.Request != nil && (r.Progress == nil || !r.Progress.Ended())
}

// TableConfig of a Table.
type TableConfig struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	// Topic is the compacted topic of replays.
	Topic string
	Log   *slog.Logger
}

// Table is the topic of replays, read whole and followed. API, router and sender
// each keep one. Its methods may be called from any goroutine.
type Table struct {
	cfg    TableConfig
	follow *follow.Follower

	mu      sync.RWMutex
	byID    map[string]Replay
	changed chan struct{} // closed and replaced with each change
}

// NewTable makes an empty table; Run fills it and keeps it up to date.
func NewTable(cfg TableConfig) (*Table, error) {
	t := &Table{cfg: cfg, byID: map[string]Replay{}, changed: make(chan struct{})}
	var err error
	t.follow, err = follow.New(follow.Config{Kafka: cfg.Kafka, Topic: cfg.Topic, Apply: t.apply})
	return t, err
}

// Run follows the topic until ctx ends.
func (t *Table) Run(ctx context.Context) error { return t.follow.Run(ctx) }

// Restored is closed when the table has been read to where its end was when Run
// began.
func (t *Table) Restored() <-chan struct{} { return t.follow.Restored() }

// Sync returns when everything that was committed before the call is in the
// table.
func (t *Table) Sync(ctx context.Context) error { return t.follow.Sync(ctx) }

// Changed returns a channel that is closed with the next change.
func (t *Table) Changed() <-chan struct{} {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.changed
}

// Cancelled says whether somebody has cancelled the replay. The sender discards
// what still waits of it.
func (t *Table) Cancelled(id string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id].Cancel != nil
}

// Get returns a replay that was asked for.
func (t *Table) Get(id string) (Replay, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.byID[id]
	return r, r.Request != nil
}

// List returns the replays of a subscription, the newest first.
func (t *Table) List(subscriptionID string) []Replay {
	found := t.all(func(r Replay) bool { return r.Request.SubscriptionID == subscriptionID })
	slices.Reverse(found)
	return found
}

// Open returns the replays that are not done with, the oldest first.
func (t *Table) Open() []Replay { return t.all(Replay.open) }

// all returns those that are wanted, the oldest first.
func (t *Table) all(wanted func(Replay) bool) []Replay {
	t.mu.RLock()
	var found []Replay
	for _, r := range t.byID {
		if r.Request != nil && wanted(r) {
			found = append(found, r)
		}
	}
	t.mu.RUnlock()
	slices.SortFunc(found, func(a, b Replay) int {
		return cmp.Or(a.Request.CreatedAt.Compare(b.Request.CreatedAt), cmp.Compare(a.Request.ID, b.Request.ID))
	})
	return found
}

// ended returns the replays that ended before the time.
func (t *Table) ended(before time.Time) []Replay {
	return t.all(func(r Replay) bool { return !r.open() && r.Progress.UpdatedAt.Before(before) })
}

func (t *Table) apply(_ int32, records []*kgo.Record) {
	for _, rec := range records {
		if err := t.put(rec); err != nil {
			t.cfg.Log.Error("unreadable record of a replay passed over",
				"topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "error", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Table) put(rec *kgo.Record) error {
	id, kind, err := webhook.ParseReplayKey(rec.Key)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.byID[id]
	switch kind {
	case webhook.ReplayKindRequest:
		var request *webhook.ReplayRequest
		if rec.Value != nil {
			if request, err = webhook.ParseReplayRequest(id, rec.Value); err != nil {
				return err
			}
		}
		if request == nil || r.Request == nil { // the first counts, see ReplayProgress.Request
			r.Request = request
		}
	case webhook.ReplayKindCancel:
		r.Cancel = nil
		if rec.Value != nil {
			r.Cancel, err = webhook.ParseReplayCancel(id, rec.Value)
		}
	case webhook.ReplayKindProgress:
		r.Progress = nil
		if rec.Value != nil {
			r.Progress, err = webhook.ParseReplayProgress(id, rec.Value)
		}
	}
	if err != nil {
		return err
	}
	if kind == webhook.ReplayKindProgress && r.Progress != nil && r.Progress.Request != nil {
		r.Request = r.Progress.Request
	}
	if r == (Replay{}) {
		delete(t.byID, id)
	} else {
		t.byID[id] = r
	}
	return nil
}
