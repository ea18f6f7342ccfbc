package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
)

// table is a registry that runs, and a client to write its topic with.
type table struct {
	*registry.Registry
	t      *testing.T
	ctx    context.Context
	conf   kafka.Config
	client *kgo.Client
	// unreadable receives what the registry tells of.
	unreadable chan *kgo.Record
	metrics    *prometheus.Registry
}

// start runs a registry until the test ends. before, if set, writes to the topic first.
func start(t *testing.T, before func(*table)) *table {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	conf := testenv.Kafka(t, nil)
	tab := &table{
		t: t, ctx: ctx, conf: conf, client: testenv.Client(t, conf),
		unreadable: make(chan *kgo.Record, 16), metrics: prometheus.NewRegistry(),
	}
	if before != nil {
		before(tab)
	}
	var err error
	tab.Registry, err = registry.New(registry.Config{
		Kafka: testenv.Options(t, conf), Topic: conf.Topics().Subscriptions(), Log: testenv.Log(t), Metrics: tab.metrics,
		Unreadable: func(rec *kgo.Record, cause error) {
			if cause == nil {
				t.Error("told of a record without a cause")
			}
			tab.unreadable <- rec
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tab.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the registry ended with %v", err)
		}
	})
	select {
	case <-tab.Restored():
	case <-ctx.Done():
		t.Fatal("the registry is not restored")
	}
	return tab
}

// write appends a record, nil for a tombstone, and returns its position.
func (tab *table) write(key string, value []byte) webhook.Position {
	tab.t.Helper()
	rec := &kgo.Record{Topic: tab.conf.Topics().Subscriptions(), Key: []byte(key), Value: value}
	if err := tab.client.ProduceSync(tab.ctx, rec).FirstErr(); err != nil {
		tab.t.Fatal(err)
	}
	return webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
}

func (tab *table) put(s webhook.Subscription) webhook.Position {
	tab.t.Helper()
	value, err := json.Marshal(s)
	if err != nil {
		tab.t.Fatal(err)
	}
	return tab.write(s.ID, value)
}

func (tab *table) sync() {
	tab.t.Helper()
	if err := tab.Sync(tab.ctx); err != nil {
		tab.t.Fatal(err)
	}
}

// expect compares the ids that match an event.
func (tab *table) expect(eventType string, offset int64, want ...string) {
	tab.t.Helper()
	var got []string
	for _, m := range tab.Match(eventType, webhook.Position{Offset: offset}) {
		got = append(got, m.Subscription.ID)
	}
	if !slices.Equal(got, want) {
		tab.t.Errorf("%s at %d: got %v, want %v", eventType, offset, got, want)
	}
}

func rule(from int64, name string, active bool) webhook.Rule {
	return webhook.Rule{From: []int64{from}, EventName: name, Active: active}
}

func sub(id, name string, rules ...webhook.Rule) webhook.Subscription {
	last := rules[len(rules)-1]
	return webhook.Subscription{
		ID: id, EventName: name, TargetURL: "http://localhost", Enabled: last.Active, Version: len(rules), Rules: rules,
	}
}

// Each change shows as soon as the table is in step with it, for the events
// behind it alone.
func TestIndexFollowsTheTopic(t *testing.T) {
	tab := start(t, nil)
	tab.expect("appointment.created", 0)

	tab.put(sub("a", "appointment.created", rule(0, "appointment.created", true)))
	tab.sync()
	tab.expect("appointment.created", 0, "a")
	tab.expect("appointment.updated", 0)

	// edited: another event name from 10 on
	tab.put(sub("a", "appointment.updated", rule(0, "appointment.created", true), rule(10, "appointment.updated", true)))
	tab.sync()
	tab.expect("appointment.created", 9, "a")
	tab.expect("appointment.created", 10)
	tab.expect("appointment.updated", 9)
	tab.expect("appointment.updated", 10, "a")

	// disabled from 20 on, and its first rule is pruned
	tab.put(sub("a", "appointment.updated", rule(10, "appointment.updated", true), rule(20, "appointment.updated", false)))
	tab.sync()
	tab.expect("appointment.created", 9)
	tab.expect("appointment.updated", 19, "a")
	tab.expect("appointment.updated", 20)

	deleted := sub("a", "appointment.updated", rule(10, "appointment.updated", true), rule(20, "appointment.updated", false))
	deleted.Deleted, deleted.Version = true, 4
	at := tab.put(deleted)
	tab.sync()
	tab.expect("appointment.updated", 19, "a")
	if got, ok := tab.Get("a"); !ok || !got.Subscription.Deleted || got.At != at || got.Subscription.Version != 4 {
		t.Errorf("got %+v, %t, want version 4 at %s", got, ok, at)
	}

	tab.write("a", nil)
	tab.write("never was", nil)
	tab.sync()
	tab.expect("appointment.updated", 19)
	if got, ok := tab.Get("a"); ok || len(tab.All()) != 0 {
		t.Errorf("still there: %+v", got)
	}
}

func TestMatch(t *testing.T) {
	tab := start(t, func(tab *table) {
		for _, s := range []webhook.Subscription{
			sub("d-exact", "appointment.created", rule(0, "appointment.created", true)),
			sub("c-all", "*", rule(0, "*", true)),
			sub("b-wild", "appointment.*", rule(0, "appointment.*", true)),
			sub("a-other", "appointment.updated", rule(0, "appointment.updated", true)),
			sub("e-both", "appointment.*", rule(0, "appointment.created", true), rule(5, "appointment.*", true)),
			sub("f-off", "appointment.*", rule(0, "appointment.*", false)),
			sub("g-later", "appointment.created", rule(7, "appointment.created", true)),
			sub("h-prefix", "appointment.create", rule(0, "appointment.create", true)),
		} {
			tab.put(s)
		}
	})
	// By id, each once, whatever the number of its rules and names that cover it.
	tab.expect("appointment.created", 4, "b-wild", "c-all", "d-exact", "e-both")
	tab.expect("appointment.created", 7, "b-wild", "c-all", "d-exact", "e-both", "g-later")
	tab.expect("appointment.updated", 4, "a-other", "b-wild", "c-all")
	tab.expect("appointment.updated", 5, "a-other", "b-wild", "c-all", "e-both")
	tab.expect("appointment", 5, "c-all")
	tab.expect("appointment.created.late", 5, "b-wild", "c-all", "e-both")
	if n := len(tab.All()); n != 8 {
		t.Errorf("%d subscriptions, want 8", n)
	}
}

// The table agrees with asking each subscription, whatever was put and removed.
func TestIndexAgreesWithEverySubscription(t *testing.T) {
	tab := start(t, nil)
	names := []string{"appointment.created", "appointment.updated", "appointment.*", "*"}
	for i := range 60 {
		id := fmt.Sprintf("s%02d", i%20)
		if i%7 == 6 {
			tab.write(id, nil)
			continue
		}
		first, second := rule(int64(i%3), names[i%4], i%5 != 0), rule(int64(5+i%4), names[(i/4)%4], i%3 != 0)
		tab.put(sub(id, second.EventName, first, second))
	}
	tab.sync()
	found := 0
	for _, eventType := range []string{"appointment.created", "appointment.updated", "appointment.completed", "other"} {
		for offset := range int64(10) {
			at := webhook.Position{Offset: offset}
			var want []string
			for _, e := range tab.All() {
				if e.Subscription.Matches(eventType, at) {
					want = append(want, e.Subscription.ID)
				}
			}
			slices.Sort(want)
			tab.expect(eventType, offset, want...)
			found += len(want)
		}
	}
	if found == 0 {
		t.Error("nothing ever matched")
	}
}

// A record that is no subscription is passed over and leaves what was known of
// its key. It is told of once, when it comes; not again at every start.
func TestUnreadableRecords(t *testing.T) {
	good := sub("a", "appointment.created", rule(0, "appointment.created", true))
	tab := start(t, func(tab *table) {
		tab.put(good)
		tab.write("a", []byte("of yesterday"))
	})
	tab.expect("appointment.created", 0, "a")
	if len(tab.unreadable) != 0 {
		t.Error("told of a record of before its start")
	}
	var want []webhook.Position
	for _, value := range []string{"{", "{}", "", `{"id":"b"}`} {
		want = append(want, tab.write("a", []byte(value)))
	}
	tab.put(sub("b", "appointment.created", rule(0, "appointment.created", true)))
	tab.sync()
	tab.expect("appointment.created", 0, "a", "b")
	for i, at := range want {
		select {
		case rec := <-tab.unreadable:
			if got := (webhook.Position{Partition: rec.Partition, Offset: rec.Offset}); got != at || string(rec.Key) != "a" {
				t.Errorf("told of %s, want %s", got, at)
			}
		default:
			t.Fatalf("told of %d records, want %d", i, len(want))
		}
	}
	if len(tab.unreadable) != 0 {
		t.Error("told more than once")
	}
}

func TestMetrics(t *testing.T) {
	tab := start(t, func(tab *table) {
		tab.put(sub("a", "appointment.*", rule(0, "appointment.*", true)))
		tab.put(sub("b", "appointment.*", rule(0, "appointment.*", true)))
		tab.put(sub("c", "appointment.created", rule(0, "appointment.created", true)))
		tab.put(sub("off", "appointment.created", rule(0, "appointment.created", false)))
		deleted := sub("deleted", "appointment.created", rule(0, "appointment.created", true))
		deleted.Deleted = true
		tab.put(deleted)
	})
	families, err := tab.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()+" "+m.GetLabel()[0].GetName()+"="+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	want := map[string]float64{
		"webhooks_active_subscriptions event_name=appointment.*":       2,
		"webhooks_active_subscriptions event_name=appointment.created": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Await reaches a single record, End and Sync the end, also behind the marker
// of a transaction.
func TestPositions(t *testing.T) {
	tab := start(t, nil)
	at := tab.put(sub("a", "appointment.created", rule(0, "appointment.created", true)))
	if err := tab.Await(tab.ctx, at.Partition, at.Offset+1); err != nil {
		t.Fatal(err)
	}
	if got, ok := tab.Get("a"); !ok || got.At != at {
		t.Errorf("awaited %s and found %+v, %t", at, got, ok)
	}
	tx := testenv.Client(t, tab.conf, kgo.TransactionalID(tab.conf.TopicPrefix+uuid.NewString()))
	for _, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		id := fmt.Sprintf("tx-%t", bool(commit))
		value, err := json.Marshal(sub(id, "appointment.created", rule(0, "appointment.created", true)))
		if err != nil {
			t.Fatal(err)
		}
		rec := &kgo.Record{Topic: tab.conf.Topics().Subscriptions(), Key: []byte(id), Value: value}
		testenv.Transaction(t, tx, commit, rec)
	}
	tab.sync()
	tab.expect("appointment.created", 0, "a", "tx-true")
	// A record, then two transactions of a record and a marker each; the last
	// marker may still be on its way.
	if end, err := tab.End(tab.ctx, 0); err != nil || end != at.Offset+4 && end != at.Offset+5 {
		t.Errorf("the end is %d, %v, want %d", end, err, at.Offset+5)
	}
	ended, cancel := context.WithCancel(tab.ctx)
	cancel()
	if err := tab.Await(ended, 0, at.Offset+100); err == nil {
		t.Error("reached what is not there")
	}
}
