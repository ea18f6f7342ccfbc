package webhook_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

func TestDeliveryIDIsDerivedAndLooksLikeAVersion4UUID(t *testing.T) {
	a := webhook.DeliveryID("event-1", "sub-1", "")
	if a != webhook.DeliveryID("event-1", "sub-1", "") {
		t.Error("the same event and subscription make another id")
	}
	seen := map[string]bool{}
	for _, id := range []string{a, webhook.DeliveryID("event-2", "sub-1", ""), webhook.DeliveryID("event-1", "sub-2", ""), webhook.DeliveryID("event-1s", "ub-1", ""), webhook.DeliveryID("event-1", "sub-1", "replay:1")} {
		u, err := uuid.Parse(id)
		if err != nil || u.Version() != 4 || u.Variant() != uuid.RFC4122 {
			t.Errorf("%s is no UUID version 4: %v", id, err)
		}
		if seen[id] {
			t.Errorf("%s comes twice", id)
		}
		seen[id] = true
	}
}

func TestDeliverySurvivesItsRecord(t *testing.T) {
	for name, d := range map[string]webhook.Delivery{
		"first": {
			ID: webhook.DeliveryID("e", "s", ""), SubscriptionID: "s", EventType: events.Created, Attempt: 1,
			Event: webhook.Position{Partition: 3, Offset: 1234}, Subscription: webhook.Position{Offset: 12}, Body: []byte(`{}`),
		},
		"replay": {
			ID: webhook.DeliveryID("e", "s", "replay:r"), SubscriptionID: "s", EventType: events.Created, Origin: "replay:r", Attempt: 1,
			Event: webhook.Position{Partition: 3, Offset: 1234}, Subscription: webhook.Position{Offset: 12}, Body: []byte(`{}`),
		},
		"test": {
			ID: webhook.DeliveryID("e", "s", "test:t"), SubscriptionID: "s", EventType: events.Created, Origin: "test:t", Attempt: 1,
			Subscription: webhook.Position{Offset: 12}, Body: []byte(`{}`),
		},
		"retry": {
			ID: webhook.DeliveryID("e", "s", ""), SubscriptionID: "s", EventType: events.Created, Attempt: 2,
			NotBefore: time.UnixMilli(1_700_000_000_123), Body: []byte(`{}`),
			History: []webhook.PastAttempt{{Attempt: 1, At: time.Unix(1_700_000_000, 0).UTC(), Status: 500, Error: "status", LatencyMS: 1.5}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := d.Encode("t")
			if err != nil {
				t.Fatal(err)
			}
			got, err := webhook.ParseDelivery(r)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, d) {
				t.Errorf("got  %+v\nwant %+v", *got, d)
			}
		})
	}
}

func TestUnreadableDeliveries(t *testing.T) {
	good := func() *kgo.Record {
		d := webhook.Delivery{ID: webhook.DeliveryID("e", "s", ""), SubscriptionID: "s", EventType: "x", Attempt: 2, Body: []byte("{}")}
		r, err := d.Encode("t")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	set := func(key, value string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			for i := range r.Headers {
				if r.Headers[i].Key == key {
					r.Headers[i].Value = []byte(value)
				}
			}
		}
	}
	for name, spoil := range map[string]func(*kgo.Record){
		"no key":            func(r *kgo.Record) { r.Key = nil },
		"no body":           func(r *kgo.Record) { r.Value = nil },
		"no headers":        func(r *kgo.Record) { r.Headers = nil },
		"id":                set("delivery_id", "1"),
		"event position":    set("event_position", "x"),
		"negative position": set("subscription_position", "0/-1"),
		"attempt":           set("attempt", "0"),
		"not before":        set("not_before", "soon"),
		"history":           set("history", "{"),
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			spoil(r)
			if _, err := webhook.ParseDelivery(r); err == nil {
				t.Error("taken for a delivery")
			}
		})
	}
}

func TestPayload(t *testing.T) {
	data := events.Data{
		AppointmentID: "appointment:1", PatientID: "patient:<1>", ProviderID: "provider:1", AppointmentDate: "2026-01-02",
		StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: "scheduled", Version: 1, Notes: "private",
	}
	at := time.Date(2026, 1, 1, 12, 0, 0, 123e6, time.UTC)
	const seven = `"appointment_id":"appointment:1","patient_id":"patient:\u003c1\u003e","provider_id":"provider:1",` +
		`"appointment_date":"2026-01-02","start_time":"10:00","end_time":"10:30","appointment_type":"consultation"`
	for kind, more := range map[string]struct {
		edit func(*events.Data)
		want string
	}{
		events.Created:   {func(*events.Data) {}, ``},
		events.Updated:   {func(d *events.Data) { d.Changes = map[string]string{"notes": "n"} }, `,"status":"scheduled","changes":{"notes":"n"}`},
		events.Confirmed: {func(d *events.Data) { d.Status = "confirmed" }, `,"status":"confirmed"`},
		events.Completed: {func(d *events.Data) { d.Status = "completed" }, `,"status":"completed"`},
		events.Cancelled: {func(d *events.Data) { d.Status = "cancelled"; d.Reason = "ill" }, `,"status":"cancelled","reason":"ill"`},
	} {
		t.Run(kind, func(t *testing.T) {
			d := data
			more.edit(&d)
			p, err := webhook.Render(events.Event{ID: "e", Type: kind, Time: at, Data: d})
			if err != nil {
				t.Fatal(err)
			}
			id := webhook.DeliveryID("e", "s", "")
			want := `{"event":"` + kind + `","timestamp":"2026-01-01T12:00:00Z","delivery_id":"` + id + `","data":{` + seven + more.want + `}}`
			if got := string(p.Body(id)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if !json.Valid(p.Body(id)) || strings.Contains(string(p.Body(id)), "0000") {
				t.Error("the placeholder is still there")
			}
		})
	}
}

func TestSchedule(t *testing.T) {
	s := webhook.DefaultSchedule()
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		attempt    int
		retryAfter time.Duration
		delay, due time.Duration
		ok         bool
	}{
		{1, 0, time.Second, time.Second, true},
		{2, 0, 2 * time.Second, 2 * time.Second, true},
		{5, 0, 16 * time.Second, 16 * time.Second, true},
		{6, 0, 0, 0, false},
		{1, 30 * time.Second, time.Second, 30 * time.Second, true},
		{3, time.Second, 4 * time.Second, 4 * time.Second, true}, // later, never earlier
		{1, time.Hour, time.Second, time.Minute, true},           // up to the cap
		{6, time.Hour, 0, 0, false},
	} {
		delay, due, ok := s.Next(c.attempt, now, c.retryAfter, time.Minute)
		if delay != c.delay || ok != c.ok || ok && due.Sub(now) != c.due {
			t.Errorf("attempt %d, Retry-After %s: got %s, %s, %t", c.attempt, c.retryAfter, delay, due.Sub(now), ok)
		}
	}
	for _, text := range []string{"", "1s,", "0s", "-1s", "1ns", "soon"} {
		if _, err := webhook.ParseSchedule(text); err == nil {
			t.Errorf("%q is taken for a schedule", text)
		}
	}
}
