package standing

import (
	"context"
	"sync"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Memory keeps the standing in the process, with the semantics of Redis, for tests. The zero value is ready for use.
type Memory struct {
	mu      sync.Mutex
	arrival map[string]time.Time // theoretical arrival time of the next request, as GCRA calls it
	since   map[string]time.Time
}

// Take does what Redis.Take does.
func (m *Memory) Take(_ context.Context, subscriptionID string, limit webhook.RateLimit, n int) (granted int, wait time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.arrival == nil {
		m.arrival = map[string]time.Time{}
	}
	now := time.Now()
	interval := time.Second / time.Duration(limit.PerSecond)
	next := m.arrival[subscriptionID]
	if next.Before(now) {
		next = now
	}
	n = min(n, limit.Burst)
	next = next.Add(time.Duration(n) * interval)
	if wait := next.Sub(now.Add(time.Duration(limit.Burst) * interval)); wait > 0 {
		return 0, wait, nil
	}
	m.arrival[subscriptionID] = next
	return n, 0, nil
}

// Failed does what Redis.Failed does.
func (m *Memory) Failed(_ context.Context, subscriptionID string, at time.Time) (since time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since == nil {
		m.since = map[string]time.Time{}
	}
	if m.since[subscriptionID].IsZero() {
		m.since[subscriptionID] = at
	}
	return m.since[subscriptionID], nil
}

// Succeeded does what Redis.Succeeded does.
func (m *Memory) Succeeded(_ context.Context, subscriptionID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.since, subscriptionID)
	return nil
}
