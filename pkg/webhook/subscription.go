package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Subscription is a record of the compacted subscriptions topic, keyed by ID.
type Subscription struct {
	ID        string `json:"id"`         // "webhook_subscription:<uuid>"
	EventName string `json:"event_name"` // a type of event, or a wildcard such as "appointment.*"
	TargetURL string `json:"target_url"`
	Enabled   bool   `json:"enabled"`
	// Secret is sealed; only the sender and the service that wrote it can open it.
	Secret    string    `json:"secret"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedBy string    `json:"updated_by"`
	Version   int       `json:"version"` // 1, 2, 3 …
	// RateLimit bounds the requests to the endpoint; nil does not.
	RateLimit *RateLimit `json:"rate_limit,omitempty"`
	// Disabled says why and when the system disabled it; nil if it did not, or if
	// it has been enabled since.
	Disabled *Disabled `json:"disabled,omitempty"`
	// Deleted is set from the deletion until every router has passed it; then
	// the record itself goes.
	Deleted bool `json:"deleted,omitempty"`
	// Rules say which events match, oldest first; the last is today's. Earlier
	// ones are kept until every event they concern has been routed.
	Rules []Rule `json:"rules"`
	// Key is the Idempotency-Key that it was made with, for as long as a repeat
	// is to be answered as the first was.
	Key *Key `json:"key,omitempty"`
}

// MaxRate is the largest number in a RateLimit.
const MaxRate = 10_000

// RateLimit is how many requests an endpoint takes, from all senders together.
type RateLimit struct {
	PerSecond int `json:"per_second"` // between 1 and MaxRate
	// Burst is how many may go out at once after a pause; between 1 and MaxRate.
	Burst int `json:"burst"`
}

// Disabled says that the system disabled a subscription.
type Disabled struct {
	Reason string    `json:"reason"` // DisabledGone or DisabledNoSuccess
	At     time.Time `json:"at"`
}

// Rule is what a subscription matches from a position of the event log on.
type Rule struct {
	// From holds, by partition of the event log, the first offset concerned.
	From      []int64 `json:"from"`
	EventName string  `json:"event_name"`
	Active    bool    `json:"active"`
}

// Key remembers that a command with this Idempotency-Key made the subscription,
// and what it was then.
type Key struct {
	Fingerprint string    `json:"fingerprint"`
	At          time.Time `json:"at"`
	EventName   string    `json:"event_name"`
	TargetURL   string    `json:"target_url"`
	Enabled     bool      `json:"enabled"`

	RateLimit *RateLimit `json:"rate_limit,omitempty"`
}

// Matches says whether the event of that type at that position of the log
// concerns the subscription. It depends on the position alone, not on when it
// is asked, as long as the rules of that position are kept.
func (s *Subscription) Matches(eventType string, at Position) bool {
	for _, r := range slices.Backward(s.Rules) {
		if r.from(at.Partition) <= at.Offset {
			return r.Active && NameMatches(r.EventName, eventType)
		}
	}
	return false
}

func (r Rule) from(partition int32) int64 {
	if int(partition) < len(r.From) {
		return r.From[partition]
	}
	return 0
}

// Prune drops the rules that no event still to be routed can need. routed
// holds, by partition, the first offset that is not routed yet.
func (s *Subscription) Prune(routed []int64) {
	for len(s.Rules) > 1 && passed(s.Rules[1], routed) {
		s.Rules = s.Rules[1:]
	}
}

// Gone says whether a deleted subscription's record can go: every event up to
// the deletion has been routed.
func (s *Subscription) Gone(routed []int64) bool {
	return s.Deleted && passed(s.Rules[len(s.Rules)-1], routed)
}

func passed(next Rule, routed []int64) bool {
	for p, from := range next.From {
		if from > 0 && (p >= len(routed) || routed[p] < from) {
			return false
		}
	}
	return true
}

// NameMatches says whether an event name of a subscription, which may end in
// ".*", covers a type of event.
func NameMatches(name, eventType string) bool {
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		return strings.HasPrefix(eventType, prefix)
	}
	return name == eventType
}

// ParseSubscription reads the value of a record of the subscriptions topic.
func ParseSubscription(key, value []byte) (*Subscription, error) {
	var s Subscription
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("subscription: %w", err)
	}
	switch {
	case s.ID == "" || s.ID != string(key):
		return nil, errors.New("subscription: the id is not the record's key")
	case s.EventName == "" || s.TargetURL == "" || s.Version < 1 || len(s.Rules) == 0:
		return nil, errors.New("subscription: event_name, target_url, version and rules are required")
	}
	return &s, nil
}

// Registered is a subscription and the position of the record that says so.
type Registered struct {
	Subscription *Subscription
	At           Position
}
