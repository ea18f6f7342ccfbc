package status_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is one test's Kafka and Redis.
type env struct {
	t      *testing.T
	ctx    context.Context // the test's deadline
	kafka  kafka.Config
	redis  *redis.Options
	client *kgo.Client
	db     *redis.Client
	prefix string
	topics webhook.Topics
}

func newEnv(t *testing.T) *env { return begin(t, testenv.Redis(t)) }

func begin(t *testing.T, opts *redis.Options) *env {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	conf := testenv.Kafka(t, nil)
	e := &env{
		t: t, ctx: ctx, kafka: conf, redis: opts, client: testenv.Client(t, conf), db: redis.NewClient(opts),
		prefix: "t" + uuid.NewString()[:8] + ":", topics: conf.Topics(),
	}
	t.Cleanup(func() { e.empty(); _ = e.db.Close() })
	return e
}

// empty deletes all that the test has in Redis, which others may share.
func (e *env) empty() {
	ctx := context.Background()
	keys := e.db.Scan(ctx, 0, e.prefix+"*", 1000).Iterator()
	for keys.Next(ctx) {
		_ = e.db.Del(ctx, keys.Val()) // one that is away has nothing left to delete
	}
}

func (e *env) projection(change ...func(*status.Config)) *status.Projection {
	e.t.Helper()
	cfg := status.Config{
		Kafka: testenv.Options(e.t, e.kafka), Topics: e.topics, Group: e.kafka.TopicPrefix + "status",
		Redis: e.redis, Prefix: e.prefix, Log: testenv.Log(e.t),
	}
	for _, f := range change {
		f(&cfg)
	}
	p, err := status.New(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			e.t.Error(err)
		}
	})
	return p
}

// run projects until the test ends, or stop is called.
func (e *env) run(p *status.Projection) (stop func()) {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("run: %v", err)
		}
	}
	e.t.Cleanup(stop)
	return stop
}

func (e *env) produce(records ...*kgo.Record) {
	e.t.Helper()
	if err := e.client.ProduceSync(e.ctx, records...).FirstErr(); err != nil {
		e.t.Fatal(err)
	}
}

// await waits until something holds that can only be asked for.
func (e *env) await(what string, holds func() bool) {
	e.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			e.t.Fatalf("still not so: %s", what)
		}
	}
}

// delivery returns a delivery once it is known.
func (e *env) delivery(p *status.Projection, id string, holds func(*status.Delivery) bool) *status.Delivery {
	e.t.Helper()
	var found *status.Delivery
	e.await("delivery "+id, func() bool {
		d, _, err := p.Delivery(e.ctx, id)
		if err != nil && !errors.Is(err, status.ErrNotFound) {
			e.t.Fatal(err)
		}
		found = d
		return err == nil && holds(d)
	})
	return found
}

// made is a delivery that a test makes, and what its records have in common.
type made struct {
	topics webhook.Topics
	id     string
	sub    string
	event  string
	origin string
	at     time.Time
}

func (e *env) made(sub string) *made {
	// A minute ago: its attempts are not in the future.
	at := time.Now().UTC().Add(-time.Minute).Truncate(time.Millisecond)
	return &made{topics: e.topics, id: uuid.NewString(), sub: sub, event: "appointment.created", at: at}
}

// record is the delivery's own.
func (m *made) record() *kgo.Record {
	d := webhook.Delivery{
		ID: m.id, SubscriptionID: m.sub, EventType: m.event, Origin: m.origin, Event: webhook.Position{Partition: 1, Offset: 7},
		Attempt: 1, Body: []byte(`{"data":"private"}`),
	}
	topic := m.topics.Deliveries()
	if m.origin != "" {
		topic = m.topics.Backfill()
	}
	r, err := d.Encode(topic)
	if err != nil {
		panic(err) // it is the test's own
	}
	r.Timestamp = m.at
	return r
}

// attempt is the record of one of its attempts, which began so many seconds
// after it was made.
func (m *made) attempt(n int, outcome string, change ...func(*webhook.Attempt)) *kgo.Record {
	a := webhook.Attempt{
		DeliveryID: m.id, SubscriptionID: m.sub, EventType: m.event, Origin: m.origin, EventPosition: "1/7",
		Attempt: n, At: m.at.Add(time.Duration(n) * time.Second), Outcome: outcome, Status: 200, LatencyMS: 12.345,
	}
	switch outcome {
	case webhook.Failed:
		next := a.At.Add(time.Second)
		a.NextAttemptAt = &next
		fallthrough
	case webhook.Dead:
		a.Status, a.Error, a.Answer = 500, "status", fmt.Sprintf("answer %d", n)
	case webhook.Discarded:
		a.Status, a.Error, a.LatencyMS = 0, "disabled", 0
	}
	for _, f := range change {
		f(&a)
	}
	value, err := json.Marshal(a)
	if err != nil {
		panic(err) // it is the test's own
	}
	return &kgo.Record{Topic: m.topics.Attempts(), Key: []byte(m.sub), Value: value, Timestamp: a.At}
}

func newSub() string { return "webhook_subscription:" + uuid.NewString() }
