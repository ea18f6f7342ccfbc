package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type replayCmd struct {
	Events int     `default:"50000" help:"Events on the log, all of which are replayed to a new subscription."`
	Rounds int     `default:"5" help:"Rounds; each with topics of its own."`
	Live   float64 `placeholder:"N" help:"Send the replay, too, and measure what N live events per second take to arrive at ten others without it and meanwhile; one round."`
}

// Run measures the floor and a replay in turn.
func (c *replayCmd) Run(ctx context.Context) error {
	if c.Live > 0 {
		return c.live(ctx)
	}
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
	ends, err := c.past(limit, w)
	if err != nil {
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
	if err := c.ask(limit, w, subs[0], ends); err != nil {
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

// past fills the log and returns where it ends.
func (c *replayCmd) past(ctx context.Context, w *world) (ends []int64, err error) {
	ends = make([]int64, partitions)
	for left := c.Events; left > 0; {
		records := make([]*kgo.Record, min(left, 10_000))
		for i := range records {
			if records[i], err = event(i).Encode(w.topics.Events()); err != nil {
				return nil, err
			}
		}
		if err := w.produce(ctx, records); err != nil {
			return nil, err
		}
		for _, rec := range records {
			ends[rec.Partition] = max(ends[rec.Partition], rec.Offset+1)
		}
		left -= len(records)
	}
	return ends, nil
}

// ask asks for a replay of the log up to there to a subscription.
func (c *replayCmd) ask(ctx context.Context, w *world, sub *webhook.Subscription, ends []int64) error {
	request := &webhook.ReplayRequest{
		ID: uuid.NewString(), SubscriptionID: sub.ID, Source: webhook.SourceEvents, EventNames: []string{events.Created},
		From: make([]int64, partitions), To: ends, Total: int64(c.Events), CreatedAt: time.Now().UTC(), CreatedBy: "bench",
	}
	asked, err := request.Encode(w.topics.Replays())
	if err != nil {
		return err
	}
	return w.produce(ctx, []*kgo.Record{asked})
}

// live measures what live deliveries take, from their events' being appended to
// their arrival, without a replay and while one is made and sent as fast as it
// goes.
func (c *replayCmd) live(ctx context.Context) error {
	sink, stopSink, err := startSink(ctx)
	if err != nil {
		return err
	}
	defer stopSink()
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	ends, err := c.past(ctx, w)
	if err != nil {
		return err
	}
	if _, err := w.subscribe(ctx, 10, events.Cancelled, sink+"/timed"); err != nil {
		return err
	}
	late, err := w.subscribe(ctx, 1, events.Confirmed, sink+"/")
	if err != nil {
		return err
	}
	r := &app.Router{}
	if err := parse(r, "webhook-router", w, "--instance-id=bench"); err != nil {
		return err
	}
	s, err := senderService(w)
	if err != nil {
		return err
	}
	routing, sending := w.env(), w.env()
	stopRouter, stopSender := serve(ctx, r, routing), serve(ctx, s, sending)
	err = await(ctx, 10*time.Millisecond, func() (bool, error) {
		ready := len(routing.Health.Problems()) == 0 && len(sending.Health.Problems()) == 0
		if !ready {
			return false, nil
		}
		return w.passed(ctx, w.conf.TopicPrefix+"webhook-router", w.topics.Events(), c.Events)
	})
	if err != nil {
		return err
	}
	quiet, err := c.liveFor(ctx, w, sink, 20*time.Second)
	if err != nil {
		return err
	}
	resetPeak()
	if err := c.ask(ctx, w, late[0], ends); err != nil {
		return err
	}
	began := time.Now()
	var busy []time.Duration
	var took time.Duration
	done := make(chan error, 1)
	go func() {
		done <- await(ctx, 50*time.Millisecond, func() (bool, error) {
			n, err := arrived(ctx, sink, "/")
			took = time.Since(began)
			return n >= c.Events, err
		})
	}()
	for ended := false; !ended; {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			ended = true
		default:
			times, err := c.liveFor(ctx, w, sink, 5*time.Second)
			if err != nil {
				return err
			}
			busy = append(busy, times...)
		}
	}
	fmt.Printf("%d events replayed to their arrival in %s, %.0f/s; live at %.0f events/s to ten each: p50 %s, p99 %s without, p50 %s, p99 %s meanwhile; peak RSS %.0f MiB\n",
		c.Events, took.Round(100*time.Millisecond), float64(c.Events)/took.Seconds(), c.Live,
		percentile(quiet, 50), percentile(quiet, 99), percentile(busy, 50), percentile(busy, 99), peakRSS())
	return errors.Join(stopRouter(), stopSender())
}

// liveFor appends live events and returns how long their first webhooks took.
func (c *replayCmd) liveFor(ctx context.Context, w *world, sink string, d time.Duration) ([]time.Duration, error) {
	pace := latencyCmd{Rate: c.Live, For: d}
	sent, err := sendAt(ctx, w, pace, func(i int) (*kgo.Record, string) {
		e := event(i)
		e.Type = events.Cancelled
		rec, err := e.Encode(w.topics.Events())
		if err != nil {
			panic(err) // it is ours
		}
		return rec, e.Data.AppointmentID
	})
	if err != nil {
		return nil, err
	}
	return collect(ctx, sink, sent)
}
