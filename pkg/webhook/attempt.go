package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// How an attempt, and with all but Failed the delivery, ended.
const (
	Delivered = "delivered" // answered 2xx in time
	Failed    = "failed"    // to be tried again
	Dead      = "dead"      // failed for the last time; now a dead letter
	Discarded = "discarded" // not sent: the subscription was disabled or deleted
)

// Attempt is a record of the attempts topic, keyed by subscription id: what
// became of one attempt at a delivery. Redis's marks and the delivery status
// are made from these alone.
type Attempt struct {
	DeliveryID     string    `json:"delivery_id"`
	SubscriptionID string    `json:"subscription_id"`
	EventType      string    `json:"event_type"`
	Origin         string    `json:"origin,omitzero"`         // as the delivery's
	EventPosition  string    `json:"event_position,omitzero"` // a test has none
	Attempt        int       `json:"attempt"`
	At             time.Time `json:"at"` // when it began
	Outcome        string    `json:"outcome"`
	Status         int       `json:"status,omitzero"` // of the answer, if there was one
	Error          string    `json:"error,omitzero"`  // the class of the failure, or why it was discarded
	LatencyMS      float64   `json:"latency_ms"`
	// Answer is the beginning of the answer's body, at most 1 KiB, made valid
	// UTF-8.
	Answer string `json:"answer,omitzero"`
	// NextAttemptAt is when the next attempt is due; failed attempts only.
	NextAttemptAt *time.Time `json:"next_attempt_at,omitzero"`
	// Disable asks the appointment service, which alone writes subscriptions, to
	// disable this one.
	Disable *Disable `json:"disable,omitzero"`
}

// Why a subscription is to be disabled, or was.
const (
	DisabledGone      = "gone"       // its endpoint answered a last attempt with 410
	DisabledNoSuccess = "no_success" // nothing has succeeded for too long
)

// Disable asks for a subscription to be disabled. It is granted if the
// subscription is still what the sender saw.
type Disable struct {
	Reason  string `json:"reason"`  // DisabledGone or DisabledNoSuccess
	Version int    `json:"version"` // of the subscription
}

// ParseAttempt reads the value of a record of the attempts topic.
func ParseAttempt(value []byte) (*Attempt, error) {
	var a Attempt
	if err := json.Unmarshal(value, &a); err != nil {
		return nil, fmt.Errorf("attempt: %w", err)
	}
	if a.DeliveryID == "" || a.SubscriptionID == "" || a.Attempt < 1 || a.Outcome == "" {
		return nil, errors.New("attempt: delivery_id, subscription_id, attempt and outcome are required")
	}
	return &a, nil
}

// Why a record became a dead letter.
const (
	ReasonExhausted  = "exhausted"  // every attempt failed
	ReasonUnreadable = "unreadable" // the record itself could not be read, or projected
)

// DeadLetter is a record of the dead-letters topic, keyed by subscription id
// where there is one.
type DeadLetter struct {
	Reason string    `json:"reason"`
	Error  string    `json:"error"`
	At     time.Time `json:"at"`
	// Source is where the record stood that ended here.
	Source Source `json:"source"`
	// Delivery is set when a delivery was given up.
	Delivery *DeadDelivery `json:"delivery,omitzero"`
	// Record is set when a record could not be read; it is kept as it was.
	Record *RawRecord `json:"record,omitzero"`
}

// Source is a place on any topic.
type Source struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// DeadDelivery is a delivery that was given up, with its history.
type DeadDelivery struct {
	DeliveryID     string        `json:"delivery_id"`
	SubscriptionID string        `json:"subscription_id"`
	EventType      string        `json:"event_type"`
	Origin         string        `json:"origin,omitzero"`
	EventPosition  string        `json:"event_position,omitzero"`
	Body           string        `json:"body"`
	Attempts       []PastAttempt `json:"attempts"`
}

// RawRecord is a record as it was found; bytes are base64 in JSON.
type RawRecord struct {
	Key     []byte            `json:"key,omitzero"`
	Value   []byte            `json:"value,omitzero"`
	Headers map[string][]byte `json:"headers,omitzero"`
}
