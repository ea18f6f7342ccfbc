package webhook

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Schedule holds the delays after each failed attempt. With n delays a
// delivery is attempted at most n+1 times. Each distinct delay has a retry
// topic of its own.
type Schedule []time.Duration

// DefaultSchedule is the one receivers were promised.
func DefaultSchedule() Schedule {
	return Schedule{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second}
}

// ParseSchedule reads delays separated by commas: "1s,2s,4s,8s,16s".
func ParseSchedule(text string) (Schedule, error) {
	var s Schedule
	for part := range strings.SplitSeq(text, ",") {
		d, err := time.ParseDuration(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("retry schedule: %w", err)
		}
		s = append(s, d)
	}
	return s, s.Validate()
}

// Validate says what is wrong with a schedule.
func (s Schedule) Validate() error {
	for _, d := range s {
		if d <= 0 || d%time.Millisecond != 0 {
			return errors.New("retry schedule: delays must be positive and whole milliseconds")
		}
	}
	if len(s) > 20 {
		return errors.New("retry schedule: at most 20 delays")
	}
	return nil
}

// Delays returns the distinct delays, each of which has a retry topic.
func (s Schedule) Delays() []time.Duration {
	var distinct []time.Duration
	seen := map[time.Duration]bool{}
	for _, d := range s {
		if !seen[d] {
			seen[d] = true
			distinct = append(distinct, d)
		}
	}
	return distinct
}

// After returns the delay that follows the failed attempt, and false when it
// was the last one.
func (s Schedule) After(attempt int) (time.Duration, bool) {
	if attempt < 1 || attempt > len(s) {
		return 0, false
	}
	return s[attempt-1], true
}

// Next says when the attempt after a failed one is due and in which retry topic
// it waits: after the schedule's delay, or later if the answer's Retry-After
// asks so (0: it does not), but not later than the cap. It returns false when
// the failed attempt was the last one.
func (s Schedule) Next(attempt int, now time.Time, retryAfter, limit time.Duration) (topicDelay time.Duration, due time.Time, ok bool) {
	delay, ok := s.After(attempt)
	if !ok {
		return 0, time.Time{}, false
	}
	return delay, now.Add(max(delay, min(retryAfter, limit))), true
}
