package router_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/router"
)

// bench is a router with what it needs, on its own topics.
type bench struct {
	t      *testing.T
	conf   kafka.Config // not in virtual time
	opts   []kgo.Opt
	topics webhook.Topics
	client *kgo.Client
	adm    *kadm.Client
}

func newBench(t *testing.T) *bench {
	conf := testenv.Kafka(t, nil)
	client := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	return &bench{t, conf, testenv.Options(t, conf), conf.Topics(), client, kadm.NewClient(client)}
}

func (b *bench) group() string { return b.topics.Prefix + "router" }

// start runs a router until the returned function is called, which fails the
// test if the router failed.
func (b *bench) start(id string) (stop func()) {
	b.t.Helper()
	return b.startWith(id, func(r *registry.Registry) router.Subscriptions { return r })
}

// startWith is start with something between the router and its table.
func (b *bench) startWith(id string, between func(*registry.Registry) router.Subscriptions) (stop func()) {
	b.t.Helper()
	if err := router.Begin(b.t.Context(), b.adm, b.topics, b.group(), ""); err != nil {
		b.t.Fatalf("begin: %v", err)
	}
	reg, err := registry.New(registry.Config{Kafka: b.opts, Topic: b.topics.Subscriptions(), Log: testenv.Log(b.t)})
	if err != nil {
		b.t.Fatal(err)
	}
	rt := router.New(router.Config{
		Kafka: b.opts, Topics: b.topics, Group: b.group(),
		TransactionalID: b.group() + "-" + id, Subscriptions: between(reg), Log: testenv.Log(b.t),
	})
	ctx, cancel := context.WithCancel(b.t.Context())
	reading := make(chan error, 1)
	routing := make(chan error, 1)
	go func() { reading <- reg.Run(ctx) }()
	go func() { routing <- rt.Run(ctx) }()
	return func() {
		b.t.Helper()
		cancel()
		for _, ended := range []chan error{routing, reading} {
			if err := <-ended; err != nil {
				b.t.Errorf("ended with %v", err)
			}
		}
	}
}

func (b *bench) produce(r *kgo.Record) *kgo.Record {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	if err := b.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		b.t.Fatalf("produce: %v", err)
	}
	return r
}

func (b *bench) event(kind string) (events.Event, webhook.Position) {
	b.t.Helper()
	id := uuid.NewString()
	e := events.Event{
		ID: id, Type: kind, Time: time.Now().UTC().Truncate(time.Millisecond), Actor: "user:1",
		Data: events.Data{
			AppointmentID: "appointment:" + id, PatientID: "patient:1", ProviderID: "provider:" + id[:4],
			AppointmentDate: "2026-01-02", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation",
			Status: "scheduled", Version: 1,
		},
	}
	r, err := e.Encode(b.topics.Events())
	if err != nil {
		b.t.Fatal(err)
	}
	r.Partition = events.Partition(e.Data.ProviderID, testenv.Partitions)
	r = b.produce(r)
	return e, webhook.Position{Partition: r.Partition, Offset: r.Offset}
}

// rule appends a change of a subscription as of now.
func (b *bench) rule(s *webhook.Subscription, name string, active bool) {
	b.t.Helper()
	ends, err := b.adm.ListEndOffsets(b.t.Context(), b.topics.Events())
	if err != nil {
		b.t.Fatal(err)
	}
	from := make([]int64, testenv.Partitions)
	ends.Each(func(o kadm.ListedOffset) { from[o.Partition] = o.Offset })
	s.Version++
	s.EventName, s.Enabled = name, active
	s.Rules = append(s.Rules, webhook.Rule{From: from, EventName: name, Active: active})
	value, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	b.produce(&kgo.Record{Topic: b.topics.Subscriptions(), Key: []byte(s.ID), Value: value})
}

func newSubscription(n int) *webhook.Subscription {
	return &webhook.Subscription{ID: fmt.Sprintf("webhook_subscription:%d", n), TargetURL: "http://localhost/", Secret: "sealed"}
}

// read returns the first n committed records of a topic.
func (b *bench) read(topic string, n int) []*kgo.Record {
	b.t.Helper()
	client, err := kgo.NewClient(append(slices.Clone(b.opts), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		b.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Hour) // virtual time may be long
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

func (b *bench) deliveries(n int) map[string]*webhook.Delivery {
	b.t.Helper()
	found := map[string]*webhook.Delivery{}
	for _, r := range b.read(b.topics.Deliveries(), n) {
		d, err := webhook.ParseDelivery(r)
		if err != nil {
			b.t.Fatal(err)
		}
		if found[d.ID] != nil {
			b.t.Errorf("delivery %s comes twice", d.ID)
		}
		found[d.ID] = d
	}
	return found
}

// The join is as of the event: enabled, disabled and enabled again before the
// router even starts, and events in between.
func TestLateRouter(t *testing.T) {
	b := newBench(t)
	one, all := newSubscription(1), newSubscription(2)
	type want struct {
		e   events.Event
		at  webhook.Position
		sub string
	}
	var wanted []want
	event := func(kind string, subs ...*webhook.Subscription) {
		e, at := b.event(kind)
		for _, s := range subs {
			wanted = append(wanted, want{e, at, s.ID})
		}
	}
	event(events.Created) // before there is any subscription
	b.rule(one, events.Created, true)
	event(events.Created, one)
	event(events.Updated)
	b.rule(all, "appointment.*", true)
	event(events.Updated, all)
	event(events.Created, one, all)
	event(events.NoShow) // has no webhook
	b.rule(one, events.Created, false)
	event(events.Created, all)
	b.rule(one, events.Confirmed, true)
	event(events.Created, all)
	event(events.Confirmed, one, all)

	stop := b.start("a")
	defer stop()
	found := b.deliveries(len(wanted))
	if len(found) != len(wanted) {
		t.Fatalf("%d deliveries, want %d", len(found), len(wanted))
	}
	for _, w := range wanted {
		id := webhook.DeliveryID(w.e.ID, w.sub, "")
		d := found[id]
		if d == nil {
			t.Errorf("no delivery of %s at %s to %s", w.e.Type, w.at, w.sub)
			continue
		}
		if d.Event != w.at || d.EventType != w.e.Type || d.SubscriptionID != w.sub || d.Attempt != 1 {
			t.Errorf("delivery %+v does not fit %s at %s", d, w.e.Type, w.at)
		}
		payload, err := webhook.Render(w.e)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(d.Body), string(payload.Body(id)); got != want {
			t.Errorf("body %s, want %s", got, want)
		}
	}
}

// A router that is stopped and started, or joined by another, routes on where
// the last commit was.
func TestGoesOnAfterTheLastCommit(t *testing.T) {
	b := newBench(t)
	sub := newSubscription(1)
	b.rule(sub, "appointment.*", true)
	b.event(events.Created)
	stop := b.start("a")
	b.deliveries(1)
	stop()
	b.event(events.Created)
	stop = b.start("a")
	defer stop()
	if got := len(b.deliveries(2)); got != 2 {
		t.Errorf("%d deliveries, want 2", got)
	}
}

// What can't be read becomes a dead letter with its position; what only a newer
// version knows is passed over; routing goes on.
func TestBadRecords(t *testing.T) {
	b := newBench(t)
	sub := newSubscription(1)
	b.rule(sub, "appointment.*", true)
	bad := b.produce(&kgo.Record{Topic: b.topics.Events(), Key: []byte("provider:1"), Value: []byte("{"), Partition: 1})
	b.event("appointment.teleported")
	b.event(events.Created)
	stop := b.start("a")
	defer stop()
	b.deliveries(1)
	var dead webhook.DeadLetter
	if err := json.Unmarshal(b.read(b.topics.DeadLetters(), 1)[0].Value, &dead); err != nil {
		t.Fatal(err)
	}
	if dead.Reason != webhook.ReasonUnreadable || dead.Source != webhook.SourceOf(bad) || dead.Error == "" || string(dead.Record.Value) != "{" {
		t.Errorf("dead letter %+v", dead)
	}
}

// Of what is too large for a dead letter there is a bare one, and routing goes on.
func TestLargeBadRecord(t *testing.T) {
	b := newBench(t)
	b.rule(newSubscription(1), "appointment.*", true)
	bad := b.produce(&kgo.Record{Topic: b.topics.Events(), Key: []byte("provider:1"), Value: bytes.Repeat([]byte("{"), 950_000), Partition: 1})
	b.event(events.Created)
	stop := b.start("a")
	defer stop()
	b.deliveries(1)
	var dead webhook.DeadLetter
	if err := json.Unmarshal(b.read(b.topics.DeadLetters(), 1)[0].Value, &dead); err != nil {
		t.Fatal(err)
	}
	if dead.Reason != webhook.ReasonUnreadable || dead.Source != webhook.SourceOf(bad) || dead.Error == "" || len(dead.Record.Key)+len(dead.Record.Value) > 0 {
		t.Errorf("dead letter %+v", dead)
	}
}

// Lost offsets of a deployment that has routed before are never a reason to
// send history again.
func TestLostOffsets(t *testing.T) {
	b := newBench(t)
	sub := newSubscription(1)
	b.rule(sub, "appointment.*", true)
	b.event(events.Created)
	stop := b.start("a")
	b.deliveries(1)
	stop()
	if _, err := b.adm.DeleteGroups(t.Context(), b.group()); err != nil {
		t.Fatal(err)
	}
	if err := router.Begin(t.Context(), b.adm, b.topics, b.group(), ""); !errors.Is(err, router.ErrNoOffsets) {
		t.Errorf("begin without offsets: %v", err)
	}
	if err := router.Begin(t.Context(), b.adm, b.topics, b.group(), "yesterday"); err == nil {
		t.Error("begins yesterday")
	}
	if err := router.Begin(t.Context(), b.adm, b.topics, b.group(), "latest"); err != nil {
		t.Errorf("begin at the end: %v", err)
	}
	e, _ := b.event(events.Updated)
	stop = b.start("a")
	defer stop()
	if b.deliveries(2)[webhook.DeliveryID(e.ID, sub.ID, "")] == nil {
		t.Error("the event after the chosen beginning was not routed")
	}
}

// A Kafka that can't be reached just when the router wants to begin is waited
// for, and what is wrong with the settings is not.
func TestBeginWaitsForKafka(t *testing.T) {
	const refusals = 3
	b := newBench(t)
	var refused atomic.Int32
	flaky := testenv.Client(t, b.conf, kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if refused.Add(1) <= refusals {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}), kgo.RequestRetries(0))
	if err := router.Begin(t.Context(), kadm.NewClient(flaky), b.topics, b.group(), ""); err != nil {
		t.Errorf("begin: %v", err)
	}
	if n := refused.Load(); n <= refusals {
		t.Errorf("%d dials: the test tried nothing", n)
	}
}
