package dedupe

import (
	"context"
	"time"
)

// SetPause replaces how a restore waits for the end of lost claims.
func (s *Redis) SetPause(pause func(context.Context, time.Duration) error) { s.pause = pause }

// Waiting is the number of calls that wait for a round trip.
func (s *Redis) Waiting() int {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	return len(s.queue.waiting)
}
