package standing_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/standing"
)

type store interface {
	Take(ctx context.Context, subscriptionID string, limit webhook.RateLimit, n int) (granted int, wait time.Duration, err error)
	Failed(ctx context.Context, subscriptionID string, at time.Time) (since time.Time, err error)
	Succeeded(ctx context.Context, subscriptionID string) error
}

// eachStore runs a test on both stores; of Redis with two clients, as two senders
// have.
func eachStore(t *testing.T, test func(t *testing.T, one, other store)) {
	t.Run("Memory", func(t *testing.T) {
		m := new(standing.Memory)
		test(t, m, m)
	})
	t.Run("Redis", func(t *testing.T) {
		opts := testenv.Redis(t)
		prefix := uuid.NewString()
		client := func() store {
			s, err := standing.New(standing.Config{Redis: opts, Prefix: prefix})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		test(t, client(), client())
	})
}

// A burst is granted once, to both together; then one is to wait. More than a burst
// is never asked for.
func TestTake(t *testing.T) {
	eachStore(t, func(t *testing.T, one, other store) {
		limit := webhook.RateLimit{PerSecond: 1, Burst: 3}
		for i, want := range []struct {
			s       store
			ask     int
			granted int
		}{{one, 2, 2}, {other, 2, 0}, {other, 1, 1}, {one, 1, 0}, {other, 9, 0}} {
			granted, wait, err := want.s.Take(t.Context(), "a", limit, want.ask)
			if err != nil {
				t.Fatal(err)
			}
			if granted != want.granted || (granted == 0) != (wait > 0) || wait > 3*time.Second {
				t.Errorf("call %d: granted %d, wait %s; want %d", i+1, granted, wait, want.granted)
			}
		}
		if granted, _, err := other.Take(t.Context(), "b", limit, 9); err != nil || granted != 3 {
			t.Errorf("another subscription is granted %d, %v", granted, err)
		}
	})
}

// A failure counts from the first since the last success, whoever tells of it.
func TestFailedSince(t *testing.T) {
	eachStore(t, func(t *testing.T, one, other store) {
		at := func(hour int) time.Time { return time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC) }
		failed := func(s store, id string, hour, want int) {
			t.Helper()
			since, err := s.Failed(t.Context(), id, at(hour))
			if err != nil || !since.Equal(at(want)) {
				t.Errorf("failing since %s, %v; want %s", since, err, at(want))
			}
		}
		failed(one, "a", 1, 1)
		failed(other, "a", 2, 1)
		failed(other, "b", 3, 3)
		if err := other.Succeeded(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		failed(one, "a", 4, 4)
		failed(one, "b", 5, 3)
	})
}

func TestConfig(t *testing.T) {
	if _, err := standing.New(standing.Config{}); err == nil {
		t.Error("made without a Redis")
	}
}
