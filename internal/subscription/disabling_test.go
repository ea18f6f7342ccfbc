package subscription_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// asks is an attempt at a delivery to the subscription that asks for it to be
// disabled.
func asks(id, reason string, version int) webhook.Attempt {
	a := attempt(id)
	a.Disable = &webhook.Disable{Reason: reason, Version: version}
	return a
}

func attempt(id string) webhook.Attempt {
	return webhook.Attempt{
		DeliveryID: uuid.NewString(), SubscriptionID: id, EventType: "appointment.created", EventPosition: "0/1",
		Attempt: 6, At: time.Now(), Outcome: webhook.Dead, Status: 410,
	}
}

// tell writes attempts to one partition, in that order; a string is written as
// it is.
func (w *world) tell(attempts ...any) {
	w.t.Helper()
	client := testenv.Client(w.t, w.conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, a := range attempts {
		value, err := json.Marshal(a)
		if text, ok := a.(string); ok {
			value = []byte(text)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if err := client.ProduceSync(deadline(w.t), &kgo.Record{Topic: w.conf.Topics().Attempts(), Value: value}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// disabled waits until the subscription is disabled by the system.
func disabled(t *testing.T, s *instance, id string) *webhook.Subscription {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx := deadline(t)
	for {
		sub, err := s.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if sub.Disabled != nil {
			return sub
		}
		<-tick.C
	}
}

// What a sender asks for is granted; what no longer holds, or is no request, is
// passed over.
func TestGrants(t *testing.T) {
	w := newWorld(t)
	w.granting = "disabling"
	s := w.start("http://a")
	untouched, changed, deleted, off, gone := mustCreate(t, valid(), s), mustCreate(t, valid(), s), mustCreate(t, valid(), s), mustCreate(t, valid(), s), mustCreate(t, valid(), s)
	mustChange(t, s, changed.ID, subscription.Change{Secret: new("new")})
	if err := s.Delete(deadline(t), meta(), deleted.ID, 0); err != nil {
		t.Fatal(err)
	}
	mustChange(t, s, off.ID, subscription.Change{Enabled: new(false)})
	quotes := attempt(untouched.ID)
	quotes.Answer = `{"disable":{"reason":"gone","version":1}}`
	w.tell(
		attempt(untouched.ID), quotes, `{"disable":`, `{"disable":{"reason":"gone","version":1}}`,
		asks(untouched.ID, "whim", 1), asks(untouched.ID, webhook.DisabledGone, 0), asks(untouched.ID, webhook.DisabledGone, 2),
		asks("webhook_subscription:none", webhook.DisabledGone, 1), asks(changed.ID, webhook.DisabledGone, 1), asks(deleted.ID, webhook.DisabledGone, 2),
		asks(off.ID, webhook.DisabledGone, 1), asks(off.ID, webhook.DisabledGone, 2),
		asks(gone.ID, webhook.DisabledNoSuccess, 1), asks(gone.ID, webhook.DisabledGone, 1),
	)
	if sub := disabled(t, s, gone.ID); sub.Version != 2 || sub.Enabled || sub.Disabled.Reason != webhook.DisabledNoSuccess {
		t.Errorf("it is %+v, disabled %+v", sub, sub.Disabled)
	}
	mustChange(t, s, gone.ID, subscription.Change{Enabled: new(true)})

	// Whoever reads it all again finds nothing more to do.
	s.stop()
	w.granting = "again"
	s = w.start("http://b")
	last := mustCreate(t, valid(), s)
	w.tell(asks(last.ID, webhook.DisabledGone, 1))
	disabled(t, s, last.ID)
	for id, version := range map[string]int{untouched.ID: 1, changed.ID: 2, deleted.ID: 2, off.ID: 2, gone.ID: 3} {
		if e, _ := s.reg.Get(id); e.Subscription.Version != version || e.Subscription.Disabled != nil {
			t.Errorf("version %d, disabled %+v; want version %d as it was", e.Subscription.Version, e.Subscription.Disabled, version)
		}
	}
}

// Who writes the subscriptions grants, and the other goes on when it is gone.
func TestGrantsWhereSubscriptionsAreWritten(t *testing.T) {
	w := newWorld(t)
	w.granting = "disabling"
	a, b := w.start("http://a"), w.start("http://b")
	first, second := mustCreate(t, valid(), a, b), mustCreate(t, valid(), a, b)
	w.tell(asks(first.ID, webhook.DisabledGone, 1))
	disabled(t, b, first.ID)
	a.stop()
	w.tell(asks(second.ID, webhook.DisabledGone, 1))
	disabled(t, b, second.ID)
}

// A request that could not be granted is not settled: the next owner reads it
// again.
func TestNextOwnerGrants(t *testing.T) {
	w := newWorld(t)
	w.granting, w.asked = "disabling", make(chan struct{}, 1000)
	a := w.start("http://a")
	made := mustCreate(t, valid(), a)
	for range len(w.asked) {
		<-w.asked
	}
	w.isDown(errors.New("the log is away"))
	w.tell(asks(made.ID, webhook.DisabledGone, 1), attempt(made.ID))
	select {
	case <-w.asked: // it tries
	case <-deadline(t).Done():
		t.Fatal("nobody tried to grant the request")
	}
	a.stop()
	w.isDown(nil)
	b := w.start("http://b")
	if sub := disabled(t, b, made.ID); sub.Version != 2 {
		t.Errorf("it is at version %d, want 2", sub.Version)
	}
}
