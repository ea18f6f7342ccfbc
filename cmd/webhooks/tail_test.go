package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// noon is when what tests show has happened.
var noon = time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)

// testScreen is a screen that remembers, an hour east of UTC.
type testScreen struct {
	*screen

	out, err *lines
}

func newTestScreen(asJSON bool) testScreen {
	out, err := newLines(), newLines()
	return testScreen{&screen{
		out: out, err: err, json: asJSON, zone: time.FixedZone("", 3600), now: func() time.Time { return noon.Add(time.Minute) }, width: func() int { return 80 },
	}, out, err}
}

// lines is what was written, and a signal with each write.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed and replaced with each write
}

func newLines() *lines { return &lines{more: make(chan struct{})} }

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns when the text has been written.
func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		l.mu.Lock()
		found, more := strings.Contains(l.text.String(), text), l.more
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("it does not show %q:\n%s", text, l)
		}
	}
}

// same compares output with what is wanted, which begins in a line of its own.
func same(t *testing.T, got fmt.Stringer, want string) {
	t.Helper()
	if got.String() != strings.TrimPrefix(want, "\n") {
		t.Errorf("it shows\n%s\nwant%s", got, want)
	}
}

const (
	subscription = "webhook_subscription:7a1c9a52-6f1e-4f0e-9c55-5a3d6f0c8d11"
	anotherOne   = "webhook_subscription:00000000-0000-4000-8000-000000000000"
)

func anEvent() events.Event {
	return events.Event{
		ID: "0e5f3c8e-0000-4000-8000-000000000001", Type: events.Created, Time: noon, Actor: "user:dr-who", Command: "c",
		Data: events.Data{
			AppointmentID: "appointment:1", PatientID: "patient:secret", ProviderID: "provider:secret", AppointmentDate: "2026-05-07",
			StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: "scheduled", Version: 1, Notes: "secret notes",
		},
	}
}

func aDelivery(subscriptionID string) *webhook.Delivery {
	return &webhook.Delivery{
		ID: webhook.DeliveryID("e", "s", ""), SubscriptionID: subscriptionID, EventType: events.Created, Attempt: 1,
		Event: webhook.Position{Partition: 1, Offset: 7}, Body: []byte(`{"event":"appointment.created","data":{"patient_id":"patient:secret"}}`),
	}
}

// fill writes records of each topic that can be followed, all to partition 1.
func fill(t *testing.T, conf kafka.Config) {
	t.Helper()
	topics := conf.Topics()
	must := func(rec *kgo.Record, err error) *kgo.Record {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		rec.Timestamp, rec.Partition = noon, 1
		return rec
	}
	value := func(topic string, key string, v any) *kgo.Record {
		text, err := json.Marshal(v)
		return must(&kgo.Record{Topic: topic, Key: []byte(key), Value: text}, err)
	}
	replayed := aDelivery(subscription)
	replayed.Origin = "replay:r1"
	next := noon.Add(4 * time.Second)
	attempt := webhook.Attempt{
		DeliveryID: replayed.ID, SubscriptionID: subscription, EventType: events.Created, EventPosition: "1/7", Attempt: 2, At: noon,
		Outcome: webhook.Failed, Status: 503, Error: "status", LatencyMS: 12.3, Answer: "you sent patient:secret", NextAttemptAt: &next,
	}
	ended := attempt
	ended.Attempt, ended.Outcome, ended.Status, ended.Error, ended.NextAttemptAt = 3, webhook.Delivered, 200, "", nil
	dead := &webhook.DeadLetter{
		Reason: webhook.ReasonExhausted, Error: "status", At: noon, Source: webhook.Source{Topic: "webhooks.retry.16s", Partition: 1, Offset: 9},
		Delivery: &webhook.DeadDelivery{
			DeliveryID: replayed.ID, SubscriptionID: subscription, EventType: events.Created, EventPosition: "1/7", Body: "patient:secret",
			Attempts: make([]webhook.PastAttempt, 6),
		},
	}
	strange := &kgo.Record{Topic: "webhooks.deliveries", Partition: 2, Offset: 5, Key: []byte("k"), Value: []byte("patient:secret")}
	produce(t, conf,
		must(anEvent().Encode(topics.Events())),
		must(&kgo.Record{Topic: topics.Events(), Value: []byte("patient:secret")}, nil),
		must(aDelivery(anotherOne).Encode(topics.Deliveries())),
		must(replayed.Encode(topics.Deliveries())),
		must(&kgo.Record{Topic: topics.Deliveries(), Key: []byte(subscription), Value: []byte("patient:secret")}, nil),
		value(topics.Attempts(), subscription, attempt),
		value(topics.Attempts(), subscription, ended),
		value(topics.Attempts(), subscription, map[string]any{"attempt": "patient:secret"}),
		must(dead.Encode(topics.DeadLetters())),
		must(webhook.Unreadable(topics.DeadLetters(), strange, io.ErrUnexpectedEOF, noon)),
		value(topics.DeadLetters(), subscription, "patient:secret"),
	)
}

func produce(t *testing.T, conf kafka.Config, records ...*kgo.Record) {
	t.Helper()
	client := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestTail(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	fill(t, conf)
	id := aDelivery("").ID
	for _, c := range []struct {
		cmd  tailCmd
		want string
	}{
		{tailCmd{What: "events", Max: 2}, `
2026-05-06 13:00:00  1/0       appointment.created    0e5f3c8e-0000-4000-8000-000000000001
2026-05-06 13:00:00  1/1       -                      NOT READABLE
`},
		{tailCmd{What: "deliveries", Max: 3}, `
2026-05-06 13:00:00  1/0       appointment.created    ` + id + ` → ` + anotherOne + `
2026-05-06 13:00:00  1/1       appointment.created    ` + id + ` → ` + subscription + `  replay:r1
2026-05-06 13:00:00  1/2       -                      NOT READABLE
`},
		{tailCmd{What: "deliveries", Max: 1, Subscription: subscription}, `
2026-05-06 13:00:00  1/1       appointment.created    ` + id + ` → ` + subscription + `  replay:r1
`},
		{tailCmd{What: "attempts", Max: 3}, `
2026-05-06 13:00:00  1/0       appointment.created    ` + id + ` → ` + subscription + `  attempt 2 failed  503  "status"  12ms  next at 13:00:04
2026-05-06 13:00:00  1/1       appointment.created    ` + id + ` → ` + subscription + `  attempt 3 delivered  200  12ms
2026-05-06 13:00:00  1/2       -                      NOT READABLE
`},
		{tailCmd{What: "dead-letters", Max: 3}, `
2026-05-06 13:00:00  1/0       appointment.created    ` + id + ` → ` + subscription + `  exhausted  after 6 attempts  "status"  from webhooks.retry.16s 1/9
2026-05-06 13:00:00  1/1       -                      unreadable  "unexpected EOF"  from webhooks.deliveries 2/5
2026-05-06 13:00:00  1/2       -                      NOT READABLE
`},
	} {
		t.Run(c.cmd.What, func(t *testing.T) {
			c.cmd.Kafka, c.cmd.From = conf, earliest
			s := newTestScreen(false)
			if err := c.cmd.run(t.Context(), s.screen); err != nil {
				t.Fatal(err)
			}
			same(t, s.out, c.want)
		})
	}
}

// Nothing of an event's data and no body is shown, in whatever form, unless it is
// asked for; then it is.
func TestTailKeepsDataSecret(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	fill(t, conf)
	for what, records := range map[string]int{"events": 2, "deliveries": 3, "attempts": 3, "dead-letters": 3} {
		for _, form := range []bool{false, true} {
			for _, data := range []bool{false, true} {
				s := newTestScreen(form)
				cmd := tailCmd{What: what, Kafka: conf, From: earliest, Max: records, Data: data}
				if err := cmd.run(t.Context(), s.screen); err != nil {
					t.Fatal(err)
				}
				if shown := s.out.String(); strings.Contains(shown, "secret") != data || strings.Contains(shown, "dr-who") != (data && what == "events") {
					t.Errorf("%s, JSON %t, data %t:\n%s", what, form, data, shown)
				}
			}
		}
	}
}

func TestTailJSON(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	fill(t, conf)
	id := aDelivery("").ID
	for _, c := range []struct {
		cmd  tailCmd
		want string
	}{
		{tailCmd{What: "attempts", Max: 2}, `
{"at":"2026-05-06T12:00:00Z","position":"1/0","event_type":"appointment.created","delivery_id":"` + id + `","subscription_id":"` + subscription + `","event_position":"1/7","attempt":2,"outcome":"failed","status":503,"error":"status","latency_ms":12.3,"next_attempt_at":"2026-05-06T12:00:04Z"}
{"at":"2026-05-06T12:00:00Z","position":"1/1","event_type":"appointment.created","delivery_id":"` + id + `","subscription_id":"` + subscription + `","event_position":"1/7","attempt":3,"outcome":"delivered","status":200,"latency_ms":12.3}
`},
		{tailCmd{What: "events", Max: 2, Data: true}, `
{"at":"2026-05-06T12:00:00Z","position":"1/0","event_type":"appointment.created","event_id":"0e5f3c8e-0000-4000-8000-000000000001","record":{"key":"provider:secret","headers":{"ce_actor":"user:dr-who","ce_commandid":"c","ce_id":"0e5f3c8e-0000-4000-8000-000000000001","ce_partitionkey":"provider:secret","ce_schemaversion":"1","ce_source":"/arsmedicatech/appointments","ce_specversion":"1.0","ce_subject":"appointment:1","ce_time":"2026-05-06T12:00:00Z","ce_type":"appointment.created","content-type":"application/json"},"value":{"appointment_id":"appointment:1","patient_id":"patient:secret","provider_id":"provider:secret","appointment_date":"2026-05-07","start_time":"10:00","end_time":"10:30","appointment_type":"consultation","status":"scheduled","version":1,"notes":"secret notes"}}}
{"at":"2026-05-06T12:00:00Z","position":"1/1","unreadable":true,"record":{"key":"","headers":{},"value":"patient:secret"}}
`},
	} {
		c.cmd.Kafka, c.cmd.From = conf, earliest
		s := newTestScreen(true)
		if err := c.cmd.run(t.Context(), s.screen); err != nil {
			t.Fatal(err)
		}
		same(t, s.out, c.want)
	}
}

// From latest on only what is written afterwards is shown, until it is told to
// end; from a time on, what was written since.
func TestTailFrom(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Deliveries()
	at := func(offset time.Duration, id string) *kgo.Record {
		d := aDelivery(subscription)
		d.ID = id
		rec, err := d.Encode(topic)
		if err != nil {
			t.Fatal(err)
		}
		rec.Timestamp = noon.Add(offset)
		return rec
	}
	first, second, third := webhook.DeliveryID("1", "", ""), webhook.DeliveryID("2", "", ""), webhook.DeliveryID("3", "", "")
	produce(t, conf, at(-time.Hour, first), at(0, second))

	since := newTestScreen(false)
	cmd := tailCmd{What: "deliveries", Kafka: conf, From: "2m", Max: 1} // it is a minute past noon
	if err := cmd.run(t.Context(), since.screen); err != nil {
		t.Fatal(err)
	}
	if shown := since.out.String(); strings.Contains(shown, first) || !strings.Contains(shown, second) {
		t.Errorf("of the last two minutes it shows\n%s", shown)
	}

	s := newTestScreen(false)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	cmd = tailCmd{What: "deliveries", Kafka: conf, From: latest}
	go func() { ended <- cmd.run(ctx, s.screen) }()
	s.err.await(t, "following")
	produce(t, conf, at(time.Second, third))
	s.out.await(t, third)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := strings.Count(s.out.String(), "\n"); n != 1 {
		t.Errorf("it shows %d records, want the last alone:\n%s", n, s.out)
	}
}

// What is not committed is not shown.
func TestTailReadsCommitted(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Deliveries()
	client := testenv.Client(t, conf, kgo.TransactionalID(conf.TopicPrefix+"tail"))
	for i, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		d := aDelivery(subscription)
		d.ID = webhook.DeliveryID(fmt.Sprint(i), "", "")
		rec, err := d.Encode(topic)
		if err != nil {
			t.Fatal(err)
		}
		testenv.Transaction(t, client, end, rec)
	}
	s := newTestScreen(false)
	cmd := tailCmd{What: "deliveries", Kafka: conf, From: earliest, Max: 1}
	if err := cmd.run(t.Context(), s.screen); err != nil {
		t.Fatal(err)
	}
	if want := webhook.DeliveryID("1", "", ""); !strings.Contains(s.out.String(), want) {
		t.Errorf("it does not show %s, the committed one:\n%s", want, s.out)
	}
}

func TestTailRefuses(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	other := conf
	other.TopicPrefix += "other."
	for text, cmd := range map[string]tailCmd{
		"KAFKA_BROKERS is not set":            {What: "events", From: latest},
		"--from: \"yesterday\" is not":        {What: "events", From: "yesterday", Kafka: conf},
		"--from: \"-5m\" is not":              {What: "events", From: "-5m", Kafka: conf},
		"--subscription: events are nobody's": {What: "events", From: latest, Kafka: conf, Subscription: subscription},
		"-n must be":                          {What: "events", From: latest, Kafka: conf, Max: -1},
		"is TOPIC_PREFIX right":               {What: "events", From: latest, Kafka: other},
	} {
		err := cmd.run(t.Context(), newTestScreen(false).screen)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("the error is %v, want one that says %s", err, text)
		}
	}
	topics, err := kadm.NewClient(testenv.Client(t, conf)).ListTopics(t.Context(), other.Topics().Events())
	if err != nil || topics.Has(other.Topics().Events()) {
		t.Errorf("looking made a topic (%v)", err)
	}
}
