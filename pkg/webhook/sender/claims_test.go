package sender_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// retry makes the record that a failed first attempt leaves.
func retry(d *webhook.Delivery, attempt int) *webhook.Delivery {
	next := *d
	next.Attempt, next.NotBefore = attempt, time.Now()
	next.History = []webhook.PastAttempt{{Attempt: attempt - 1, At: time.Now(), Status: 500}}
	return &next
}

// A crash between the hand-over and its commit makes the same hand-over twice:
// one of the twins is sent, the other is found settled, also when it failed.
func TestTwins(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(func(w http.ResponseWriter, r *http.Request, _ int) {
			if r.Header.Get("X-Delivery-Attempt") == "2" {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		s := b.subscribe(rc.url)
		d := newDelivery(s)
		if err := b.settle(d.ID, 1, webhook.Failed); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			b.send(b.topics.Retry(time.Second), retry(d, 2))
		}
		b.send(b.topics.Deliveries(), d) // its offset was not committed either
		snd := b.start()
		if got := rc.next().header.Get("X-Delivery-Attempt") + rc.next().header.Get("X-Delivery-Attempt"); got != "23" {
			t.Errorf("attempts %s, want 2 and 3", got)
		}
		time.Sleep(time.Minute)
		snd.stop()
		b.wantCount(b.topics.Attempts(), 2)
		b.wantCount(b.topics.Retry(2*time.Second), 1)
		for _, topic := range []string{b.topics.Deliveries(), b.topics.Retry(time.Second), b.topics.Retry(2 * time.Second)} {
			b.wantAllCommitted(topic)
		}
	})
}

// A crash between the hand-over and the mark: the second attempt waits, is not
// sent and settles nothing, until the first is settled.
func TestHandedOverButNotMarked(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(nil)
		s := b.subscribe(rc.url)
		d := newDelivery(s)
		r := b.send(b.topics.Retry(time.Second), retry(d, 2))
		snd := b.start()
		time.Sleep(time.Hour)
		rc.wantOnce(t)
		if at := b.committed(r.Topic, r.Partition); at > r.Offset {
			t.Errorf("committed to %d, past the waiting attempt at %d", at, r.Offset)
		}
		b.send(b.topics.Deliveries(), d)
		rc.next()
		time.Sleep(time.Second)
		snd.stop()
		rc.wantOnce(t, d.ID)
		b.wantCount(b.topics.Attempts(), 1)
		b.wantAllCommitted(r.Topic)
	})
}

// A refused claim settles nothing: its holder may be dead, as here. It is made
// when the lease has ended, and never committed past before.
func TestHolderOfTheClaimIsDead(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		rc := b.receive(nil)
		s := b.subscribe(rc.url)
		d := newDelivery(s)
		held, err := b.claims.Claim(t.Context(), d.ID, 1)
		if err != nil || held.Verdict != dedupe.Granted {
			t.Fatal(held, err)
		}
		r := b.send(b.topics.Deliveries(), d)
		b.deliver(s) // behind it, and not held up
		snd := b.start()
		if got := rc.next(); got.id() == d.ID || !got.at.Before(held.Deadline) {
			t.Errorf("%s is sent at %s, although its lease lasts till %s", got.id(), got.at, held.Deadline)
		}
		time.Sleep(time.Second)
		if at := b.committed(r.Topic, r.Partition); at > r.Offset {
			t.Errorf("committed to %d, past the refused one at %d", at, r.Offset)
		}
		if got := rc.next(); got.id() != d.ID || got.at.Before(held.Deadline) {
			t.Errorf("%s is sent at %s, want %s after the lease's end at %s", got.id(), got.at, d.ID, held.Deadline)
		}
		snd.stop()
		b.wantAllCommitted(r.Topic)
	})
}

// stalling is a store after whose first answer the sender stands still.
type stalling struct {
	sender.Claims
	once  sync.Once
	stall time.Duration
}

func (s *stalling) Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error) {
	c, err := s.Claims.Claim(ctx, id, attempt)
	s.once.Do(func() { time.Sleep(s.stall) })
	return c, err
}

// A sender that stalls before the request looks at what is left of its lease.
func TestStallBeforeTheRequest(t *testing.T) {
	for name, stall := range map[string]time.Duration{
		"past the lease": 20 * time.Second,
		"too little is left for a request, its answer and the outcome": 3900 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, short, func(t *testing.T, b *bench) {
				store := b.claims
				b.claims = &stalling{Claims: store, stall: stall}
				// The slowest answer that is one: its head comes just within the
				// time-out, and its body as long as it is read.
				rc := b.receive(func(w http.ResponseWriter, r *http.Request, _ int) {
					time.Sleep(9900 * time.Millisecond)
					w.WriteHeader(http.StatusOK)
					_ = http.NewResponseController(w).Flush()
					time.Sleep(1900 * time.Millisecond)
					if c, err := store.Claim(t.Context(), r.Header.Get("X-Delivery-Id"), 1); err != nil || c.Verdict != dedupe.Busy {
						t.Errorf("another sender is told %s, %v while the request is under way", c.Verdict, err)
					}
				})
				s := b.subscribe(rc.url)
				snd := b.start()
				d := b.deliver(s)
				rc.next()
				snd.stop()
				rc.wantOnce(t, d.ID)
			})
		})
	}
}

// A delivery names the subscription's record that it was made from. Until the
// table has reached that, the subscription is not unknown.
func TestAwaitsTheSubscription(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		rc := b.receive(nil)
		known := b.subscribe(rc.url)
		late := &subscription{Subscription: known.Subscription, at: webhook.Position{Offset: known.at.Offset + 1}}
		late.ID += "-late"
		snd := b.start()
		waiting := b.deliver(late)
		time.Sleep(time.Minute)
		rc.wantOnce(t)
		b.wantCount(b.topics.Attempts(), 0)
		b.put(late)
		rc.next()
		snd.stop()
		rc.wantOnce(t, waiting.ID)
		b.wantAllCommitted(b.topics.Deliveries())
	})
}
