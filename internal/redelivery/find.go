package redelivery

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// find returns what is known of a delivery, from who knows it best or else from
// the topics.
func (s *Service) find(ctx context.Context, id string) (webhook.Attempt, error) {
	notFound := refusal(appointment.NotFound, "delivery_not_found", "Delivery not found")
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return webhook.Attempt{}, notFound
	}
	if s.cfg.Deliveries != nil {
		if a, ok, err := s.cfg.Deliveries.Find(ctx, id); err != nil || ok {
			return a, err
		}
	}
	leave, err := place(ctx, s.places, s.cfg.Limit)
	if err != nil {
		return webhook.Attempt{}, err
	}
	defer leave()
	a, ok, err := s.search(ctx, id)
	if err == nil && !ok {
		err = notFound
	}
	return a, err
}

// search goes through the topics that tell of deliveries. It takes as long as
// they are.
func (s *Service) search(ctx context.Context, id string) (found webhook.Attempt, ok bool, err error) {
	t := s.cfg.Topics
	read := map[string]func(*kgo.Record, string) (webhook.Attempt, bool){
		t.Attempts(): ofAttempt, t.DeadLetters(): ofDeadLetter, t.Deliveries(): ofDelivery, t.Backfill(): ofDelivery,
	}
	// Before the time runs: a broker that is away is no long search.
	ranges := make([]replay.Range, 4)
	for i, topic := range []string{t.DeadLetters(), t.Attempts(), t.Deliveries(), t.Backfill()} {
		b, err := s.bounds(ctx, topic)
		if err != nil {
			return found, false, unavailable(err)
		}
		ranges[i] = replay.Range{Topic: topic, From: b.starts, To: b.ends}
	}
	searching, cancel := context.WithTimeout(ctx, s.cfg.Limit)
	defer cancel()
	look := func(ranges []replay.Range) error {
		return replay.Scan(searching, s.cfg.Kafka, func(rec *kgo.Record) bool {
			found, ok = read[rec.Topic](rec, id)
			return !ok
		}, ranges...)
	}
	// Dead letters are kept for longest, are few, and are what is sent again.
	if err = look(ranges[:1]); err == nil && !ok {
		err = look(ranges[1:])
	}
	switch {
	case ok:
		return found, true, nil
	case err != nil && searching.Err() != nil && ctx.Err() == nil:
		// Another search would take as long, unless it is a broker that went away meanwhile.
		return found, false, refusal(appointment.Conflict, "search_too_long", "The delivery was not found in the time that there is for looking, "+
			"and nothing was sent: have the time of its event replayed, or what failed since then recovered")
	case err != nil:
		return found, false, unavailable(err)
	}
	return found, false, nil
}

func ofAttempt(rec *kgo.Record, id string) (webhook.Attempt, bool) {
	if !bytes.Contains(rec.Value, []byte(id)) {
		return webhook.Attempt{}, false
	}
	a, err := webhook.ParseAttempt(rec.Value)
	if err != nil || a.DeliveryID != id {
		return webhook.Attempt{}, false
	}
	return *a, true
}

func ofDeadLetter(rec *kgo.Record, id string) (webhook.Attempt, bool) {
	var letter webhook.DeadLetter
	if !bytes.Contains(rec.Value, []byte(id)) || json.Unmarshal(rec.Value, &letter) != nil ||
		letter.Delivery == nil || letter.Delivery.DeliveryID != id {
		return webhook.Attempt{}, false
	}
	d := letter.Delivery
	return webhook.Attempt{
		DeliveryID: id, SubscriptionID: d.SubscriptionID, EventType: d.EventType, Origin: d.Origin, EventPosition: d.EventPosition,
	}, true
}

func ofDelivery(rec *kgo.Record, id string) (webhook.Attempt, bool) {
	if !bytes.Contains(rec.Value, []byte(id)) { // it is in the body
		return webhook.Attempt{}, false
	}
	d, err := webhook.ParseDelivery(rec)
	if err != nil || d.ID != id {
		return webhook.Attempt{}, false
	}
	a := webhook.Attempt{DeliveryID: id, SubscriptionID: d.SubscriptionID, EventType: d.EventType, Origin: d.Origin}
	if !d.Test() {
		a.EventPosition = d.Event.String()
	}
	return a, true
}
