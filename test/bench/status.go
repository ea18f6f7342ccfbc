package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

type statusCmd struct {
	Deliveries int    `default:"1000000" help:"Deliveries on the log, each with its attempts."`
	Endpoints  int    `default:"100" help:"Subscriptions that they are for."`
	Failing    int    `default:"10" help:"Of a hundred deliveries, how many failed once before they were delivered."`
	Questions  int    `default:"2000" help:"Questions of each kind."`
	Profile    string `help:"Write a CPU profile of the projection to this file."`
}

// Run measures the floor, the projection into an empty Redis, and questions.
func (c *statusCmd) Run(ctx context.Context) error {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	opts, err := redis.ParseURL(w.redisURL)
	if err != nil {
		return err
	}
	db := redis.NewClient(opts)
	defer db.Close()
	defer deleteKeys(db, w.conf.TopicPrefix)
	subs := make([]string, c.Endpoints)
	for i := range subs {
		subs[i] = "webhook_subscription:" + uuid.NewString()
	}
	records, err := c.fill(ctx, w, subs)
	if err != nil {
		return err
	}
	floor, err := c.floor(ctx, w, db, records)
	if err != nil {
		return err
	}
	deleteKeys(db, w.conf.TopicPrefix)
	before := usedMemory(ctx, db)
	p, stop, err := c.project(ctx, w, opts, records, floor)
	if err != nil {
		return err
	}
	if after := usedMemory(ctx, db); after > before {
		fmt.Printf("redis has %.0f MiB more: %.0f bytes for a delivery\n", float64(after-before)/(1<<20), float64(after-before)/float64(c.Deliveries))
	}
	err = c.ask(ctx, p, subs)
	return errors.Join(err, stop(), p.Close())
}

// fill writes deliveries that were made over the last hour, and their attempts.
func (c *statusCmd) fill(ctx context.Context, w *world, subs []string) (records int, err error) {
	begin := time.Now().Add(-time.Hour)
	var batch []*kgo.Record
	for i := range c.Deliveries {
		at := begin.Add(time.Hour * time.Duration(i) / time.Duration(c.Deliveries))
		d := webhook.Delivery{
			ID: uuid.NewString(), SubscriptionID: subs[i%len(subs)], EventType: "appointment.created",
			Event: webhook.Position{Partition: int32(i % partitions), Offset: int64(i / partitions)}, Attempt: 1, Body: []byte(`{"event":"appointment.created"}`),
		}
		r, err := d.Encode(w.topics.Deliveries())
		if err != nil {
			return 0, err
		}
		r.Timestamp = at
		batch = append(batch, r)
		for n := 1; n <= 2; n++ {
			a := webhook.Attempt{
				DeliveryID: d.ID, SubscriptionID: d.SubscriptionID, EventType: d.EventType, EventPosition: d.Event.String(),
				Attempt: n, At: at, Outcome: webhook.Delivered, Status: 200, LatencyMS: 1 + 100*rand.ExpFloat64(),
			}
			if n == 1 && i%100 < c.Failing {
				next := at.Add(time.Second)
				a.Outcome, a.Status, a.Error, a.Answer, a.NextAttemptAt = webhook.Failed, 503, "status", "try again later", &next
			}
			value, err := json.Marshal(a)
			if err != nil {
				return 0, err
			}
			batch = append(batch, &kgo.Record{Topic: w.topics.Attempts(), Key: []byte(d.SubscriptionID), Value: value, Timestamp: at})
			if a.Outcome == webhook.Delivered {
				break
			}
		}
		if len(batch) >= 10_000 || i == c.Deliveries-1 {
			if err := w.produce(ctx, batch); err != nil {
				return 0, err
			}
			records += len(batch)
			batch = batch[:0]
		}
	}
	return records, nil
}

// floor reads the same records and sets one key for each, 256 in a pipeline, and
// does nothing else.
func (c *statusCmd) floor(ctx context.Context, w *world, db *redis.Client, n int) (perSecond float64, err error) {
	opts, err := w.conf.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	client, err := kgo.NewClient(append(opts, kgo.ConsumeTopics(w.topics.Deliveries(), w.topics.Attempts()))...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	value := strings.Repeat("x", 100)
	began, done := used(), 0
	for done < n {
		fetches := client.PollRecords(ctx, 256)
		if err := fetches.Err0(); err != nil {
			return 0, err
		}
		pipe := db.Pipeline()
		fetches.EachRecord(func(r *kgo.Record) {
			pipe.Set(ctx, fmt.Sprintf("%s%s%d/%d", w.conf.TopicPrefix, r.Topic, r.Partition, r.Offset), value, time.Hour)
		})
		if _, err := pipe.Exec(ctx); err != nil {
			return 0, err
		}
		done += fetches.NumRecords()
	}
	perSecond, cpu := began.rate(n)
	fmt.Printf("floor: %d records read and set, %.0f records/s, %.3f CPU-s/1000\n", n, perSecond, cpu)
	return perSecond, nil
}

// project projects all records and leaves the projection running.
func (c *statusCmd) project(ctx context.Context, w *world, opts *redis.Options, n int, floor float64) (*status.Projection, func() error, error) {
	kafka, err := w.conf.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	env := w.env()
	p, err := status.New(status.Config{
		Kafka: kafka, Topics: w.topics, Group: w.conf.TopicPrefix + "status", Redis: opts, Prefix: w.conf.TopicPrefix + "st:",
		Log: env.Log, Metrics: env.Metrics,
	})
	if err != nil {
		return nil, nil, err
	}
	if c.Profile != "" {
		f, err := os.Create(c.Profile)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, nil, err
		}
		defer pprof.StopCPUProfile()
	}
	limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	resetPeak()
	started := time.Now()
	go func() { done <- p.Run(running) }()
	stop := func() error { end(); return <-done }
	projected := func() int { return w.counter("webhooks_status_records_total", nil) }
	first := 0
	if err := await(limit, time.Millisecond, func() (bool, error) { first = projected(); return first > 0, nil }); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	began := used()
	if err := await(limit, 5*time.Millisecond, func() (bool, error) { return projected() >= n, nil }); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%d of %d projected: %w", projected(), n, err), stop())
	}
	perSecond, cpu := began.rate(n - first)
	if err := await(limit, 5*time.Millisecond, func() (bool, error) { behind, err := p.Behind(limit); return behind == 0, err }); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	fmt.Printf("projection: %.0f records/s, %.3f CPU-s/1000, %.2f of the floor, peak memory %.0f MiB; an empty Redis is up to date after %.1f s, joining the group included\n",
		perSecond, cpu, perSecond/floor, peakRSS(), time.Since(started).Seconds())
	return p, stop, nil
}

// ask measures questions, one after the other.
func (c *statusCmd) ask(ctx context.Context, p *status.Projection, subs []string) error {
	var ids []string
	measure := func(name string, question func(i int) error) error {
		times := make([]time.Duration, c.Questions)
		for i := range times {
			began := time.Now()
			if err := question(i); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			times[i] = time.Since(began)
		}
		fmt.Printf("%-28s p50 %s, p99 %s\n", name, percentile(times, 50), percentile(times, 99))
		return nil
	}
	list := func(q status.Query) func(int) error {
		return func(i int) error {
			q.SubscriptionID, q.Limit = subs[i%len(subs)], 50
			page, err := p.Deliveries(ctx, q)
			if err == nil && len(ids) < 10_000 {
				for _, d := range page.Deliveries {
					ids = append(ids, d.ID)
				}
			}
			return err
		}
	}
	return errors.Join(
		measure("list 50", list(status.Query{})),
		measure("list 50 that are delivered", list(status.Query{Status: webhook.Delivered})),
		measure("one with its attempts", func(i int) error { _, _, err := p.Delivery(ctx, ids[i%len(ids)]); return err }),
		measure("stats", func(i int) error { _, err := p.Stats(ctx, subs[i%len(subs)]); return err }),
	)
}

// usedMemory is what Redis says that it uses, in bytes; 0 if it does not say.
func usedMemory(ctx context.Context, db *redis.Client) int64 {
	info, err := db.Info(ctx, "memory").Result()
	if err != nil {
		return 0
	}
	for line := range strings.Lines(info) {
		var n int64
		if found, _ := fmt.Sscanf(line, "used_memory:%d", &n); found == 1 {
			return n
		}
	}
	return 0
}

// deleteKeys deletes what a run has put into Redis.
func deleteKeys(db *redis.Client, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	keys := db.Scan(ctx, 0, prefix+"*", 10_000).Iterator()
	var batch []string
	for keys.Next(ctx) {
		if batch = append(batch, keys.Val()); len(batch) == 1000 {
			_ = db.Unlink(ctx, batch...) // the next run has keys of its own
			batch = batch[:0]
		}
	}
	if len(batch) > 0 {
		_ = db.Unlink(ctx, batch...)
	}
}
