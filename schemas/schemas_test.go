package schemas_test

import (
	"encoding/json"
	"io/fs"
	"maps"
	"testing"

	"github.com/arsmedicatech/webhooks/schemas"
)

// topics names a topic for each file, so that its examples can be checked.
var topics = map[string]string{
	"appointment-event.schema.json":    "appointments.events",
	"webhook-subscription.schema.json": "webhooks.subscriptions",
	"webhook-delivery.schema.json":     "webhooks.deliveries",
	"webhook-attempt.schema.json":      "webhooks.attempts",
	"webhook-dead-letter.schema.json":  "webhooks.dead-letters",
	"webhook-replay.schema.json":       "webhooks.replays",
	"webhook-body.schema.json":         "webhooks.retry.1s", // the same by reference
}

type object = map[string]any

type schema struct {
	Schema   string   `json:"$schema"`
	ID       string   `json:"$id"`
	Required []string `json:"required"`
	Examples []object `json:"examples"`
}

func read(t *testing.T, name string) schema {
	t.Helper()
	text, err := schemas.Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	value, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// Every example is valid, and no longer is without a field that is required.
func TestExamples(t *testing.T) {
	names, err := fs.Glob(schemas.Files, "*.schema.json")
	if err != nil || len(names) != len(topics) {
		t.Fatalf("files are %v (%v), want %d", names, err, len(topics))
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			s := read(t, name)
			if s.Schema != "https://json-schema.org/draft/2020-12/schema" || s.ID != "https://github.com/arsmedicatech/webhooks/schemas/"+name {
				t.Errorf("$schema is %q, $id %q", s.Schema, s.ID)
			}
			if err := schemas.Validate(topics[name], []byte(`[]`)); err == nil {
				t.Error("a list is valid")
			}
			for i, example := range s.Examples {
				if err := schemas.Validate(topics[name], encode(t, example)); err != nil {
					t.Errorf("example %d: %v", i, err)
				}
				newer := maps.Clone(example)
				newer["of_a_newer_version"] = true
				if err := schemas.Validate(topics[name], encode(t, newer)); err != nil {
					t.Errorf("example %d with a newer field: %v", i, err)
				}
				for _, field := range s.Required {
					spoilt := maps.Clone(example)
					delete(spoilt, field)
					if schemas.Validate(topics[name], encode(t, spoilt)) == nil {
						t.Errorf("example %d is valid without %s", i, field)
					}
				}
			}
		})
	}
}

// set returns a copy in which one field, given by its path, has another value;
// nil takes it away.
func set(o object, value any, path ...string) object {
	o = maps.Clone(o)
	switch {
	case len(path) > 1:
		o[path[0]] = set(o[path[0]].(object), value, path[1:]...)
	case value == nil:
		delete(o, path[0])
	default:
		o[path[0]] = value
	}
	return o
}

func TestSpoiltExamples(t *testing.T) {
	for _, c := range []struct {
		file    string
		example int
		value   any
		path    []string
	}{
		{"appointment-event.schema.json", 0, "postponed", []string{"status"}},
		{"appointment-event.schema.json", 0, "haircut", []string{"appointment_type"}},
		{"appointment-event.schema.json", 0, "24:00", []string{"start_time"}},
		{"appointment-event.schema.json", 0, "2026-02-30", []string{"appointment_date"}},
		{"appointment-event.schema.json", 0, 0, []string{"version"}},
		{"appointment-event.schema.json", 0, "appointment:1", []string{"appointment_id"}},
		{"appointment-event.schema.json", 1, 7, []string{"changes", "notes"}},
		{"webhook-body.schema.json", 0, "appointment.no_show", []string{"event"}},
		{"webhook-body.schema.json", 0, "2026-09-01T12:00:00+02:00", []string{"timestamp"}},
		{"webhook-body.schema.json", 0, "0a1e5f52-6a0c-1a6e-9d8f-3f1f5f0f9a11", []string{"delivery_id"}},
		{"webhook-body.schema.json", 0, nil, []string{"data", "patient_id"}},
		{"webhook-body.schema.json", 1, nil, []string{"data", "changes"}},
		{"webhook-body.schema.json", 1, object{}, []string{"data", "changes"}},
		{"webhook-body.schema.json", 2, nil, []string{"data", "reason"}},
		{"webhook-body.schema.json", 3, "scheduled", []string{"data", "status"}},
		{"webhook-body.schema.json", 4, nil, []string{"data", "status"}},
		{"webhook-body.schema.json", 5, false, []string{"test"}},
		{"webhook-subscription.schema.json", 0, "appointment.deleted", []string{"event_name"}},
		{"webhook-subscription.schema.json", 0, "secret", []string{"secret"}},
		{"webhook-subscription.schema.json", 0, []object{}, []string{"rules"}},
		{"webhook-subscription.schema.json", 0, []object{{"from": nil, "event_name": "appointment.*", "active": true}}, []string{"rules"}},
		{"webhook-subscription.schema.json", 0, "ftp://clinic.example", []string{"target_url"}},
		{"webhook-subscription.schema.json", 0, "my key", []string{"key", "fingerprint"}},
		{"webhook-attempt.schema.json", 0, nil, []string{"next_attempt_at"}},
		{"webhook-attempt.schema.json", 0, nil, []string{"error"}},
		{"webhook-attempt.schema.json", 2, "lost", []string{"outcome"}},
		{"webhook-attempt.schema.json", 0, "3-1234", []string{"event_position"}},
		{"webhook-attempt.schema.json", 1, 302, []string{"status"}},
		{"webhook-attempt.schema.json", 1, "2026-09-01T12:00:01Z", []string{"next_attempt_at"}},
		{"webhook-attempt.schema.json", 3, 200, []string{"status"}},
		{"webhook-replay.schema.json", 0, "other", []string{"kind"}},
		{"webhook-replay.schema.json", 0, "progress", []string{"kind"}},
		{"webhook-replay.schema.json", 0, "deliveries", []string{"source"}},
		{"webhook-replay.schema.json", 0, []int{-1, 0, 0}, []string{"from"}},
		{"webhook-replay.schema.json", 0, []string{}, []string{"event_names"}},
		{"webhook-replay.schema.json", 0, 0, []string{"rate"}},
		{"webhook-replay.schema.json", 1, nil, []string{"by"}},
		{"webhook-replay.schema.json", 2, "waiting", []string{"state"}},
		{"webhook-replay.schema.json", 2, nil, []string{"positions"}},
		{"webhook-dead-letter.schema.json", 0, "unreadable", []string{"reason"}},
		{"webhook-dead-letter.schema.json", 0, nil, []string{"delivery"}},
		{"webhook-dead-letter.schema.json", 0, "no JSON", []string{"delivery", "body"}},
		{"webhook-dead-letter.schema.json", 0, -1, []string{"source", "offset"}},
		{"webhook-dead-letter.schema.json", 1, nil, []string{"record"}},
		{"webhook-dead-letter.schema.json", 1, "%", []string{"record", "value"}},
	} {
		spoilt := set(read(t, c.file).Examples[c.example], c.value, c.path...)
		if schemas.Validate(topics[c.file], encode(t, spoilt)) == nil {
			t.Errorf("%s: example %d is valid with %v=%v", c.file, c.example, c.path, c.value)
		}
	}
}

// What is valid as an event of one type is not as one of another.
func TestEventTypes(t *testing.T) {
	examples := read(t, "appointment-event.schema.json").Examples
	values := map[string]object{
		"appointment.created":   examples[0],
		"appointment.updated":   examples[1],
		"appointment.cancelled": examples[2],
	}
	for _, status := range []string{"confirmed", "completed", "no_show"} {
		step := set(examples[2], nil, "reason")
		values["appointment."+status] = set(step, status, "status")
	}
	for eventType := range values {
		for other, value := range values {
			err := schemas.ValidateEvent(eventType, encode(t, value))
			if (err == nil) != (other == eventType) {
				t.Errorf("%s as %s: %v", other, eventType, err)
			}
		}
	}
	if schemas.ValidateEvent("appointment.moved", encode(t, examples[0])) == nil {
		t.Error("an unknown type is valid")
	}
}

func TestValidateKnowsTombstonesAndTopics(t *testing.T) {
	for _, topic := range []string{"webhooks.subscriptions", "webhooks.replays"} {
		if err := schemas.Validate(topic, nil); err != nil {
			t.Errorf("tombstone of %s: %v", topic, err)
		}
	}
	for topic, value := range map[string]string{
		"webhooks.attempts": "", "webhooks.deliveries": "{", "webhooks.subscriptions": "", "elsewhere": "{}",
	} {
		if schemas.Validate(topic, []byte(value)) == nil {
			t.Errorf("%q is valid on %s", value, topic)
		}
	}
}
