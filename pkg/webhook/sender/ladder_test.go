package sender_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// wantTimes fails the test unless the next requests come at these seconds after
// the first of them, as attempts 1, 2, 3 …
func (rc *receiver) wantTimes(t *testing.T, seconds ...int) {
	t.Helper()
	var first time.Time
	for i, want := range seconds {
		got := rc.next()
		if i == 0 {
			first = got.at
		}
		if after := got.at.Sub(first); after != time.Duration(want)*time.Second {
			t.Errorf("attempt %d comes after %s, want %d s", i+1, after, want)
		}
		if n := got.header.Get("X-Delivery-Attempt"); n != strconv.Itoa(i+1) {
			t.Errorf("attempt %d calls itself %s", i+1, n)
		}
	}
}

// The ladder that receivers were promised: 1, 2, 4, 8 and 16 s after each
// failure.
func TestLadder(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(status(http.StatusServiceUnavailable))
		s := b.subscribe(rc.url)
		snd := b.start()
		b.deliver(s)
		rc.wantTimes(t, 0, 1, 3, 7, 15, 31)
		b.deadLetters(1)
		snd.stop()
		b.wantCount(b.topics.Attempts(), 6)
	})
}

// Attempts that take their time are followed as long after their failure.
func TestLadderCountsFromTheFailure(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }) // times out after 10 s
		s := b.subscribe(rc.url)
		snd := b.start()
		b.deliver(s)
		rc.wantTimes(t, 0, 11, 23, 37, 55, 81)
		dead := b.deadLetters(1)[0]
		if got := dead.Delivery.Attempts[5].Error; got != "timeout" {
			t.Errorf("the last attempt failed because of %q, want timeout", got)
		}
		snd.stop()
	})
}

// Retry-After moves an attempt later, never earlier, on 429 and 503 only, up to
// the cap, and costs no attempt.
func TestRetryAfter(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(func(w http.ResponseWriter, _ *http.Request, n int) {
			answer := []struct {
				retryAfter string
				status     int
			}{{"7", 429}, {"86400", 503}, {"1", 429}, {"100", 500}, {"", 200}}[n-1]
			w.Header().Set("Retry-After", answer.retryAfter)
			w.WriteHeader(answer.status)
		})
		s := b.subscribe(rc.url)
		snd := b.start()
		b.deliver(s)
		const limit = 15 * 60
		rc.wantTimes(t, 0, 7, 7+limit, 11+limit, 19+limit)
		recorded := b.attempts(5)
		snd.stop()
		for _, a := range recorded {
			if a.Attempt == 1 && !a.NextAttemptAt.Truncate(time.Second).Equal(a.At.Add(7*time.Second).Truncate(time.Second)) {
				t.Errorf("attempt 1 at %s says that the next is at %s", a.At, a.NextAttemptAt)
			}
		}
		b.wantCount(b.topics.Attempts(), 5)
		b.wantCount(b.topics.DeadLetters(), 0)
		for _, delay := range b.schedule {
			b.wantAllCommitted(b.topics.Retry(delay))
		}
	})
}

// One that waits longer, at the head of a retry topic, holds up none of those
// behind it.
func TestRetryAfterBlocksNobody(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		var patient, other *webhook.Delivery
		rc := b.receive(nil)
		rc.answer = func(w http.ResponseWriter, r *http.Request, n int) {
			switch {
			case n > 1:
			case r.Header.Get("X-Delivery-Id") == patient.ID:
				w.Header().Set("Retry-After", "600")
				w.WriteHeader(http.StatusTooManyRequests)
			default:
				w.WriteHeader(http.StatusInternalServerError)
			}
		}
		s := b.subscribe(rc.url)
		snd := b.start(func(cfg *sender.Config) { cfg.Window = 1 })
		patient, other = newDelivery(s), newDelivery(s)
		b.send(b.topics.Deliveries(), patient)
		first := rc.next()
		b.send(b.topics.Deliveries(), other)
		second := rc.next()
		for _, want := range []struct {
			id string
			at time.Time
		}{{other.ID, second.at.Add(time.Second)}, {patient.ID, first.at.Add(600 * time.Second)}} {
			if got := rc.next(); got.id() != want.id || !got.at.Equal(want.at) {
				t.Errorf("second attempt at %s is at %s, want %s at %s", got.id(), got.at, want.id, want.at)
			}
		}
		snd.stop()
	})
}
