package webhook

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Delivery is one event on its way to one subscription. As a record its value
// is the request's body, byte for byte; everything else is in headers, so that
// the sender neither decodes nor encodes a payload.
type Delivery struct {
	ID             string
	SubscriptionID string
	EventType      string
	// Origin says what made the delivery: empty for the router, which sends an
	// event as it happens; else one of the words below, a colon and an id.
	Origin string
	// Event is where the event stands in the log. A test has none.
	Event Position
	// Subscription is where the record of the subscription stands that it was
	// made from.
	Subscription Position
	// Attempt counts the attempts, this one included: 1, 2, 3 …
	Attempt int
	// NotBefore is when this attempt is due; zero for the first.
	NotBefore time.Time
	// History tells of the attempts so far, the oldest first.
	History []PastAttempt
	// Body is the request's body, the same on every attempt.
	Body []byte
}

// PastAttempt is an attempt as a waiting delivery and a dead letter remember it.
type PastAttempt struct {
	Attempt   int       `json:"attempt"`
	At        time.Time `json:"at"`
	Status    int       `json:"status,omitempty"`
	Error     string    `json:"error,omitempty"`
	LatencyMS float64   `json:"latency_ms"`
}

// What an Origin begins with.
const (
	OriginReplay = "replay" // a range of the log, sent again
	OriginResend = "resend" // one delivery, sent again
	OriginTest   = "test"   // an example
)

// OriginOf returns the Origin of a kind with an id.
func OriginOf(kind, id string) string { return kind + ":" + id }

// Replay returns the id of the replay that made the delivery, or "".
func (d *Delivery) Replay() string { return d.origin(OriginReplay) }

// Test says whether the delivery is an example.
func (d *Delivery) Test() bool { return d.origin(OriginTest) != "" }

func (d *Delivery) origin(kind string) string {
	id, ok := strings.CutPrefix(d.Origin, kind+":")
	if !ok {
		return ""
	}
	return id
}

const (
	headerOrigin       = "origin"
	headerDelivery     = "delivery_id"
	headerEventType    = "event_type"
	headerEvent        = "event_position"
	headerSubscription = "subscription_position"
	headerAttempt      = "attempt"
	headerNotBefore    = "not_before"
	headerHistory      = "history"
)

// DeliveryID derives the id of the delivery of an event to a subscription. It
// is the same whenever and by whomever it is computed, so that routing an event
// again cannot make a second delivery; each replay or resend, which has an
// origin of its own, makes another. It has the form of a UUID version 4, as
// receivers were promised.
func DeliveryID(eventID, subscriptionID, origin string) string {
	name := "delivery\x00" + eventID + "\x00" + subscriptionID
	if origin != "" {
		name += "\x00" + origin
	}
	sum := sha256.Sum256([]byte(name))
	var id uuid.UUID
	copy(id[:], sum[:16])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// Encode returns the delivery as a record for a topic of deliveries.
func (d *Delivery) Encode(topic string) (*kgo.Record, error) {
	headers := make([]kgo.RecordHeader, 0, 8)
	headers = append(headers,
		kgo.RecordHeader{Key: headerDelivery, Value: []byte(d.ID)},
		kgo.RecordHeader{Key: headerEventType, Value: []byte(d.EventType)},
		kgo.RecordHeader{Key: headerSubscription, Value: []byte(d.Subscription.String())},
	)
	if !d.Test() {
		headers = append(headers, kgo.RecordHeader{Key: headerEvent, Value: []byte(d.Event.String())})
	}
	if d.Origin != "" {
		headers = append(headers, kgo.RecordHeader{Key: headerOrigin, Value: []byte(d.Origin)})
	}
	if d.Attempt > 1 || len(d.History) > 0 {
		history, err := json.Marshal(d.History)
		if err != nil {
			return nil, fmt.Errorf("encode history of delivery %s: %w", d.ID, err)
		}
		headers = append(headers,
			kgo.RecordHeader{Key: headerAttempt, Value: strconv.AppendInt(nil, int64(d.Attempt), 10)},
			kgo.RecordHeader{Key: headerNotBefore, Value: strconv.AppendInt(nil, d.NotBefore.UnixMilli(), 10)},
			kgo.RecordHeader{Key: headerHistory, Value: history},
		)
	}
	return &kgo.Record{Topic: topic, Key: []byte(d.SubscriptionID), Value: d.Body, Headers: headers}, nil
}

// ParseDelivery reads a record of a topic of deliveries. The body is not
// copied.
func ParseDelivery(r *kgo.Record) (*Delivery, error) {
	d := &Delivery{SubscriptionID: string(r.Key), Body: r.Value, Attempt: 1}
	var err error
	fail := func(e error) {
		if err == nil {
			err = e
		}
	}
	var hasEvent, hasSubscription bool
	for _, h := range r.Headers {
		var e error
		switch h.Key {
		case headerDelivery:
			d.ID = string(h.Value)
		case headerEventType:
			d.EventType = string(h.Value)
		case headerOrigin:
			d.Origin = string(h.Value)
		case headerEvent:
			d.Event, e = ParsePosition(string(h.Value))
			hasEvent = true
		case headerSubscription:
			d.Subscription, e = ParsePosition(string(h.Value))
			hasSubscription = true
		case headerAttempt:
			if d.Attempt, e = strconv.Atoi(string(h.Value)); e == nil && d.Attempt < 1 {
				e = errors.New("header attempt: less than 1")
			}
		case headerNotBefore:
			var ms int64
			ms, e = strconv.ParseInt(string(h.Value), 10, 64)
			d.NotBefore = time.UnixMilli(ms)
		case headerHistory:
			e = json.Unmarshal(h.Value, &d.History)
		}
		if e != nil {
			fail(fmt.Errorf("header %s: %w", h.Key, e))
		}
	}
	switch {
	case err != nil:
	case len(d.ID) != len(idPlaceholder) || uuid.Validate(d.ID) != nil: // not its other forms
		fail(errors.New("header delivery_id is not a UUID"))
	case d.SubscriptionID == "" || d.EventType == "" || !hasEvent && !d.Test() || !hasSubscription:
		fail(errors.New("the key and the headers event_type, event_position and subscription_position are required"))
	case len(d.Body) == 0:
		fail(errors.New("the body is empty"))
	}
	if err != nil {
		return nil, fmt.Errorf("delivery: %w", err)
	}
	return d, nil
}
