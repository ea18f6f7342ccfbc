package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type replayCmd struct {
	Events int `default:"50000" help:"Events on the log, all of which are replayed to a new subscription."`
	Rounds int `default:"5" help:"Rounds; each with topics of its own."`
}

// Run measures the floor and a replay in turn.
func (c *replayCmd) Run(ctx context.Context) error {
	var floors, rates, cpus, ratios []float64
	for round := range c.Rounds {
		w, err := newWorld(ctx)
		if err != nil {
			return err
		}
		floor, rate, cpu, err := c.round(ctx, w)
		w.close()
		if err != nil {
			return err
		}
		fmt.Printf("round %d: floor %.0f records/s; replay %.0f events/s, %.3f CPU-s/1000 deliveries, %.2f of the floor\n", round+1, floor, rate, cpu, rate/floor)
		floors, rates, cpus, ratios = append(floors, floor), append(rates, rate), append(cpus, cpu), append(ratios, rate/floor)
	}
	fmt.Printf("median of %d: floor %.0f records/s; replay %.0f events/s, %.3f CPU-s/1000 deliveries, %.2f of the floor\n",
		c.Rounds, median(floors), median(rates), median(cpus), median(ratios))
	return nil
}

// round returns records/s of the floor, events/s of the replay, and its processor
// seconds per 1000 deliveries.
func (c *replayCmd) round(ctx context.Context, w *world) (floor, rate, cpu float64, err error) {
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	records := make([]*kgo.Record, c.Events)
	for i := range records {
		if records[i], err = event(i).Encode(w.topics.Events()); err != nil {
			return 0, 0, 0, err
		}
	}
	if err := w.produce(limit, records); err != nil {
		return 0, 0, 0, err
	}
	if floor, err = bareLoop(limit, w, c.Events); err != nil {
		return 0, 0, 0, err
	}
	// Nothing is routed to it, so that all there is to do is the replay.
	subs, err := w.subscribe(limit, 1, events.Confirmed, "http://localhost/")
	if err != nil {
		return 0, 0, 0, err
	}
	r := &app.Router{}
	if err := parse(r, "webhook-router", w, "--instance-id=bench", "--replay-ahead=1000000000"); err != nil {
		return 0, 0, 0, err
	}
	stop := serve(limit, r, w.env())
	err = await(limit, 5*time.Millisecond, func() (bool, error) {
		return w.passed(limit, w.conf.TopicPrefix+"webhook-router", w.topics.Events(), c.Events)
	})
	if err != nil {
		return 0, 0, 0, fmt.Errorf("route: %w", err)
	}
	request := &webhook.ReplayRequest{
		ID: uuid.NewString(), SubscriptionID: subs[0].ID, Source: webhook.SourceEvents, EventNames: []string{events.Created},
		From: make([]int64, partitions), To: make([]int64, partitions), Total: int64(c.Events), CreatedAt: time.Now().UTC(), CreatedBy: "bench",
	}
	for _, rec := range records {
		request.To[rec.Partition] = max(request.To[rec.Partition], rec.Offset+1)
	}
	asked, err := request.Encode(w.topics.Replays())
	if err != nil {
		return 0, 0, 0, err
	}
	if err := w.produce(limit, []*kgo.Record{asked}); err != nil {
		return 0, 0, 0, err
	}
	made := func() int { return w.counter("webhooks_replay_deliveries_total", nil) }
	if err := await(limit, time.Millisecond, func() (bool, error) { return made() > 0, nil }); err != nil {
		return 0, 0, 0, err
	}
	first, began := made(), used()
	if err := await(limit, time.Millisecond, func() (bool, error) { return made() >= c.Events, nil }); err != nil {
		return 0, 0, 0, fmt.Errorf("replayed %d of %d: %w", made(), c.Events, err)
	}
	rate, cpu = began.rate(c.Events - first)
	return floor, rate, cpu, stop()
}
