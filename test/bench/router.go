package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

type routerCmd struct {
	Events        int `default:"50000" help:"Events on the log."`
	Subscriptions int `default:"10" help:"Subscriptions that exist."`
	Matching      int `default:"1" help:"Subscriptions that match each event; the others are for another one."`
	Rounds        int `default:"5" help:"Rounds; each with topics of its own."`
	Latency       int `default:"0" help:"Measure this many events one by one instead: from an event's commit to its delivery's being readable."`
}

// Run measures the floor and the router in turn.
func (c *routerCmd) Run(ctx context.Context) error {
	var floors, rates, cpus, ratios []float64
	for round := range c.Rounds {
		w, err := newWorld(ctx)
		if err != nil {
			return err
		}
		if c.Latency > 0 {
			err := c.latency(ctx, w)
			w.close()
			if err != nil {
				return err
			}
			continue
		}
		f, r, cpu, memory, err := c.round(ctx, w)
		w.close()
		if err != nil {
			return err
		}
		fmt.Printf("round %d: floor %.0f records/s; router %.0f events/s, %.0f deliveries/s, %.3f CPU-s/1000 deliveries, %.2f of the floor; table %.0f MiB\n",
			round+1, f, r, r*float64(c.Matching), cpu, r*float64(c.Matching)/f, memory)
		floors, rates, cpus, ratios = append(floors, f), append(rates, r), append(cpus, cpu), append(ratios, r*float64(c.Matching)/f)
	}
	if c.Latency == 0 {
		fmt.Printf("median of %d: floor %.0f records/s; router %.0f events/s, %.0f deliveries/s, %.3f CPU-s/1000 deliveries, %.2f of the floor\n",
			c.Rounds, median(floors), median(rates), median(rates)*float64(c.Matching), median(cpus), median(ratios))
	}
	return nil
}

func (c *routerCmd) subscribe(ctx context.Context, w *world) error {
	if _, err := w.subscribe(ctx, c.Matching, events.Created, "http://localhost/"); err != nil {
		return err
	}
	_, err := w.subscribe(ctx, c.Subscriptions-c.Matching, events.Confirmed, "http://localhost/")
	return err
}

// round returns records/s of the floor, events/s of the router, its processor
// seconds per 1000 deliveries, and the memory that the table took.
func (c *routerCmd) round(ctx context.Context, w *world) (bare, rate, cpu, memory float64, err error) {
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := c.subscribe(limit, w); err != nil {
		return 0, 0, 0, 0, err
	}
	records := make([]*kgo.Record, c.Events)
	for i := range records {
		if records[i], err = event(i).Encode(w.topics.Events()); err != nil {
			return 0, 0, 0, 0, err
		}
	}
	if err := w.produce(limit, records); err != nil {
		return 0, 0, 0, 0, err
	}
	if bare, err = bareLoop(limit, w, c.Events); err != nil {
		return 0, 0, 0, 0, err
	}
	r := &app.Router{}
	if err := parse(r, "webhook-router", w, "--instance-id=bench"); err != nil {
		return 0, 0, 0, 0, err
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	env := w.env()
	stop := serve(limit, r, env)
	if err := await(limit, time.Millisecond, func() (bool, error) { return w.counter("webhooks_router_events_total", nil) > 0, nil }); err != nil {
		return 0, 0, 0, 0, err
	}
	first := w.counter("webhooks_router_events_total", nil)
	began := used()
	err = await(limit, 5*time.Millisecond, func() (bool, error) {
		return w.passed(limit, w.conf.TopicPrefix+"webhook-router", w.topics.Events(), c.Events)
	})
	if err != nil {
		return 0, 0, 0, 0, fmt.Errorf("routed %d of %d: %w", w.counter("webhooks_router_events_total", nil), c.Events, err)
	}
	rate, perThousandEvents := began.rate(c.Events - first)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err := stop(); err != nil {
		return 0, 0, 0, 0, err
	}
	memory = (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / (1 << 20)
	return bare, rate, perThousandEvents / float64(c.Matching), memory, nil
}

// passed says whether a group has committed n records of a topic.
func (w *world) passed(ctx context.Context, group, topic string, n int) (bool, error) {
	committed, err := w.adm.FetchOffsets(ctx, group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	total := 0
	committed.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topic && o.Err == nil {
			total += int(max(o.At, 0))
		}
	})
	return total >= n, nil
}

// bareLoop consumes the events and produces each record once more, in
// transactions, and does nothing else.
func bareLoop(ctx context.Context, w *world, n int) (float64, error) {
	opts, err := w.conf.Options(w.env().Log)
	if err != nil {
		return 0, err
	}
	out := w.conf.TopicPrefix + "bare"
	if _, err := w.adm.CreateTopic(ctx, partitions, -1, nil, out); err != nil {
		return 0, err
	}
	s, err := kgo.NewGroupTransactSession(append(opts,
		kgo.TransactionalID(w.conf.TopicPrefix+"bare"), kgo.ConsumerGroup(w.conf.TopicPrefix+"bare"), kgo.ConsumeTopics(w.topics.Events()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
	)...)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var began usage
	done, first := 0, 0
	for done < n {
		fetches := s.PollRecords(ctx, 1000)
		if err := fetches.Err0(); err != nil {
			return 0, err
		}
		if done == 0 {
			began, first = used(), fetches.NumRecords()
		}
		if err := s.Begin(); err != nil {
			return 0, err
		}
		var sent kgo.FirstErrPromise
		fetches.EachRecord(func(r *kgo.Record) {
			s.Produce(ctx, &kgo.Record{Topic: out, Key: r.Key, Value: r.Value, Headers: r.Headers}, sent.Promise())
		})
		err := sent.Err()
		if _, endErr := s.End(ctx, kgo.TransactionEndTry(err == nil)); err != nil || endErr != nil {
			return 0, errors.Join(err, endErr)
		}
		done += fetches.NumRecords()
	}
	rate, _ := began.rate(done - first)
	return rate, nil
}

// latency appends events one by one and waits for the delivery of each.
func (c *routerCmd) latency(ctx context.Context, w *world) error {
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := c.subscribe(limit, w); err != nil {
		return err
	}
	r := &app.Router{}
	if err := parse(r, "webhook-router", w, "--instance-id=bench"); err != nil {
		return err
	}
	stop := serve(limit, r, w.env())
	opts, err := w.conf.Options(w.env().Log)
	if err != nil {
		return err
	}
	reader, err := kgo.NewClient(append(opts, kgo.ConsumeTopics(w.topics.Deliveries()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		return err
	}
	defer reader.Close()
	producer, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0))...)
	if err != nil {
		return err
	}
	defer producer.Close()
	var times, floors []time.Duration
	for i := range c.Latency + 20 {
		rec, err := event(i).Encode(w.topics.Events())
		if err != nil {
			return err
		}
		asked := time.Now()
		if err := producer.ProduceSync(limit, rec).FirstErr(); err != nil {
			return err
		}
		committed := time.Now()
		for got := 0; got < c.Matching; {
			fetches := reader.PollFetches(limit)
			if err := fetches.Err0(); err != nil {
				return err
			}
			got += fetches.NumRecords()
		}
		if i >= 20 { // the first ones join, dial and look up
			times, floors = append(times, time.Since(committed)), append(floors, committed.Sub(asked))
		}
	}
	fmt.Printf("commit of an event to its delivery's being readable: p50 %s, p99 %s (one ProduceSync in the same run: p50 %s, p99 %s)\n",
		percentile(times, 50), percentile(times, 99), percentile(floors, 50), percentile(floors, 99))
	return stop()
}
