// Package webhook is the contract: what a subscription, a delivery and an
// attempt are, how a request is rendered and signed, and when a failed one is
// tried again. Receivers written in Go may import it for Verify.
package webhook

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Topics names the topics of one deployment.
type Topics struct {
	// Prefix is put before each name, so that deployments can share a cluster.
	Prefix string
}

// Events is the log of what happened, keyed by provider id.
func (t Topics) Events() string { return t.Prefix + "appointments.events" }

// Subscriptions is the compacted table of subscriptions.
func (t Topics) Subscriptions() string { return t.Prefix + "webhooks.subscriptions" }

// Deliveries holds one record per event and matching subscription.
func (t Topics) Deliveries() string { return t.Prefix + "webhooks.deliveries" }

// Attempts tells what became of every attempt.
func (t Topics) Attempts() string { return t.Prefix + "webhooks.attempts" }

// DeadLetters holds what is given up, and records that could not be read or
// projected.
func (t Topics) DeadLetters() string { return t.Prefix + "webhooks.dead-letters" }

// Parked holds deliveries that their endpoint's lane could not take.
func (t Topics) Parked() string { return t.Prefix + "webhooks.parked" }

// Backfill holds deliveries that somebody asked for: replays, resends and tests.
func (t Topics) Backfill() string { return t.Prefix + "webhooks.backfill" }

// Replays is the compacted topic of requests to replay, and of their progress.
func (t Topics) Replays() string { return t.Prefix + "webhooks.replays" }

// Retry holds deliveries that failed and wait for the delay.
func (t Topics) Retry(delay time.Duration) string {
	return t.Prefix + "webhooks.retry." + delay.String()
}

// RetryDelay returns the delay of a retry topic, and false for any other topic.
func (t Topics) RetryDelay(topic string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(topic, t.Prefix+"webhooks.retry.")
	if !ok {
		return 0, false
	}
	delay, err := time.ParseDuration(text)
	return delay, err == nil && delay > 0 && topic == t.Retry(delay)
}

// Position is a place in a topic.
type Position struct {
	Partition int32
	Offset    int64
}

// String is the form used in records: "3/1234".
func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Partition, p.Offset) }

// ParsePosition reads what String wrote.
func ParsePosition(s string) (Position, error) {
	partition, offset, ok := strings.Cut(s, "/")
	p, err := strconv.ParseInt(partition, 10, 32)
	o, err2 := strconv.ParseInt(offset, 10, 64)
	if !ok || err != nil || err2 != nil || p < 0 || o < 0 {
		return Position{}, fmt.Errorf("position %.40q: want PARTITION/OFFSET", s)
	}
	return Position{int32(p), o}, nil
}
