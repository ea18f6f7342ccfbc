package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/embedded"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

const (
	partitions = 12
	secret     = "bench-secret"
	sealingKey = "bench:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
)

// world is a Kafka with the topics of one deployment, and a Redis.
type world struct {
	conf     kafka.Config
	redisURL string
	topics   webhook.Topics
	client   *kgo.Client
	adm      *kadm.Client
	clean    []func()
	metrics  *prometheus.Registry
	at       map[string]webhook.Position // where subscriptions stand in their topic
}

func newWorld(ctx context.Context) (*world, error) {
	w := &world{metrics: prometheus.NewRegistry(), at: map[string]webhook.Position{}}
	w.conf.TopicPrefix = "b" + uuid.NewString()[:8] + "."
	if onReal() {
		w.conf.Brokers, w.redisURL = strings.Split(os.Getenv("KAFKA_BROKERS"), ","), os.Getenv("REDIS_URL")
	} else {
		dir, err := os.MkdirTemp("", "bench-")
		if err != nil {
			return nil, err
		}
		w.clean = append(w.clean, func() { _ = os.RemoveAll(dir) })
		instance, err := embedded.Start(ctx, dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		w.clean = append(w.clean, func() { _ = instance.Close() })
		w.conf.Brokers, w.redisURL = instance.Brokers(), instance.RedisURL()
	}
	w.topics = w.conf.Topics()
	opts, err := w.conf.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	w.client, err = kgo.NewClient(append(opts, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))...)
	if err != nil {
		return nil, err
	}
	w.clean = append(w.clean, w.client.Close)
	w.adm = kadm.NewClient(w.client)
	settings := kafka.DefaultTopicSettings()
	settings.Partitions = partitions
	if _, err := kafka.Apply(ctx, w.adm, -1, settings.Topics(w.topics, webhook.DefaultSchedule())); err != nil {
		return nil, err
	}
	if onReal() {
		w.clean = append(w.clean, w.deleteTopics)
	}
	return w, nil
}

func (w *world) deleteTopics() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if topics, err := w.adm.ListTopics(ctx); err == nil {
		for _, name := range topics.Names() {
			if strings.HasPrefix(name, w.conf.TopicPrefix) {
				_, _ = w.adm.DeleteTopics(ctx, name) // the next run has names of its own
			}
		}
	}
}

func (w *world) close() {
	for len(w.clean) > 0 {
		w.clean[len(w.clean)-1]()
		w.clean = w.clean[:len(w.clean)-1]
	}
}

// env is what a service is given: logs at its default level, which go nowhere.
func (w *world) env() *run.Env {
	w.metrics = prometheus.NewRegistry()
	return &run.Env{Log: slog.New(slog.DiscardHandler), Metrics: w.metrics, Health: &run.Health{}}
}

// counter sums a counter of the running service.
func (w *world) counter(name string, match func(labels map[string]string) bool) int {
	families, err := w.metrics.Gather()
	if err != nil {
		return 0
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if match == nil || match(labels) {
				total += m.GetCounter().GetValue()
			}
		}
	}
	return int(total)
}

// produce appends records, many at a time.
func (w *world) produce(ctx context.Context, records []*kgo.Record) error {
	for len(records) > 0 {
		n := min(len(records), 10_000)
		if err := w.client.ProduceSync(ctx, records[:n]...).FirstErr(); err != nil {
			return fmt.Errorf("fill a topic: %w", err)
		}
		records = records[n:]
	}
	return nil
}

// subscribe writes n subscriptions to events of a name and returns them.
func (w *world) subscribe(ctx context.Context, n int, name, url string) ([]*webhook.Subscription, error) {
	keys, err := seal.Parse(sealingKey)
	if err != nil {
		return nil, err
	}
	subs := make([]*webhook.Subscription, n)
	now := time.Now().UTC()
	for i := range subs {
		s := &webhook.Subscription{
			ID: "webhook_subscription:" + uuid.NewString(), EventName: name, TargetURL: url, Enabled: true,
			CreatedAt: now, UpdatedAt: now, CreatedBy: "bench", UpdatedBy: "bench", Version: 1,
			Rules: []webhook.Rule{{From: make([]int64, partitions), EventName: name, Active: true}},
		}
		s.Secret = keys.Seal(s.ID, secret)
		subs[i] = s
	}
	return subs, w.put(ctx, subs)
}

// put writes subscriptions.
func (w *world) put(ctx context.Context, subs []*webhook.Subscription) error {
	records := make([]*kgo.Record, len(subs))
	for i, s := range subs {
		value, err := json.Marshal(s)
		if err != nil {
			return err
		}
		records[i] = &kgo.Record{Topic: w.topics.Subscriptions(), Key: []byte(s.ID), Value: value}
	}
	if err := w.produce(ctx, records); err != nil {
		return err
	}
	for i, s := range subs {
		w.at[s.ID] = webhook.Position{Partition: records[i].Partition, Offset: records[i].Offset}
	}
	return nil
}

// event makes an event of some appointment.
func event(i int) events.Event {
	return events.Event{
		ID: uuid.NewString(), Type: events.Created, Time: time.Now().UTC().Truncate(time.Millisecond), Actor: "user:bench", Command: uuid.NewString(),
		Data: events.Data{
			AppointmentID: "appointment:" + uuid.NewString(), PatientID: fmt.Sprintf("patient:%d", i), ProviderID: fmt.Sprintf("provider:%d", i%1000),
			AppointmentDate: "2031-05-06", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: "scheduled", Version: 1,
		},
	}
}

// await polls until done says so.
func await(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

var errStopped = errors.New("the service stopped by itself")
