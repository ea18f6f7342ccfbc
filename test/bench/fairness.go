package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type fairnessCmd struct {
	Rate      float64       `default:"120" help:"Deliveries per second, round robin over the endpoints."`
	For       time.Duration `default:"60s" help:"How long each run takes."`
	Endpoints int           `default:"10" help:"Endpoints; the last is the troublesome one."`
	Trouble   []string      `default:"hang,trickle,fail,backlog" enum:"hang,trickle,fail,backlog" help:"What is wrong with the last one: it hangs, answers at a byte per second, fails at once, or has a backlog while it hangs."`
	Backlog   int           `default:"1000000" help:"Deliveries that wait for the last endpoint when the run begins; for backlog."`
}

// Run measures how long the other endpoints' deliveries take beside each kind of
// trouble, and without any.
func (c *fairnessCmd) Run(ctx context.Context) error {
	for _, trouble := range append([]string{"none"}, c.Trouble...) {
		if err := c.run(ctx, trouble); err != nil {
			return fmt.Errorf("%s: %w", trouble, err)
		}
	}
	return nil
}

func (c *fairnessCmd) run(ctx context.Context, trouble string) error {
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
	subs, err := w.subscribe(ctx, c.Endpoints-1, "appointment.*", sink+"/timed")
	if err != nil {
		return err
	}
	path := map[string]string{"none": "/timed", "backlog": "/hang"}[trouble]
	if path == "" {
		path = "/" + trouble
	}
	last, err := w.subscribe(ctx, 1, "appointment.*", sink+path)
	if err != nil {
		return err
	}
	if trouble == "backlog" {
		for left := c.Backlog; left > 0; left -= 10_000 {
			if err := w.produce(ctx, deliveries(w, last, min(left, 10_000))); err != nil {
				return err
			}
		}
	}
	s, err := senderService(w)
	if err != nil {
		return err
	}
	env := w.env()
	stop := serve(ctx, s, env)
	if err := await(ctx, 10*time.Millisecond, func() (bool, error) { return len(env.Health.Problems()) == 0, nil }); err != nil {
		return err
	}
	if trouble == "backlog" {
		began := time.Now()
		if err := await(ctx, 50*time.Millisecond, func() (bool, error) {
			return w.counter("webhooks_deliveries_parked_total", nil) > c.Backlog*99/100, nil
		}); err != nil {
			return err
		}
		fmt.Printf("%d of a backlog of %d are parked after %s\n", w.counter("webhooks_deliveries_parked_total", nil), c.Backlog, time.Since(began).Round(time.Millisecond))
	}
	memory := watchMemory(c.For / 5)
	sent, err := c.send(ctx, w, append(subs, last...), trouble == "none")
	sizes := memory()
	if err != nil {
		return err
	}
	times, err := collect(ctx, sink, sent)
	if err != nil {
		return err
	}
	fmt.Printf("%-8s %d deliveries to the others at %.0f/s in all: p50 %s, p99 %s, max %s; %d parked; MiB of memory after each fifth: %.0f\n", trouble, len(times), c.Rate,
		percentile(times, 50), percentile(times, 99), percentile(times, 100), w.counter("webhooks_deliveries_parked_total", nil), sizes)
	return stop()
}

// measure returns how long deliveries to well endpoints take.
func (c *fairnessCmd) measure(ctx context.Context, w *world, subs []*webhook.Subscription, sink string) ([]time.Duration, error) {
	sent, err := c.send(ctx, w, subs, true)
	if err != nil {
		return nil, err
	}
	return collect(ctx, sink, sent)
}

// send appends deliveries at the rate and returns when those were appended that
// are to arrive.
func (c *fairnessCmd) send(ctx context.Context, w *world, subs []*webhook.Subscription, all bool) (map[string]time.Time, error) {
	return sendAt(ctx, w, latencyCmd{Rate: c.Rate, For: c.For}, func(i int) (*kgo.Record, string) {
		e, to := event(i), i%len(subs)
		rec := delivery(w, subs[to].ID, e)
		if !all && to == len(subs)-1 {
			return rec, ""
		}
		return rec, e.Data.AppointmentID
	})
}

// sendAt appends records at a pace, and returns when those were that have an id.
// They are made one by one, so that they take no memory before their time.
func sendAt(ctx context.Context, w *world, pace latencyCmd, made func(i int) (rec *kgo.Record, id string)) (map[string]time.Time, error) {
	opts, err := w.conf.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	producer, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0))...)
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	sent := map[string]time.Time{}
	var mu sync.Mutex
	err = pace.pace(ctx, func(i int) error {
		rec, id := made(i)
		began := time.Now()
		err := producer.ProduceSync(ctx, rec).FirstErr()
		if err == nil && id != "" {
			mu.Lock()
			defer mu.Unlock()
			sent[id] = began
		}
		return err
	})
	return sent, err
}

// appointmentOf returns what tells the deliveries of a run apart.
func appointmentOf(body []byte) (string, error) {
	var b struct {
		Data struct {
			ID string `json:"appointment_id"`
		} `json:"data"`
	}
	err := json.Unmarshal(body, &b)
	return b.Data.ID, err
}

// hang never answers, unless the sink has been told to be well again.
func (s *sink) hang(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.well:
		s.timed(w, r)
	}
}

// trickle answers at a byte per second.
func (s *sink) trickle(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if _, err := w.Write([]byte("x")); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

type recoveryCmd struct {
	Backlog int     `default:"100000" help:"Deliveries that wait for the endpoint when it is well again."`
	Rate    float64 `default:"50" help:"Deliveries per second to ten others meanwhile."`
}

// Run measures how fast an endpoint that was down gets what waits for it, in which
// order, and what others notice of that.
func (c *recoveryCmd) Run(ctx context.Context) error {
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
	others, err := w.subscribe(ctx, 10, "appointment.*", sink+"/timed")
	if err != nil {
		return err
	}
	down, err := w.subscribe(ctx, 1, "appointment.*", sink+"/hang")
	if err != nil {
		return err
	}
	waiting := deliveries(w, down, c.Backlog)
	if err := w.produce(ctx, waiting); err != nil {
		return err
	}
	s, err := senderService(w)
	if err != nil {
		return err
	}
	stop := serve(ctx, s, w.env())
	if err := await(ctx, 50*time.Millisecond, func() (bool, error) {
		return w.counter("webhooks_deliveries_parked_total", nil) > c.Backlog*99/100, nil
	}); err != nil {
		return err
	}
	live := fairnessCmd{Rate: c.Rate, For: 10 * time.Second}
	quiet, err := live.measure(ctx, w, others, sink)
	if err != nil {
		return err
	}
	if _, err := fetch(ctx, sink+"/recover"); err != nil {
		return err
	}
	began := time.Now()
	var drained time.Duration
	done := make(chan error, 1)
	go func() {
		limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		done <- await(limit, 100*time.Millisecond, func() (bool, error) {
			n, err := arrived(limit, sink, "/hang")
			drained = time.Since(began)
			return n >= c.Backlog, err
		})
	}()
	busy, err := live.measure(ctx, w, others, sink)
	if err != nil {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	page, err := fetch(ctx, sink+"/arrivals")
	if err != nil {
		return err
	}
	var arrivals map[string]int64
	if err := json.Unmarshal(page, &arrivals); err != nil {
		return err
	}
	late, err := displaced(waiting, arrivals)
	if err != nil {
		return err
	}
	fmt.Printf("backlog of %d drained in about %s, %.0f/s; half of it is within %d places of its order, 99 %% within %d; others' p50 and p99 before: %s, %s; meanwhile: %s, %s\n",
		c.Backlog, drained.Round(100*time.Millisecond), float64(c.Backlog)/drained.Seconds(), late[len(late)/2], late[len(late)*99/100],
		percentile(quiet, 50), percentile(quiet, 99), percentile(busy, 50), percentile(busy, 99))
	return stop()
}

// displaced returns by how many places each delivery came out of order, the least
// first.
func displaced(records []*kgo.Record, arrivals map[string]int64) ([]int, error) {
	ids := make([]string, len(records))
	for i, r := range records {
		var err error
		if ids[i], err = appointmentOf(r.Value); err != nil {
			return nil, err
		}
	}
	order := slices.Clone(ids)
	slices.SortStableFunc(order, func(a, b string) int { return cmp.Compare(arrivals[a], arrivals[b]) })
	came := make(map[string]int, len(order))
	for place, id := range order {
		came[id] = place
	}
	off := make([]int, len(ids))
	for place, id := range ids {
		off[place] = max(came[id]-place, place-came[id])
	}
	slices.Sort(off)
	return off, nil
}

type rateLimitCmd struct {
	PerSecond int           `default:"50" help:"The subscriptions' rate limit."`
	Endpoints int           `default:"10" help:"Subscriptions, each with the limit."`
	Senders   int           `default:"3" help:"Senders, which share them out."`
	For       time.Duration `default:"20s" help:"How long it is measured, after the first burst."`
}

// Run measures how well several senders keep a rate limit together.
func (c *rateLimitCmd) Run(ctx context.Context) error {
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
	subs, err := w.subscribe(ctx, c.Endpoints, "appointment.*", sink+"/")
	if err != nil {
		return err
	}
	for _, s := range subs {
		s.RateLimit = &webhook.RateLimit{PerSecond: c.PerSecond, Burst: max(c.PerSecond/10, 1)}
	}
	if err := w.put(ctx, subs); err != nil {
		return err
	}
	total := int(c.For.Seconds()+30) * c.PerSecond * c.Endpoints
	if err := w.produce(ctx, deliveries(w, subs, total)); err != nil {
		return err
	}
	var stops []func() error
	defer func() {
		for _, stop := range stops {
			_ = stop() // it has been measured
		}
	}()
	for range c.Senders {
		s, err := senderService(w)
		if err != nil {
			return err
		}
		stops = append(stops, serve(ctx, s, w.env()))
	}
	// The group shares the partitions out at the beginning.
	if err := sleepFor(ctx, 15*time.Second); err != nil {
		return err
	}
	before, err := arrived(ctx, sink, "/")
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleepFor(ctx, c.For); err != nil {
		return err
	}
	after, err := arrived(ctx, sink, "/")
	if err != nil {
		return err
	}
	rate := float64(after-before) / time.Since(began).Seconds() / float64(c.Endpoints)
	fmt.Printf("%d senders, %d endpoints: %.2f requests/s to each on average, %.1f %% off the limit of %d\n",
		c.Senders, c.Endpoints, rate, 100*(rate/float64(c.PerSecond)-1), c.PerSecond)
	return nil
}

func sleepFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
