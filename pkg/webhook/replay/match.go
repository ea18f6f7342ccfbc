package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// ErrorCancelled is the error of a delivery that was discarded because its
// replay was cancelled.
const ErrorCancelled = "replay_cancelled"

// rangeOf returns what a request goes through.
func rangeOf(topics webhook.Topics, r *webhook.ReplayRequest) Range {
	topic := topics.Events()
	if r.Source == webhook.SourceAttempts {
		topic = topics.Attempts()
	}
	return Range{topic, r.From, r.To}
}

// candidate is an event that a request may concern.
type candidate struct {
	at webhook.Position
	// record is the event's; nil if it is still to be looked up.
	record *kgo.Record
}

// candidateOf looks at a record of the request's source, without decoding an
// event.
func candidateOf(r *webhook.ReplayRequest, rec *kgo.Record) (candidate, bool) {
	if rec.Attrs.IsControl() {
		return candidate{}, false
	}
	if r.Source == webhook.SourceEvents {
		at := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
		return candidate{at, rec}, concerns(r, rec)
	}
	if string(rec.Key) != r.SubscriptionID {
		return candidate{}, false
	}
	a, err := webhook.ParseAttempt(rec.Value)
	if err != nil || a.EventPosition == "" || a.Error == ErrorCancelled || a.Outcome != webhook.Dead && a.Outcome != webhook.Discarded {
		return candidate{}, false
	}
	at, err := webhook.ParsePosition(a.EventPosition)
	return candidate{at, nil}, err == nil && nameMatches(r.EventNames, a.EventType)
}

// concerns says whether an event's record, as far as its key and headers tell,
// is one that the request asks for and that has a webhook.
func concerns(r *webhook.ReplayRequest, rec *kgo.Record) bool {
	if r.ProviderID != "" && string(rec.Key) != r.ProviderID {
		return false
	}
	kind := events.Type(rec)
	return events.Known(kind) && kind != events.NoShow && nameMatches(r.EventNames, kind)
}

func nameMatches(names []string, eventType string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return webhook.NameMatches(name, eventType) })
}

// Count says how many deliveries a request comes to. It counts until the limit
// or ctx ends, whichever is first, and then estimates the rest from what it has
// seen.
func Count(ctx context.Context, opts []kgo.Opt, topics webhook.Topics, r *webhook.ReplayRequest, limit time.Duration) (n int64, estimated bool, err error) {
	counting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	seen := map[webhook.Position]bool{}
	left, err := scan(counting, opts, func(rec *kgo.Record) bool {
		c, ok := candidateOf(r, rec)
		switch {
		case !ok:
		case c.record == nil: // one event may have ended in several deliveries
			seen[c.at] = true
		default:
			if _, err := events.Decode(rec); err == nil {
				n++
			}
		}
		return true
	}, rangeOf(topics, r))
	n += int64(len(seen))
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return n, false, err
	}
	total := length(r)
	if passed := total - left; passed > 0 {
		n += int64(float64(n) / float64(passed) * float64(left))
	} else {
		n = total
	}
	return n, true, nil
}

// length returns how many offsets a request goes through.
func length(r *webhook.ReplayRequest) int64 {
	var total int64
	for p, from := range r.From {
		total += max(r.To[p]-from, 0)
	}
	return total
}

// Deliver makes the delivery of an event's record to a subscription. Its id
// follows from the two and the origin.
func Deliver(rec *kgo.Record, sub webhook.Registered, origin string) (*webhook.Delivery, error) {
	e, err := events.Decode(rec)
	if err != nil {
		return nil, err
	}
	if !events.Known(e.Type) || e.Type == events.NoShow {
		return nil, fmt.Errorf("%w: its type has no webhook", events.ErrUnreadable)
	}
	payload, err := webhook.Render(e)
	if err != nil {
		return nil, err
	}
	id := webhook.DeliveryID(e.ID, sub.Subscription.ID, origin)
	return &webhook.Delivery{
		ID: id, SubscriptionID: sub.Subscription.ID, EventType: e.Type, Origin: origin,
		Event:        webhook.Position{Partition: rec.Partition, Offset: rec.Offset},
		Subscription: sub.At, Attempt: 1, Body: payload.Body(id),
	}, nil
}
