package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type senderCmd struct {
	Deliveries int    `default:"100000" help:"Deliveries on the topic."`
	Endpoints  int    `default:"1" help:"Subscriptions that they are spread over."`
	Rounds     int    `default:"5" help:"Rounds; each with topics of its own."`
	Profile    string `help:"Write a CPU profile of the sending here."`
}

// Run measures the floor and the sender in turn.
func (c *senderCmd) Run(ctx context.Context) error {
	url, stopSink, err := startSink(ctx)
	if err != nil {
		return err
	}
	defer stopSink()
	var floors, rates, cpus, ratios []float64
	for round := range c.Rounds {
		// A machine's speed may drift: half of the floor is measured before, half after.
		before, cpuBefore, err := floor(ctx, url, exampleBody(), c.Deliveries/2, 64)
		if err != nil {
			return err
		}
		rate, cpu, err := c.round(ctx, url)
		if err != nil {
			return err
		}
		after, cpuAfter, err := floor(ctx, url, exampleBody(), c.Deliveries/2, 64)
		if err != nil {
			return err
		}
		f, floorCPU := 2/(1/before+1/after), (cpuBefore+cpuAfter)/2
		fmt.Printf("round %d: floor %.0f/s, %.3f CPU-s/1000; sender %.0f/s, %.3f CPU-s/1000, ratio %.2f, peak RSS so far %.0f MiB\n",
			round+1, f, floorCPU, rate, cpu, rate/f, peakRSS())
		floors, rates, cpus, ratios = append(floors, f), append(rates, rate), append(cpus, cpu), append(ratios, rate/f)
	}
	fmt.Printf("median of %d: floor %.0f/s; sender %.0f/s, %.3f CPU-s/1000, %.2f of the floor\n",
		c.Rounds, median(floors), median(rates), median(cpus), median(ratios))
	return nil
}

func (c *senderCmd) round(ctx context.Context, url string) (perSecond, cpu float64, err error) {
	w, err := newWorld(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer w.close()
	subs, err := w.subscribe(ctx, c.Endpoints, "appointment.*", url)
	if err != nil {
		return 0, 0, err
	}
	if err := w.produce(ctx, deliveries(w, subs, c.Deliveries)); err != nil {
		return 0, 0, err
	}
	before, err := arrived(ctx, url, "/")
	if err != nil {
		return 0, 0, err
	}
	s, err := senderService(w)
	if err != nil {
		return 0, 0, err
	}
	if c.Profile != "" {
		f, err := os.Create(c.Profile)
		if err != nil {
			return 0, 0, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return 0, 0, err
		}
		defer pprof.StopCPUProfile()
	}
	resetPeak()
	stop := serve(ctx, s, w.env())
	// From the first attempt on: joining the group is not sending.
	delivered := func() int { return w.counter("webhooks_delivery_attempts_total", nil) }
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	first := 0
	if err := await(limit, time.Millisecond, func() (bool, error) { first = delivered(); return first > 0, nil }); err != nil {
		return 0, 0, err
	}
	began := used()
	// Until then the sink is asked: gathering all metrics each time was 4 % of what is
	// measured.
	if err := await(limit, 20*time.Millisecond, func() (bool, error) {
		n, err := arrived(limit, url, "/")
		return n-before >= c.Deliveries, err
	}); err != nil {
		return 0, 0, fmt.Errorf("%d of %d delivered: %w", delivered(), c.Deliveries, err)
	}
	if err := await(limit, time.Millisecond, func() (bool, error) { return delivered() >= c.Deliveries, nil }); err != nil {
		return 0, 0, fmt.Errorf("%d have arrived and %d are counted: %w", c.Deliveries, delivered(), err)
	}
	perSecond, cpu = began.rate(c.Deliveries - first)
	fmt.Printf("%d of them were parked first\n", w.counter("webhooks_deliveries_parked_total", nil))
	if err := stop(); err != nil {
		return 0, 0, err
	}
	after, err := arrived(ctx, url, "/")
	if err == nil && after-before != c.Deliveries {
		err = fmt.Errorf("%d requests arrived for %d deliveries", after-before, c.Deliveries)
	}
	return perSecond, cpu, err
}

// arrived returns how many requests the sink has answered at a path.
func arrived(ctx context.Context, sink, path string) (int, error) {
	page, err := fetch(ctx, sink+"/count?path="+path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(page))
}

// senderService is the service with the defaults of its settings.
func senderService(w *world) (*app.Sender, error) {
	if !onReal() {
		conf := app.EmbeddedConfig{Kafka: w.conf, RedisURL: w.redisURL, SealingKeys: sealingKey}
		err := errors.Join(kong.ApplyDefaults(&conf.Retries), kong.ApplyDefaults(&conf.Sending))
		return app.NewEmbedded(conf).Sender, err
	}
	s := &app.Sender{}
	return s, parse(s, "webhook-sender", w, "--redis-url="+w.redisURL, "--sealing-keys="+sealingKey, "--allow-networks=127.0.0.0/8")
}

// parse gives a service its settings.
func parse(p run.Program, name string, w *world, args ...string) error {
	parser, err := kong.New(p, run.Options(name, "")...)
	if err != nil {
		return err
	}
	_, err = parser.Parse(append([]string{
		"--kafka-brokers=" + strings.Join(w.conf.Brokers, ","), "--topic-prefix=" + w.conf.TopicPrefix,
	}, args...))
	return err
}

// deliveries makes records that are spread evenly over the subscriptions.
func deliveries(w *world, subs []*webhook.Subscription, n int) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = delivery(w, subs[i%len(subs)].ID, event(i))
	}
	return records
}

// delivery returns the record of a delivery of the event to the subscription.
func delivery(w *world, sub string, e events.Event) *kgo.Record {
	payload, err := webhook.Render(e)
	if err != nil {
		panic(err) // it is ours
	}
	id := uuid.NewString()
	d := webhook.Delivery{
		ID: id, SubscriptionID: sub, Subscription: w.at[sub], EventType: e.Type, Attempt: 1, Body: payload.Body(id),
	}
	rec, err := d.Encode(w.topics.Deliveries())
	if err != nil {
		panic(err)
	}
	return rec
}

func exampleBody() []byte {
	payload, err := webhook.Render(event(1))
	if err != nil {
		panic(err) // it is ours
	}
	return payload.Body(uuid.NewString())
}
