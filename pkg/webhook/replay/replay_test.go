package replay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// What is replayed is what was asked for and nothing else, to a subscription
// that was made after all of it. What has no webhook, what a newer version wrote,
// what can't be read and what was never committed does not count.
func TestExactSets(t *testing.T) {
	w := newWorld(t)
	kinds := []string{events.Created, events.Updated, events.Confirmed, events.Cancelled, events.Completed, events.NoShow, "appointment.teleported"}
	some := func() {
		for i := range 40 {
			w.event(kinds[i%len(kinds)], fmt.Sprintf("provider:%d", i%5))
		}
	}
	some()
	w.aborted(5)
	from := w.ends(w.topics.Events())
	some()
	bad, _ := w.record(events.Created, "provider:1")
	bad.Value = []byte("{")
	w.produce(bad)
	to := w.ends(w.topics.Events())
	some()
	w.aborted(3)
	w.subscribe("webhook_subscription:late")

	webhooks := func(e logged) bool { return events.Known(e.Type) && e.Type != events.NoShow }
	within := func(e logged) bool {
		return webhooks(e) && e.at.Offset >= from[e.at.Partition] && e.at.Offset < to[e.at.Partition]
	}
	everything, ofTwo, ofOne, ofPart, nothing := w.request("webhook_subscription:late"),
		w.request("webhook_subscription:late", events.Updated, events.Cancelled), w.request("webhook_subscription:late"),
		w.request("webhook_subscription:late"), w.request("webhook_subscription:late")
	ofOne.ProviderID = "provider:1"
	ofPart.From, ofPart.To = from, to
	nothing.From = nothing.To
	wanted := map[*webhook.ReplayRequest][]logged{
		everything: w.having(webhooks),
		ofTwo:      w.having(func(e logged) bool { return e.Type == events.Updated || e.Type == events.Cancelled }),
		ofOne:      w.having(func(e logged) bool { return webhooks(e) && e.Data.ProviderID == "provider:1" }),
		ofPart:     w.having(within),
		nothing:    nil,
	}
	for r := range wanted {
		w.ask(r)
	}
	w.event(events.Created, "provider:1") // after their ends
	w.background(w.replayer(nil).Run)
	for r, want := range wanted {
		done := w.awaitState(r.ID, webhook.ReplayDone)
		w.made(r, want)
		w.count(r, len(want))
		if r == ofOne && done.Progress.Unreadable != 1 {
			t.Errorf("%d unreadable events, want 1", done.Progress.Unreadable)
		}
	}
}

// clock stands still until it is set on.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

// rounds runs a replayer on a clock, and returns a function that lets it go some
// rounds and returns when it has.
func (w *world) rounds(c *clock, set func(*replay.Config)) (more func(n int)) {
	w.t.Helper()
	turns := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	conf := w.config()
	conf.Now = c.now
	if set != nil {
		set(&conf)
	}
	r, err := replay.New(conf.WithStep(func(step string) error {
		if step == "round" {
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
			}
		}
		return nil
	}))
	w.check(err)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = r.Serve(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
	return func(n int) {
		w.t.Helper()
		for range n {
			select {
			case <-turns:
			case <-w.context().Done():
				w.t.Fatal("the replayer does not go on")
			}
		}
	}
}

func (w *world) done(id string) int64 {
	w.t.Helper()
	w.check(w.replays.Sync(w.context()))
	r, _ := w.replays.Get(id)
	if r.Progress == nil {
		return 0
	}
	return r.Progress.Done
}

// A replay makes no more deliveries than its rate allows, and one without a rate
// does not wait for it. Cancelled, it makes no more.
func TestRateAndCancel(t *testing.T) {
	w := newWorld(t)
	w.events(200)
	w.subscribe("webhook_subscription:1")
	slow, fast := w.request("webhook_subscription:1"), w.request("webhook_subscription:1")
	slow.Rate = 8
	w.ask(slow, fast)
	c := &clock{}
	c.advance(time.Hour)
	more := w.rounds(c, nil)
	w.until(fast.ID, webhook.ReplayDone, more)
	more(5)
	if n := w.done(slow.ID); n != 4 {
		t.Errorf("%d deliveries at once, want 4", n)
	}
	for i := range 6 {
		c.advance(125 * time.Millisecond) // two of them for the least that is made at once
		more(5)
		if n, want := w.done(slow.ID), int64(4+(i+1)/2*2); n != want {
			t.Errorf("%d deliveries, want %d", n, want)
		}
	}
	w.cancel(slow.ID)
	c.advance(time.Hour)
	w.check(w.replays.Sync(w.context()))
	if !w.replays.Cancelled(slow.ID) || w.replays.Cancelled(fast.ID) || w.replays.Cancelled("") {
		t.Error("the wrong replay is cancelled")
	}
	w.until(slow.ID, webhook.ReplayCancelled, more)
	if n := w.done(slow.ID); n != 10 {
		t.Errorf("%d deliveries, want 10", n)
	}
	w.made(fast, w.log)
	if open := w.replays.Open(); len(open) > 0 {
		t.Errorf("%d replays are open", len(open))
	}
	// Cancelled after its end, it is cancelled for the sender's sake.
	w.cancel(fast.ID)
	w.awaitState(fast.ID, webhook.ReplayCancelled)
}

// until lets a replayer go on until a replay has ended so.
func (w *world) until(id, state string, more func(int)) {
	w.t.Helper()
	for range 1000 {
		w.check(w.replays.Sync(w.context()))
		if r, _ := w.replays.Get(id); r.State() == state && r.Progress.Ended() {
			return
		}
		more(1)
	}
	w.t.Fatal("the replay does not end")
}

// A replay goes no further ahead of the senders than it may.
func TestAhead(t *testing.T) {
	w := newWorld(t)
	w.events(200)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	w.ask(r)
	c := &clock{}
	more := w.rounds(c, func(conf *replay.Config) { conf.Ahead = 30 })
	more(10)
	if n := w.done(r.ID); n == 0 || n > 30 {
		t.Errorf("%d deliveries ahead of the senders, want at most 30", n)
	}
	for w.done(r.ID) < 200 {
		// The senders settle what is there.
		settled := kadm.Offsets{}
		for p, end := range w.ends(w.topics.Backfill()) {
			settled.AddOffset(w.topics.Backfill(), int32(p), end, -1)
		}
		w.check(w.adm.CommitAllOffsets(w.context(), w.config().Readers, settled))
		before := w.done(r.ID)
		for i := 0; i < 10 && w.done(r.ID) < 200; i++ {
			more(1)
		}
		if n := w.done(r.ID) - before; n > 30 {
			t.Errorf("%d deliveries ahead of the senders, want at most 30", n)
		}
	}
	w.until(r.ID, webhook.ReplayDone, more)
	w.made(r, w.log)
}

// A replay to a subscription that is deleted fails, and says why.
func TestSubscriptionDeleted(t *testing.T) {
	w := newWorld(t)
	w.events(10)
	marked, gone := w.subscribe("webhook_subscription:1"), "webhook_subscription:2"
	marked.Deleted = true
	w.put(marked)
	a, b := w.request(marked.ID), w.request(gone)
	w.ask(a, b)
	w.background(w.replayer(nil).Run)
	for _, r := range []*webhook.ReplayRequest{a, b} {
		if got := w.awaitState(r.ID, webhook.ReplayFailed); got.Progress.Reason != webhook.ReplaySubscriptionDeleted {
			t.Errorf("it failed because of %q", got.Progress.Reason)
		}
		w.made(r, nil)
	}
}

// A recovery sends again, once, each event of which a delivery to the subscription
// ended dead or discarded; also if it is killed.
func TestRecovery(t *testing.T) {
	w := newWorld(t)
	w.events(600)
	w.subscribe("webhook_subscription:1")
	var wanted []logged
	var records []*kgo.Record
	attempt := func(e logged, subscription, outcome, cause, origin string) {
		position := e.at.String()
		if origin == "test:1" {
			position = ""
		}
		value, err := json.Marshal(webhook.Attempt{
			DeliveryID: webhook.DeliveryID(e.ID, subscription, origin), SubscriptionID: subscription, EventType: e.Type, Origin: origin,
			EventPosition: position, Attempt: 1, At: time.Now().UTC(), Outcome: outcome, Error: cause,
		})
		w.check(err)
		records = append(records, &kgo.Record{Topic: w.topics.Attempts(), Key: []byte(subscription), Value: value})
	}
	for i, e := range w.log {
		switch i % 6 {
		case 0:
			attempt(e, "webhook_subscription:1", webhook.Failed, "timeout", "")
			attempt(e, "webhook_subscription:1", webhook.Dead, "timeout", "")
			wanted = append(wanted, e)
		case 1:
			attempt(e, "webhook_subscription:1", webhook.Discarded, "subscription_disabled", "")
			wanted = append(wanted, e)
		case 2:
			attempt(e, "webhook_subscription:1", webhook.Failed, "timeout", "")
			attempt(e, "webhook_subscription:1", webhook.Delivered, "", "")
		case 3:
			attempt(e, "webhook_subscription:1", webhook.Discarded, "replay_cancelled", "replay:1")
		case 4:
			attempt(e, "webhook_subscription:2", webhook.Dead, "timeout", "")
		case 5:
			attempt(e, "webhook_subscription:1", webhook.Dead, "timeout", "test:1")
		}
	}
	for _, e := range wanted { // and once more
		attempt(e, "webhook_subscription:1", webhook.Dead, "timeout", "resend:1")
	}
	w.produce(records...)
	r := w.recovery("webhook_subscription:1")
	r.Rate = 160 // so that there are several transactions
	w.ask(r)
	w.count(r, len(wanted))
	n := 0
	err := w.replayer(func(step string) error {
		if step == "committed" {
			if n++; n == 2 {
				return errKilled
			}
		}
		return nil
	}).Serve(w.context())
	if !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, wanted)
}

// A range that the topic does not have any more ends the replay, not silently.
func TestOutOfRange(t *testing.T) {
	w := newWorld(t)
	w.events(50)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	cut := kadm.Offsets{}
	for p, end := range w.ends(w.topics.Events()) {
		cut.AddOffset(w.topics.Events(), int32(p), end, -1)
	}
	_, err := w.adm.DeleteRecords(w.context(), cut)
	w.check(err)
	w.ask(r)
	w.background(w.replayer(nil).Run)
	if got := w.awaitState(r.ID, webhook.ReplayFailed); got.Progress.Reason != webhook.ReplayOutOfRange {
		t.Errorf("it failed because of %q", got.Progress.Reason)
	}
}

// What a recovery has gone through may expire meanwhile.
func TestRecoveryOutlivesAttempts(t *testing.T) {
	w := newWorld(t)
	w.events(60)
	w.subscribe("webhook_subscription:1")
	for _, e := range w.log {
		value, err := json.Marshal(webhook.Attempt{
			DeliveryID: webhook.DeliveryID(e.ID, "webhook_subscription:1", ""), SubscriptionID: "webhook_subscription:1", EventType: e.Type,
			EventPosition: e.at.String(), Attempt: 1, At: time.Now().UTC(), Outcome: webhook.Dead, Error: "timeout",
		})
		w.check(err)
		w.produce(&kgo.Record{Topic: w.topics.Attempts(), Key: []byte("webhook_subscription:1"), Value: value})
	}
	r := w.recovery("webhook_subscription:1")
	r.Rate = 40
	w.ask(r)
	err := w.replayer(func(step string) error {
		if step == "committed" {
			return errKilled
		}
		return nil
	}).Serve(w.context())
	if !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	cut := kadm.Offsets{}
	for p, end := range w.ends(w.topics.Attempts()) {
		cut.AddOffset(w.topics.Attempts(), int32(p), min(end, 10), -1) // it is at 20
	}
	_, err = w.adm.DeleteRecords(w.context(), cut)
	w.check(err)
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, w.log)
}

// A request that is written twice ends where it did at first.
func TestRequestWrittenTwice(t *testing.T) {
	w := newWorld(t)
	w.events(50)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	want := slices.Clone(w.log)
	w.events(50)
	again := w.request("webhook_subscription:1")
	again.ID = r.ID
	w.ask(r, again)
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, want)
}

// A replay that was begun stays what it was, and ends so, when the log keeps
// nothing but a later request of the same id: they have one key.
func TestOutlivesItsRequest(t *testing.T) {
	w := newWorld(t)
	w.events(1500) // more than fit in a transaction
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	later := w.request("webhook_subscription:1", events.Cancelled)
	later.ID = r.ID
	w.ask(r, later)
	killed := w.replayer(func(step string) error {
		if step == "committed" {
			return errKilled
		}
		return nil
	}).Serve(w.context())
	if !errors.Is(killed, errKilled) {
		t.Fatal(killed)
	}
	w.lose(w.topics.Replays(), 1)
	w.replays, _ = w.table()
	w.check(w.replays.Sync(w.context()))
	if got, _ := w.replays.Get(r.ID); !slices.Equal(got.Request.EventNames, r.EventNames) || got.State() != webhook.ReplayRunning {
		t.Errorf("it became %+v, %s", got.Request, got.State())
	}
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, w.log)

	// Also when it had ended before the later one was written.
	w.ask(later)
	w.lose(w.topics.Replays(), w.ends(w.topics.Replays())[0]-3) // its last progress, a marker, and that
	w.replays, _ = w.table()
	w.check(w.replays.Sync(w.context()))
	if got, _ := w.replays.Get(r.ID); got.Request == nil || !slices.Equal(got.Request.EventNames, r.EventNames) || got.State() != webhook.ReplayDone {
		t.Errorf("it became %+v, %s", got.Request, got.State())
	}
}

// lose removes what lies before an offset of a topic's only partition, as
// compaction would that keeps the rest.
func (w *world) lose(topic string, before int64) {
	w.t.Helper()
	altered, err := w.adm.AlterTopicConfigs(w.context(), []kadm.AlterConfig{{Name: "cleanup.policy", Value: new("delete")}}, topic)
	w.check(err)
	w.check(altered[0].Err)
	offsets := kadm.Offsets{}
	offsets.AddOffset(topic, 0, before, -1)
	ctx := w.context()
	for { // a broker hears of a policy some time after the controller took it
		deleted, err := w.adm.DeleteRecords(ctx, offsets)
		w.check(err)
		if err = deleted.Error(); !errors.Is(err, kerr.PolicyViolation) {
			w.check(err)
			return
		}
	}
}

// What ended long ago is forgotten, and what is open is not.
func TestForgets(t *testing.T) {
	w := newWorld(t)
	w.events(50)
	w.subscribe("webhook_subscription:1")
	old, open := w.request("webhook_subscription:1"), w.request("webhook_subscription:1")
	open.Rate = 1
	w.ask(old, open)
	c := &clock{}
	c.advance(24 * time.Hour)
	more := w.rounds(c, nil)
	w.until(old.ID, webhook.ReplayDone, more)
	c.advance(29 * 24 * time.Hour)
	more(2)
	w.check(w.replays.Sync(w.context()))
	if _, ok := w.replays.Get(old.ID); !ok {
		t.Error("it is forgotten too early")
	}
	c.advance(2 * 24 * time.Hour)
	more(2)
	w.check(w.replays.Sync(w.context()))
	if _, ok := w.replays.Get(old.ID); ok {
		t.Error("it is not forgotten")
	}
	if _, ok := w.replays.Get(open.ID); !ok {
		t.Error("an open replay is forgotten")
	}
	if got := w.replays.List("webhook_subscription:1"); len(got) != 1 {
		t.Errorf("%d replays are listed, want 1", len(got))
	}
}
