package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// The kinds of records of the replays topic. A record's key is the id of the
// replay, a slash and its kind, so that each record has one writer: the API
// writes requests and cancellations, the router progress.
const (
	ReplayKindRequest  = "request"
	ReplayKindCancel   = "cancel"
	ReplayKindProgress = "progress"
)

// What a replay goes through to find events.
const (
	SourceEvents   = "events"   // the log
	SourceAttempts = "attempts" // deliveries that ended dead or discarded
)

// ReplayRequest asks for a part of the past to be delivered to a subscription,
// again or for the first time. Where it ends is fixed when it is accepted.
type ReplayRequest struct {
	Kind           string `json:"kind"` // ReplayKindRequest
	ID             string `json:"id"`   // a UUID
	SubscriptionID string `json:"subscription_id"`
	Source         string `json:"source"` // SourceEvents or SourceAttempts
	// From and To hold, by partition of the source's topic, the first offset that
	// is gone through and the first that is not any more.
	From []int64 `json:"from"`
	To   []int64 `json:"to"`
	// EventNames are types of events or wildcards; at least one.
	EventNames []string `json:"event_names"`
	// ProviderID, if set, takes the events of one calendar only.
	ProviderID string `json:"provider_id,omitempty"`
	// Since is when a recovery begins; SourceAttempts only.
	Since *time.Time `json:"since,omitempty"`
	// Rate bounds the deliveries made per second; 0 does not.
	Rate int `json:"rate,omitempty"`
	// Total is how many deliveries it will come to, counted when it was accepted,
	// or about so if Estimated.
	Total     int64     `json:"total"`
	Estimated bool      `json:"estimated,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	// Fingerprint is that of the Idempotency-Key, from which the id was derived.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// ReplayCancel ends a replay: no more of its deliveries are made, and those
// that wait are discarded.
type ReplayCancel struct {
	Kind string    `json:"kind"` // ReplayKindCancel
	ID   string    `json:"id"`
	At   time.Time `json:"at"`
	By   string    `json:"by"`
}

// The states of a replay.
const (
	ReplayWaiting   = "waiting" // nothing has been done yet
	ReplayRunning   = "running"
	ReplayDone      = "done"
	ReplayCancelled = "cancelled"
	ReplayFailed    = "failed"
)

// Why a replay failed.
const (
	ReplaySubscriptionDeleted = "subscription_deleted"
	// ReplayOutOfRange: the topic does not go back to where the replay stands.
	ReplayOutOfRange = "out_of_range"
)

// ReplayProgress says how far a replay is. It is committed together with the
// deliveries that it counts.
type ReplayProgress struct {
	Kind  string `json:"kind"` // ReplayKindProgress
	ID    string `json:"id"`
	State string `json:"state"` // ReplayRunning, ReplayDone, ReplayCancelled or ReplayFailed
	// Reason is why it failed.
	Reason string `json:"reason,omitempty"`
	// Positions hold, by partition, the next offset to go through.
	Positions []int64 `json:"positions"`
	// To is the request's: a request that is written twice, by a client's repeat,
	// ends where it ended when work on it began.
	To []int64 `json:"to"`
	// Request is the one that is carried out, as it was when work on it began. Two
	// that were written at the same time under one id, of which the first counts,
	// have one key, and compaction keeps the later. Not there in older records.
	Request *ReplayRequest `json:"request,omitempty"`
	// Done counts the deliveries that were made, Unreadable the events that could
	// not be.
	Done       int64     `json:"done"`
	Unreadable int64     `json:"unreadable,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// Ended says whether nothing will follow.
func (p *ReplayProgress) Ended() bool { return p.State != ReplayRunning }

// ReplayKey returns the key of a record of the replays topic.
func ReplayKey(id, kind string) []byte { return []byte(id + "/" + kind) }

// ParseReplayKey reads what ReplayKey wrote.
func ParseReplayKey(key []byte) (id, kind string, err error) {
	id, kind, ok := strings.Cut(string(key), "/")
	if !ok || id == "" {
		return "", "", errors.New("replay: the key is not ID/KIND")
	}
	switch kind {
	case ReplayKindRequest, ReplayKindCancel, ReplayKindProgress:
		return id, kind, nil
	}
	return "", "", errors.New("replay: the key's kind is not known")
}

// Encode returns the request as a record for the replays topic.
func (r *ReplayRequest) Encode(topic string) (*kgo.Record, error) {
	r.Kind = ReplayKindRequest
	return encodeReplay(topic, r.ID, r.Kind, r)
}

// Encode returns the cancellation as a record for the replays topic.
func (c *ReplayCancel) Encode(topic string) (*kgo.Record, error) {
	c.Kind = ReplayKindCancel
	return encodeReplay(topic, c.ID, c.Kind, c)
}

// Encode returns the progress as a record for the replays topic.
func (p *ReplayProgress) Encode(topic string) (*kgo.Record, error) {
	p.Kind = ReplayKindProgress
	return encodeReplay(topic, p.ID, p.Kind, p)
}

func encodeReplay(topic, id, kind string, v any) (*kgo.Record, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s of replay %s: %w", kind, id, err)
	}
	return &kgo.Record{Topic: topic, Key: ReplayKey(id, kind), Value: value}, nil
}

// ParseReplayRequest reads the value of a request of that id.
func ParseReplayRequest(id string, value []byte) (*ReplayRequest, error) {
	var r ReplayRequest
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("replay request: %w", err)
	}
	return &r, r.check(id)
}

// check says what is wrong with a request of that id.
func (r *ReplayRequest) check(id string) error {
	switch {
	case r.ID != id:
		return errors.New("replay request: the id is not the record's key's")
	case r.SubscriptionID == "" || r.Source != SourceEvents && r.Source != SourceAttempts || len(r.EventNames) == 0:
		return errors.New("replay request: subscription_id, source and event_names are required")
	case len(r.From) == 0 || len(r.From) != len(r.To) || r.Rate < 0:
		return errors.New("replay request: from, to or rate make no sense")
	}
	return nil
}

// ParseReplayCancel reads the value of a cancellation of that id.
func ParseReplayCancel(id string, value []byte) (*ReplayCancel, error) {
	var c ReplayCancel
	if err := json.Unmarshal(value, &c); err != nil {
		return nil, fmt.Errorf("cancellation of a replay: %w", err)
	}
	if c.ID != id {
		return nil, errors.New("cancellation of a replay: the id is not the record's key's")
	}
	return &c, nil
}

// ParseReplayProgress reads the value of a progress record of that id.
func ParseReplayProgress(id string, value []byte) (*ReplayProgress, error) {
	var p ReplayProgress
	if err := json.Unmarshal(value, &p); err != nil {
		return nil, fmt.Errorf("progress of a replay: %w", err)
	}
	switch {
	case p.ID != id:
		return nil, errors.New("progress of a replay: the id is not the record's key's")
	case p.State == "" || len(p.Positions) == 0 || len(p.Positions) != len(p.To):
		return nil, errors.New("progress of a replay: state, positions and to are required")
	case p.Request != nil:
		if err := p.Request.check(id); err != nil {
			return nil, fmt.Errorf("progress of a replay: %w", err)
		}
	}
	return &p, nil
}
