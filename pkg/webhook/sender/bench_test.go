package sender_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/follow"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
	"github.com/arsmedicatech/webhooks/pkg/webhook/standing"
)

// A sender that has stopped leaves no goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench has what senders need: topics of its own, claims, and a way to reach
// endpoints.
type bench struct {
	t        *testing.T
	kafka    []kgo.Opt
	topics   webhook.Topics
	schedule webhook.Schedule
	client   *kgo.Client
	adm      *kadm.Client
	claims   sender.Claims
	standing standing.Memory
	endpoint endpoint.Config
	virtual  *network // nil on a real one
}

// newBench returns a bench on the Kafka and the Redis of testenv.
func newBench(t *testing.T, schedule webhook.Schedule) *bench {
	t.Helper()
	conf := testenv.Kafka(t, schedule)
	b := &bench{
		t: t, kafka: testenv.Options(t, conf), topics: conf.Topics(), schedule: schedule,
		endpoint: endpoint.Config{AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
	b.connect()
	b.claims = newRedis(t, conf, dedupe.Config{Redis: testenv.Redis(t)})
	return b
}

func newRedis(t *testing.T, conf kafka.Config, cfg dedupe.Config) *dedupe.Redis {
	t.Helper()
	cfg.Prefix, cfg.Sole, cfg.Logger = conf.TopicPrefix, true, testenv.Log(t)
	claims, err := dedupe.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = claims.Close() })
	return claims
}

func (b *bench) connect() {
	b.t.Helper()
	b.client = b.newClient()
	b.t.Cleanup(b.client.Close)
	b.adm = kadm.NewClient(b.client)
}

func (b *bench) newClient(more ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	client, err := kgo.NewClient(append(append(slices.Clip(b.kafka), kgo.ProducerLinger(0)), more...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	return client
}

// limited returns a context within which anything a test waits for must happen.
func (b *bench) limited() (context.Context, context.CancelFunc) {
	if b.virtual != nil {
		return context.WithTimeout(b.t.Context(), 24*time.Hour)
	}
	return context.WithTimeout(b.t.Context(), time.Minute)
}

// running is a sender with its registry.
type running struct {
	*sender.Sender
	registry *registry.Registry
	stop     func() // waits until it has stopped; may be called again
}

func (b *bench) group() string { return b.topics.Prefix + "sender" }

func (b *bench) start(change ...func(*sender.Config)) *running {
	b.t.Helper()
	reg, err := registry.New(registry.Config{Kafka: b.kafka, Topic: b.topics.Subscriptions(), Log: testenv.Log(b.t)})
	if err != nil {
		b.t.Fatal(err)
	}
	client, err := endpoint.New(b.endpoint)
	if err != nil {
		b.t.Fatal(err)
	}
	cfg := sender.Config{
		Kafka: b.kafka, Topics: b.topics, Group: b.group(), Schedule: b.schedule,
		Subscriptions: reg, Claims: b.claims, Standing: &b.standing, Client: client, Log: testenv.Log(b.t),
		Open: func(_, sealed string) (string, error) { return strings.TrimPrefix(sealed, "sealed:"), nil },
	}
	for _, c := range change {
		c(&cfg)
	}
	snd, err := sender.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	reading, unread := context.WithCancel(context.WithoutCancel(ctx))
	var sending, following sync.WaitGroup
	following.Go(func() {
		if err := reg.Run(reading); err != nil {
			b.t.Errorf("registry: %v", err)
		}
	})
	sending.Go(func() {
		if err := snd.Run(ctx); err != nil {
			b.t.Errorf("sender: %v", err)
		}
	})
	stop := func() {
		cancel()
		sending.Wait()
		unread()
		following.Wait()
		client.Close()
	}
	b.t.Cleanup(stop)
	return &running{snd, reg, stop}
}

func (b *bench) produce(r *kgo.Record) *kgo.Record {
	b.t.Helper()
	ctx, cancel := b.limited()
	defer cancel()
	if err := b.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		b.t.Fatalf("produce: %v", err)
	}
	return r
}

// subscription is a subscription and where its record stands.
type subscription struct {
	webhook.Subscription
	at webhook.Position
}

func (b *bench) subscribe(url string) *subscription {
	b.t.Helper()
	s := &subscription{Subscription: webhook.Subscription{
		ID: "webhook_subscription:" + uuid.NewString(), EventName: "appointment.*", TargetURL: url, Enabled: true,
		Secret: "sealed:first secret", Rules: []webhook.Rule{{EventName: "appointment.*", Active: true}},
	}}
	b.put(s)
	return s
}

// put writes a subscription's next version.
func (b *bench) put(s *subscription) {
	b.t.Helper()
	s.Version++
	value, err := json.Marshal(s.Subscription)
	if err != nil {
		b.t.Fatal(err)
	}
	r := b.produce(&kgo.Record{Topic: b.topics.Subscriptions(), Key: []byte(s.ID), Value: value})
	s.at = webhook.Position{Partition: r.Partition, Offset: r.Offset}
}

func newDelivery(s *subscription) *webhook.Delivery {
	id := webhook.DeliveryID(uuid.NewString(), s.ID, "")
	return &webhook.Delivery{
		ID: id, SubscriptionID: s.ID, EventType: "appointment.created", Subscription: s.at, Attempt: 1,
		Body: fmt.Appendf(nil, `{"event":"appointment.created","delivery_id":%q}`, id),
	}
}

// send appends a delivery to a topic.
func (b *bench) send(topic string, d *webhook.Delivery) *kgo.Record {
	b.t.Helper()
	r, err := d.Encode(topic)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.produce(r)
}

// settle marks an attempt as settled.
func (b *bench) settle(id string, attempt int, outcome string) error {
	return b.claims.SettleAll(b.t.Context(), []dedupe.Settlement{{ID: id, Attempt: attempt, Outcome: outcome}})
}

// deliver appends a new delivery.
func (b *bench) deliver(s *subscription) *webhook.Delivery {
	b.t.Helper()
	d := newDelivery(s)
	b.send(b.topics.Deliveries(), d)
	return d
}

// read returns the first n records of a topic.
func (b *bench) read(topic string, n int) []*kgo.Record {
	b.t.Helper()
	client := b.newClient(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer client.Close()
	ctx, cancel := b.limited()
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			b.t.Fatalf("read %d records of %s, have %d: %v", n, topic, len(records), err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// attempts returns the first n attempts that were recorded.
func (b *bench) attempts(n int) []*webhook.Attempt {
	b.t.Helper()
	var found []*webhook.Attempt
	for _, r := range b.read(b.topics.Attempts(), n) {
		a, err := webhook.ParseAttempt(r.Value)
		if err != nil {
			b.t.Fatal(err)
		}
		if string(r.Key) != a.SubscriptionID {
			b.t.Errorf("an attempt of %s has key %s", a.SubscriptionID, r.Key)
		}
		found = append(found, a)
	}
	return found
}

// deadLetters returns the first n dead letters.
func (b *bench) deadLetters(n int) []webhook.DeadLetter {
	b.t.Helper()
	var found []webhook.DeadLetter
	for _, r := range b.read(b.topics.DeadLetters(), n) {
		var d webhook.DeadLetter
		if err := json.Unmarshal(r.Value, &d); err != nil {
			b.t.Fatal(err)
		}
		found = append(found, d)
	}
	return found
}

// ends returns the ends of a topic's partitions.
func (b *bench) ends(topic string) []int64 {
	b.t.Helper()
	ends, err := follow.Ends(b.t.Context(), b.client, topic, testenv.Partitions)
	if err != nil {
		b.t.Fatal(err)
	}
	return ends
}

// wantCount fails the test unless a topic has n records.
func (b *bench) wantCount(topic string, n int64) {
	b.t.Helper()
	var total int64
	for _, end := range b.ends(topic) {
		total += end
	}
	if total != n {
		b.t.Errorf("%s has %d records, want %d", topic, total, n)
	}
}

// committed returns the sender's offset of a partition, or -1.
func (b *bench) committed(topic string, partition int32) int64 {
	b.t.Helper()
	offsets, err := b.adm.FetchOffsets(b.t.Context(), b.group())
	if err != nil {
		b.t.Fatal(err)
	}
	if o, ok := offsets.Lookup(topic, partition); ok {
		return o.At
	}
	return -1
}

// wantAllCommitted fails the test unless everything in the topic is.
func (b *bench) wantAllCommitted(topic string) {
	b.t.Helper()
	for p, end := range b.ends(topic) {
		if got := b.committed(topic, int32(p)); end > 0 && got != end {
			b.t.Errorf("%s[%d] is committed to %d, want %d", topic, p, got, end)
		}
	}
}

// caughtUp is a registry that answers only after it has reached a position.
type caughtUp struct {
	sender.Subscriptions
	at webhook.Position
}

func (c caughtUp) Await(ctx context.Context, _ int32, _ int64) error {
	return c.Subscriptions.Await(ctx, c.at.Partition, c.at.Offset+1)
}

// knowing lets a sender judge a subscription only after the table has reached a
// record.
func knowing(r *kgo.Record) func(*sender.Config) {
	return func(cfg *sender.Config) {
		cfg.Subscriptions = caughtUp{cfg.Subscriptions, webhook.Position{Partition: r.Partition, Offset: r.Offset}}
	}
}

// metrics is a registry that tests can read.
type metrics struct{ *prometheus.Registry }

func newRegistry() metrics { return metrics{prometheus.NewRegistry()} }

// value returns the value of a gauge.
func (m metrics) value(t *testing.T, name string) float64 {
	t.Helper()
	families, err := m.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
