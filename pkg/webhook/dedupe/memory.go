package dedupe

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// Memory keeps marks and claims in the process, with the semantics of Redis, for tests. The zero value is ready for
// use and needs no Open. It never frees the memory of claims and marks that nobody asks for again.
type Memory struct {
	Now      func() time.Time // default time.Now
	Lease    time.Duration    // default 15 s
	MarkLife time.Duration    // default 7 days

	mu     sync.Mutex
	lost   bool
	marks  map[string]expiring[mark]
	claims map[attemptKey]expiring[string]
	tokens int
}

type attemptKey struct {
	id      string
	attempt int
}

type expiring[T any] struct {
	value T
	until time.Time
}

// at returns the value if it still lives, and the zero value otherwise.
func (e expiring[T]) at(now time.Time) T {
	if !now.Before(e.until) {
		var zero T
		return zero
	}
	return e.value
}

// Claim does what Redis.Claim does.
func (m *Memory) Claim(ctx context.Context, id string, attempt int) (Claim, error) {
	if err := check(ctx, id, attempt); err != nil {
		return Claim{}, err
	}
	now := m.lock()
	defer m.mu.Unlock()
	if m.lost {
		return Claim{}, ErrLost
	}
	key := attemptKey{id, attempt}
	held := m.claims[key]
	c := m.marks[id].at(now).judge(attempt, held.at(now) == "")
	switch c.Verdict {
	case Granted:
		m.tokens++
		c.Token, c.Deadline = strconv.Itoa(m.tokens), now.Add(m.Lease)
		m.claims[key] = expiring[string]{c.Token, c.Deadline}
	case Busy:
		c.Wait = held.until.Sub(now)
	}
	return c, nil
}

// SettleAll does what Redis.SettleAll does.
func (m *Memory) SettleAll(ctx context.Context, all []Settlement) error {
	var failed error
	for _, one := range all {
		if err := m.settle(ctx, one); err != nil {
			failed = err
		}
	}
	return failed
}

func (m *Memory) settle(ctx context.Context, one Settlement) error {
	o, err := parseOutcome(one.Outcome)
	if err != nil {
		return err
	}
	if err := check(ctx, one.ID, one.Attempt); err != nil {
		return err
	}
	now := m.lock()
	defer m.mu.Unlock()
	m.add(now, one.ID, one.Attempt, o)
	if one.Token != "" {
		delete(m.claims, attemptKey{one.ID, one.Attempt})
	}
	if m.lost {
		return ErrLost
	}
	return nil
}

// Release does what Redis.Release does.
func (m *Memory) Release(ctx context.Context, id string, attempt int, token string) error {
	if err := check(ctx, id, attempt); err != nil {
		return err
	}
	m.lock()
	defer m.mu.Unlock()
	if key := (attemptKey{id, attempt}); m.claims[key].value == token {
		delete(m.claims, key)
	}
	if m.lost {
		return ErrLost
	}
	return nil
}

// Lose forgets everything, as a FLUSHALL would. Calls return ErrLost until Restore.
func (m *Memory) Lose() {
	m.lock()
	defer m.mu.Unlock()
	m.lost = true
	clear(m.marks)
	clear(m.claims)
}

// Open does what Redis.Open does.
func (m *Memory) Open(ctx context.Context) error {
	m.lock()
	defer m.mu.Unlock()
	if m.lost {
		return ErrLost
	}
	return ctx.Err()
}

// Restore does what Redis.Restore does, but does not wait for a lease.
func (m *Memory) Restore(ctx context.Context, load Load) error {
	if m.Open(ctx) == nil {
		return nil
	}
	if err := load(ctx, func(id string, attempt int, outcome string) error {
		o, err := parseOutcome(outcome)
		if err != nil {
			return err
		}
		if err := check(ctx, id, attempt); err != nil {
			return err
		}
		now := m.lock()
		defer m.mu.Unlock()
		m.add(now, id, attempt, o)
		return nil
	}); err != nil {
		return fmt.Errorf("dedupe: load marks: %w", err)
	}
	m.lock()
	defer m.mu.Unlock()
	m.lost = false
	return nil
}

// lock locks, fills in the defaults and returns the time.
func (m *Memory) lock() time.Time {
	m.mu.Lock()
	if m.marks == nil {
		m.marks = make(map[string]expiring[mark])
		m.claims = make(map[attemptKey]expiring[string])
		if m.Now == nil {
			m.Now = time.Now
		}
		if m.Lease == 0 {
			m.Lease = defaultLease
		}
		if m.MarkLife == 0 {
			m.MarkLife = defaultMarkLife
		}
	}
	return m.Now()
}

func (m *Memory) add(now time.Time, id string, attempt int, o outcome) {
	m.marks[id] = expiring[mark]{m.marks[id].at(now).with(attempt, o), now.Add(m.MarkLife)}
}
