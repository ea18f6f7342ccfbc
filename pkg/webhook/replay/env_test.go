package replay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/schemas"
)

const limit = time.Minute

// world is a Kafka with a log, and a table of replays and one of subscriptions
// that follow their topics.
type world struct {
	t       *testing.T
	conf    kafka.Config
	topics  webhook.Topics
	client  *kgo.Client
	adm     *kadm.Client
	replays *replay.Table
	subs    *registry.Registry
	// log holds the events in the order in which they were appended.
	log []logged
}

type logged struct {
	events.Event
	at webhook.Position
}

func newWorld(t *testing.T) *world {
	t.Helper()
	conf := testenv.Kafka(t, nil)
	w := &world{t: t, conf: conf, topics: conf.Topics()}
	w.client = testenv.Client(t, conf)
	w.adm = kadm.NewClient(w.client)
	w.replays, _ = w.table()
	var err error
	w.subs, err = registry.New(registry.Config{Kafka: w.opts(), Topic: w.topics.Subscriptions(), Log: testenv.Log(t)})
	w.check(err)
	w.background(w.subs.Run)
	return w
}

// table follows the replays until the test ends or stop is called.
func (w *world) table() (t *replay.Table, stop func()) {
	w.t.Helper()
	t, err := replay.NewTable(replay.TableConfig{Kafka: w.opts(), Topic: w.topics.Replays(), Log: testenv.Log(w.t)})
	w.check(err)
	return t, w.background(t.Run)
}

func (w *world) opts() []kgo.Opt { return testenv.Options(w.t, w.conf) }

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// background runs something until the test ends or stop is called.
func (w *world) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			w.t.Errorf("ended with %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) produce(records ...*kgo.Record) {
	w.t.Helper()
	w.check(w.client.ProduceSync(w.context(), records...).FirstErr())
}

// record returns the record of a new event.
func (w *world) record(kind, provider string) (*kgo.Record, events.Event) {
	w.t.Helper()
	id := uuid.NewString()
	e := events.Event{
		ID: id, Type: kind, Time: time.Now().UTC().Truncate(time.Millisecond), Actor: "user:1",
		Data: events.Data{
			AppointmentID: "appointment:" + id, PatientID: "patient:1", ProviderID: provider,
			AppointmentDate: "2026-01-02", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation",
			Status: "scheduled", Version: 1,
		},
	}
	switch kind {
	case events.Updated:
		e.Data.Changes = map[string]string{"start_time": "10:00"}
	case events.Confirmed, events.Completed, events.Cancelled:
		e.Data.Status = strings.TrimPrefix(kind, "appointment.")
	}
	r, err := e.Encode(w.topics.Events())
	w.check(err)
	return r, e
}

// event appends an event.
func (w *world) event(kind, provider string) logged {
	w.t.Helper()
	r, e := w.record(kind, provider)
	w.produce(r)
	l := logged{e, webhook.Position{Partition: r.Partition, Offset: r.Offset}}
	w.log = append(w.log, l)
	return l
}

// events appends many events of a few providers.
func (w *world) events(n int) {
	w.t.Helper()
	records, made := make([]*kgo.Record, n), make([]events.Event, n)
	for i := range n {
		records[i], made[i] = w.record(events.Created, fmt.Sprintf("provider:%d", i%7))
	}
	w.produce(records...)
	for i, r := range records {
		w.log = append(w.log, logged{made[i], webhook.Position{Partition: r.Partition, Offset: r.Offset}})
	}
}

// aborted appends events in a transaction that is aborted, and a marker.
func (w *world) aborted(n int) {
	w.t.Helper()
	client := testenv.Client(w.t, w.conf, kgo.TransactionalID(w.conf.TopicPrefix+uuid.NewString()))
	defer client.Close()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i], _ = w.record(events.Created, fmt.Sprintf("provider:%d", i%7))
	}
	testenv.Transaction(w.t, client, kgo.TryAbort, records...)
}

// ends returns where a topic ends, or where it did at a time.
func (w *world) ends(topic string) []int64 {
	w.t.Helper()
	listed, err := w.adm.ListEndOffsets(w.context(), topic)
	w.check(err)
	return offsets(listed, topic)
}

func offsets(listed kadm.ListedOffsets, topic string) []int64 {
	ends := make([]int64, len(listed[topic]))
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends
}

// subscribe appends a subscription whose rules begin now.
func (w *world) subscribe(id string) *webhook.Subscription {
	w.t.Helper()
	s := &webhook.Subscription{
		ID: id, TargetURL: "http://localhost/", Secret: "sealed", EventName: "appointment.*", Enabled: true, Version: 1,
		Rules: []webhook.Rule{{From: w.ends(w.topics.Events()), EventName: "appointment.*", Active: true}},
	}
	w.put(s)
	return s
}

func (w *world) put(s *webhook.Subscription) {
	w.t.Helper()
	value, err := json.Marshal(s)
	w.check(err)
	w.produce(&kgo.Record{Topic: w.topics.Subscriptions(), Key: []byte(s.ID), Value: value})
}

// request returns a request for all there is on the log now.
func (w *world) request(subscriptionID string, names ...string) *webhook.ReplayRequest {
	w.t.Helper()
	to := w.ends(w.topics.Events())
	if len(names) == 0 {
		names = []string{"appointment.*"}
	}
	return &webhook.ReplayRequest{
		ID: uuid.NewString(), SubscriptionID: subscriptionID, Source: webhook.SourceEvents, From: make([]int64, len(to)), To: to,
		EventNames: names, CreatedAt: time.Now().UTC(), CreatedBy: "user:1",
	}
}

// recovery returns a request for what failed before now.
func (w *world) recovery(subscriptionID string) *webhook.ReplayRequest {
	w.t.Helper()
	r := w.request(subscriptionID)
	r.Source, r.To = webhook.SourceAttempts, w.ends(w.topics.Attempts())
	r.From = make([]int64, len(r.To))
	return r
}

func (w *world) ask(requests ...*webhook.ReplayRequest) {
	w.t.Helper()
	for _, r := range requests {
		rec, err := r.Encode(w.topics.Replays())
		w.check(err)
		w.produce(rec)
	}
}

func (w *world) cancel(id string) {
	w.t.Helper()
	rec, err := (&webhook.ReplayCancel{ID: id, At: time.Now().UTC(), By: "user:1"}).Encode(w.topics.Replays())
	w.check(err)
	w.produce(rec)
}

func (w *world) config() replay.Config {
	return replay.Config{
		Kafka: w.opts(), Topics: w.topics, Group: w.conf.TopicPrefix + "replayer", TransactionalID: w.conf.TopicPrefix + "router",
		Readers: w.conf.TopicPrefix + "sender", Replays: w.replays, Subscriptions: w.subs, Log: testenv.Log(w.t),
	}
}

// replayer makes a replayer that calls step.
func (w *world) replayer(step func(string) error) *replay.Replayer {
	w.t.Helper()
	c := w.config()
	if step != nil {
		c = c.WithStep(step)
	}
	r, err := replay.New(c)
	w.check(err)
	return r
}

// await returns a replay once it is as wanted.
func (w *world) await(id, what string, wanted func(replay.Replay) bool) replay.Replay {
	w.t.Helper()
	ctx := w.context()
	for {
		changed := w.replays.Changed()
		r, ok := w.replays.Get(id)
		if ok && wanted(r) {
			return r
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatalf("replay %s is not %s: %+v", id, what, r.Progress)
		}
	}
}

func (w *world) awaitState(id, state string) replay.Replay {
	w.t.Helper()
	return w.await(id, state, func(r replay.Replay) bool { return r.State() == state && (r.Progress == nil || r.Progress.Ended()) })
}

// all returns the committed records of a topic as it is now.
func (w *world) all(topic string) []*kgo.Record {
	w.t.Helper()
	from, to, err := replay.Bounds(w.context(), w.adm, topic)
	w.check(err)
	var records []*kgo.Record
	w.check(replay.Scan(w.context(), w.opts(), func(r *kgo.Record) bool {
		records = append(records, r)
		return true
	}, replay.Range{Topic: topic, From: from, To: to}))
	return records
}

// made fails the test unless the deliveries of a replay are those of the events,
// each once, and as the router would have made them but for the origin.
func (w *world) made(r *webhook.ReplayRequest, wanted []logged) {
	w.t.Helper()
	origin := "replay:" + r.ID
	left := map[string]logged{}
	for _, e := range wanted {
		left[webhook.DeliveryID(e.ID, r.SubscriptionID, origin)] = e
	}
	if len(left) != len(wanted) {
		w.t.Fatalf("%d events have %d ids", len(wanted), len(left))
	}
	sub, _ := w.subs.Get(r.SubscriptionID)
	n := 0
	for _, rec := range w.all(w.topics.Backfill()) {
		d, err := webhook.ParseDelivery(rec)
		w.check(err)
		if d.Origin != origin {
			continue
		}
		n++
		e, ok := left[d.ID]
		if !ok {
			w.t.Errorf("a delivery of %s at %s comes twice or is not wanted", d.EventType, d.Event)
			continue
		}
		delete(left, d.ID)
		payload, err := webhook.Render(e.Event)
		w.check(err)
		if d.SubscriptionID != r.SubscriptionID || d.EventType != e.Type || d.Event != e.at || d.Attempt != 1 ||
			sub.Subscription != nil && d.Subscription != sub.At || string(d.Body) != string(payload.Body(d.ID)) {
			w.t.Errorf("delivery %+v does not fit %s at %s", d, e.Type, e.at)
		}
	}
	for _, e := range left {
		w.t.Errorf("no delivery of %s at %s", e.Type, e.at)
	}
	got, _ := w.replays.Get(r.ID)
	if got.Progress == nil || got.Progress.Done != int64(n) {
		w.t.Errorf("%d deliveries, and the progress is %+v", n, got.Progress)
	}
	for _, rec := range w.all(w.topics.Replays()) {
		w.check(schemas.Validate("webhooks.replays", rec.Value))
	}
}

// having returns the events of the log that are as wanted.
func (w *world) having(wanted func(logged) bool) []logged {
	return slices.DeleteFunc(slices.Clone(w.log), func(e logged) bool { return !wanted(e) })
}

// count fails the test unless a request is counted so.
func (w *world) count(r *webhook.ReplayRequest, want int) {
	w.t.Helper()
	n, estimated, err := replay.Count(w.context(), w.opts(), w.topics, r, limit)
	if err != nil || estimated || n != int64(want) {
		w.t.Errorf("counted %d (estimated: %t, %v), want %d", n, estimated, err, want)
	}
}
