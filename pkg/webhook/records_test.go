package webhook_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/schemas"
)

const (
	subscriptionID = "webhook_subscription:9c8b7a65-4321-4fed-8cba-0987654321ab"
	placeholder    = "00000000-0000-0000-0000-000000000000"
)

func event(kind, status string) events.Event {
	return events.Event{ID: "e1", Type: kind, Time: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC), Data: events.Data{
		AppointmentID: "appointment:5d2f1c7e-8a34-4b0d-9c3e-7f6a5b4c3d21", PatientID: "patient:1", ProviderID: "provider:1",
		AppointmentDate: "2026-09-15", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: status, Version: 1,
	}}
}

// Text that is hostile to JSON, HTML or to Render itself arrives as it was.
func TestPayloadKeepsAnyText(t *testing.T) {
	id := webhook.DeliveryID("e1", subscriptionID, "")
	for _, text := range []string{
		placeholder, `","delivery_id":"` + placeholder + `"`, "<script>&amp;</script>", "Zoë 医生 😀", "\u2028\u2029", "tab\tquote\"back\\slash", "",
	} {
		e := event(events.Cancelled, "cancelled")
		e.Data.PatientID, e.Data.Reason = "patient:"+text, text
		p, err := webhook.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		body := p.Body(id)
		var got struct {
			DeliveryID string `json:"delivery_id"`
			Data       struct {
				PatientID string `json:"patient_id"`
				Reason    string `json:"reason"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if got.DeliveryID != id || got.Data.PatientID != "patient:"+text || got.Data.Reason != text {
			t.Errorf("%q arrives as %+v", text, got)
		}
		if err := schemas.ValidateBody(body); err != nil {
			t.Error(err)
		}
	}
}

// The id in the body is the headers', and one payload serves many deliveries.
func TestPayloadsOfOneEventDifferInTheIDOnly(t *testing.T) {
	p, err := webhook.Render(event(events.Created, "scheduled"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := webhook.DeliveryID("e1", "a", ""), webhook.DeliveryID("e1", "b", "")
	first := p.Body(a)
	before := bytes.Clone(first)
	second := p.Body(b)
	if !bytes.Equal(first, before) {
		t.Error("the second body changed the first")
	}
	if got := strings.ReplaceAll(string(second), b, a); got != string(first) {
		t.Errorf("got  %s\nwant %s", got, first)
	}
}

// What is on the log for the calendar's sake is not for receivers.
func TestPayloadTellsNoMoreThanTheContract(t *testing.T) {
	e := event(events.Created, "scheduled")
	e.Actor, e.Command, e.Idempotency = "user:private", "command:private", "key:private"
	e.Data.Notes, e.Data.Location = "notes:private", "location:private"
	e.Data.Unknown = map[string]jsontext.Value{"newer": jsontext.Value(`"private"`)}
	p, err := webhook.Render(e)
	if err != nil {
		t.Fatal(err)
	}
	if body := string(p.Body(webhook.DeliveryID("e1", "s", ""))); strings.Contains(body, "private") {
		t.Errorf("it tells too much: %s", body)
	}
}

func TestPosition(t *testing.T) {
	for _, p := range []webhook.Position{{}, {Partition: 3, Offset: 1234}, {Partition: 1<<31 - 1, Offset: 1<<63 - 1}} {
		if got, err := webhook.ParsePosition(p.String()); err != nil || got != p {
			t.Errorf("%s became %s, %v", p, got, err)
		}
	}
	for _, text := range []string{"", "/", "1", "1/", "/1", "-1/0", "0/-1", "1/2/3", "1 /2", "0x1/2", "2147483648/0", "0/9223372036854775808", "a/b"} {
		if p, err := webhook.ParsePosition(text); err == nil {
			t.Errorf("%q is taken for %s", text, p)
		}
	}
}

func TestTopics(t *testing.T) {
	n := webhook.Topics{Prefix: "eu."}
	got := []string{n.Events(), n.Subscriptions(), n.Deliveries(), n.Attempts(), n.DeadLetters(), n.Retry(16 * time.Second), n.Retry(90 * time.Second), n.Retry(50 * time.Millisecond)}
	want := []string{
		"eu.appointments.events", "eu.webhooks.subscriptions", "eu.webhooks.deliveries", "eu.webhooks.attempts", "eu.webhooks.dead-letters",
		"eu.webhooks.retry.16s", "eu.webhooks.retry.1m30s", "eu.webhooks.retry.50ms",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseSchedule(t *testing.T) {
	got, err := webhook.ParseSchedule(" 1s, 2s,1s,500ms ")
	if err != nil || !slices.Equal(got, webhook.Schedule{time.Second, 2 * time.Second, time.Second, 500 * time.Millisecond}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got := got.Delays(); !slices.Equal(got, []time.Duration{time.Second, 2 * time.Second, 500 * time.Millisecond}) {
		t.Errorf("distinct delays: %v", got)
	}
	if _, err := webhook.ParseSchedule(strings.Repeat("1s,", 20) + "1s"); err == nil {
		t.Error("21 delays are taken")
	}
	if got, err := webhook.ParseSchedule("1s,2s,4s,8s,16s"); err != nil || !slices.Equal(got, webhook.DefaultSchedule()) {
		t.Errorf("the default is not as promised: %v, %v", got, err)
	}
}

func TestAfter(t *testing.T) {
	s := webhook.Schedule{time.Second, 5 * time.Second}
	for attempt, want := range map[int]time.Duration{-1: 0, 0: 0, 1: time.Second, 2: 5 * time.Second, 3: 0} {
		if got, ok := s.After(attempt); got != want || ok != (want != 0) {
			t.Errorf("after attempt %d: %s, %t", attempt, got, ok)
		}
	}
}

func TestAttemptSurvivesItsRecord(t *testing.T) {
	next := time.Date(2026, 9, 1, 12, 0, 1, 44e6, time.UTC)
	want := webhook.Attempt{
		DeliveryID: webhook.DeliveryID("e1", subscriptionID, ""), SubscriptionID: subscriptionID, EventType: events.Created,
		EventPosition: "3/1234", Attempt: 1, At: next.Add(-time.Second), Outcome: webhook.Failed, Status: 503, Error: "status",
		LatencyMS: 12.5, Answer: "down", NextAttemptAt: &next,
	}
	value, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := webhook.ParseAttempt(value)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := schemas.Validate("webhooks.attempts", value); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"", "null", "[]", "{}", `{"delivery_id":"d","subscription_id":"s","attempt":0,"outcome":"failed"}`,
		`{"delivery_id":"d","subscription_id":"s","attempt":1}`, `{"delivery_id":"d","attempt":1,"outcome":"failed"}`,
		`{"subscription_id":"s","attempt":1,"outcome":"failed"}`, `{"delivery_id":1}`,
	} {
		if _, err := webhook.ParseAttempt([]byte(bad)); err == nil {
			t.Errorf("%q is taken for an attempt", bad)
		}
	}
}

func subscription() webhook.Subscription {
	at := time.Date(2026, 9, 1, 12, 0, 0, 123e6, time.UTC)
	return webhook.Subscription{
		ID: subscriptionID, EventName: "appointment.*", TargetURL: "https://clinic.example/hook", Enabled: true, Secret: "k1.c2VhbGVk",
		CreatedAt: at, UpdatedAt: at, CreatedBy: "user:1", UpdatedBy: "user:2", Version: 2,
		Rules: []webhook.Rule{{From: []int64{0, 5}, EventName: "appointment.created"}, {From: []int64{7, 5}, EventName: "appointment.*", Active: true}},
		Key: &webhook.Key{Fingerprint: strings.Repeat("a", 32) + "." + strings.Repeat("b", 32), At: at,
			EventName: "appointment.created", TargetURL: "https://clinic.example/hook"},
	}
}

func TestSubscriptionSurvivesItsRecord(t *testing.T) {
	want := subscription()
	value, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := webhook.ParseSubscription([]byte(want.ID), value)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := schemas.Validate("webhooks.subscriptions", value); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*webhook.Subscription){
		"id": func(s *webhook.Subscription) { s.ID = "" }, "other id": func(s *webhook.Subscription) { s.ID += "x" },
		"event name": func(s *webhook.Subscription) { s.EventName = "" }, "target": func(s *webhook.Subscription) { s.TargetURL = "" },
		"version": func(s *webhook.Subscription) { s.Version = 0 }, "rules": func(s *webhook.Subscription) { s.Rules = nil },
	} {
		s := subscription()
		spoil(&s)
		value, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := webhook.ParseSubscription([]byte(subscriptionID), value); err == nil {
			t.Errorf("%s: taken for a subscription", name)
		}
	}
	for _, bad := range []string{"", "null", "[]", "{", `{"id":1}`} {
		if _, err := webhook.ParseSubscription(nil, []byte(bad)); err == nil {
			t.Errorf("%q is taken for a subscription", bad)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
	r := &kgo.Record{Topic: "webhooks.deliveries", Partition: 2, Offset: 7, Key: []byte{0xff, 'k'}, Value: []byte("no\x00JSON\xfe"),
		Headers: []kgo.RecordHeader{{Key: "delivery_id", Value: []byte{0x80}}, {Key: "empty"}}}
	for name, c := range map[string]struct{ key, value []byte }{
		"bytes": {r.Key, r.Value}, "nothing": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			found := *r
			found.Key, found.Value = c.key, c.value
			dead, err := webhook.Unreadable("webhooks.dead-letters", &found, errors.New("it is no delivery"), now)
			if err != nil {
				t.Fatal(err)
			}
			if dead.Topic != "webhooks.dead-letters" || !bytes.Equal(dead.Key, c.key) {
				t.Errorf("topic %s, key %q", dead.Topic, dead.Key)
			}
			if err := schemas.Validate("webhooks.dead-letters", dead.Value); err != nil {
				t.Error(err)
			}
			var got webhook.DeadLetter
			if err := json.Unmarshal(dead.Value, &got); err != nil {
				t.Fatal(err)
			}
			if got.Reason != webhook.ReasonUnreadable || got.Error != "it is no delivery" || !got.At.Equal(now) || got.At.Location() != time.UTC ||
				got.Source != (webhook.Source{Topic: "webhooks.deliveries", Partition: 2, Offset: 7}) {
				t.Errorf("got %+v", got)
			}
			if !bytes.Equal(got.Record.Key, c.key) || !bytes.Equal(got.Record.Value, c.value) || !bytes.Equal(got.Record.Headers["delivery_id"], []byte{0x80}) {
				t.Errorf("the record is not as it was: %+v", got.Record)
			}
		})
	}
	for what, large := range map[string]kgo.Record{
		"value": {Value: make([]byte, 900_000)}, "key": {Key: make([]byte, 500_000)},
		"headers": {Headers: []kgo.RecordHeader{{Key: strings.Repeat("<", 200_000)}}},
	} {
		large.Topic, large.Partition, large.Offset = r.Topic, r.Partition, r.Offset
		dead, err := webhook.Unreadable("webhooks.dead-letters", &large, errors.New("it is no delivery"), now)
		if err != nil {
			t.Fatal(err)
		}
		var got webhook.DeadLetter
		if err := json.Unmarshal(dead.Value, &got); err != nil || len(dead.Key) > 0 || got.Source != webhook.SourceOf(r) || got.Error != "it is no delivery" || len(dead.Value) > 1000 {
			t.Errorf("a large %s: %d bytes of key, %d of value (%v)", what, len(dead.Key), len(dead.Value), err)
		}
		if err := schemas.Validate("webhooks.dead-letters", dead.Value); err != nil {
			t.Error(err)
		}
	}
	exhausted := webhook.DeadLetter{
		Reason: webhook.ReasonExhausted, Error: "the last attempt failed: timeout", At: now.UTC(), Source: webhook.SourceOf(r),
		Delivery: &webhook.DeadDelivery{
			DeliveryID: webhook.DeliveryID("e1", subscriptionID, ""), SubscriptionID: subscriptionID, EventType: events.Created,
			EventPosition: "0/1", Body: "{}", Attempts: []webhook.PastAttempt{{Attempt: 1, At: now.UTC(), Error: "timeout", LatencyMS: 10000}},
		},
	}
	dead, err := exhausted.Encode("webhooks.dead-letters")
	if err != nil {
		t.Fatal(err)
	}
	if string(dead.Key) != subscriptionID {
		t.Errorf("the key is %q", dead.Key)
	}
	if err := schemas.Validate("webhooks.dead-letters", dead.Value); err != nil {
		t.Error(err)
	}
}
