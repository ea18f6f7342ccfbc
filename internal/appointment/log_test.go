package appointment_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// golden reads an event as it was once recorded.
func golden(t *testing.T) *kgo.Record {
	t.Helper()
	text, err := os.ReadFile("testdata/event-schema-1.json")
	if err != nil {
		t.Fatal(err)
	}
	var recorded struct {
		Key     string          `json:"partition_key"`
		Headers [][2]string     `json:"headers"`
		Value   json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(text, &recorded); err != nil {
		t.Fatal(err)
	}
	var value bytes.Buffer
	if err := json.Compact(&value, recorded.Value); err != nil {
		t.Fatal(err)
	}
	r := &kgo.Record{Key: []byte(recorded.Key), Value: value.Bytes()}
	for _, h := range recorded.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	return r
}

// An event that was recorded with the first schema is folded and can be built
// on, for ever.
func TestRecordedEventFolds(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	r := golden(t)
	r.Topic = conf.Topics().Events()
	r.Partition = events.Partition(string(r.Key), testenv.Partitions)
	produce(t, conf, r)
	s := start(t, conf, "http://a")
	const id = "appointment:3c1f6c52-95a5-4c6f-a8b7-40a1f1b0d7aa"
	created := time.Date(2025, 11, 3, 8, 15, 30, 250_000_000, time.UTC)
	want := appointment.Appointment{
		ID: id, PatientID: "patient:42", ProviderID: "provider:0b6f2a3e-7a55-4b0c-9c1d-6f2d1f0a9e11", Date: "2025-11-10",
		Start: "14:00", End: "14:45", Type: "follow_up", Status: appointment.Scheduled, Notes: "Brings her own results",
		Location: "Room 3", CreatedAt: created, UpdatedAt: created, Version: 1,
	}
	got, err := s.Get(deadline(t), id)
	if err != nil || *got != want {
		t.Fatalf("%+v (%v), want %+v", got, err, want)
	}
	c := appointment.Create{PatientID: "patient:1", ProviderID: want.ProviderID, Date: want.Date, Start: "14:30", End: "15:00"}
	_, err = create(t, meta(), c, s)
	refusedWith(t, err, "time_conflict")
	status := appointment.Completed
	if after, err := change(t, meta(), appointment.Change{ID: id, Status: &status, Move: true}, s); err != nil || after.Version != 2 {
		t.Errorf("%+v, %v", after, err)
	}
	history, err := s.History(deadline(t), id)
	if err != nil || len(history) != 2 || history[0].Actor != "user:7" || history[0].Time != created {
		t.Errorf("history %+v, %v", history, err)
	}
}

// What today's version writes is what was recorded: a change of the shape shows.
func TestEncodesAsRecorded(t *testing.T) {
	r := golden(t)
	e, err := events.Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.Encode("")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Value, r.Value) || !bytes.Equal(again.Key, r.Key) {
		t.Errorf("%s\nwas recorded as\n%s", again.Value, r.Value)
	}
	for i, h := range again.Headers {
		if i >= len(r.Headers) || h.Key != r.Headers[i].Key || !bytes.Equal(h.Value, r.Headers[i].Value) {
			t.Errorf("header %s=%s was not recorded so", h.Key, h.Value)
		}
	}
}

func TestNewerFieldsSurvive(t *testing.T) {
	r := golden(t)
	var value map[string]any
	if err := json.Unmarshal(r.Value, &value); err != nil {
		t.Fatal(err)
	}
	value["video_link"] = map[string]any{"url": "https://example.org/?a=1&b=<2>", "big": json.Number("12345678901234567890.5")}
	value["urgent"] = true
	var err error
	if r.Value, err = json.Marshal(value); err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.Encode("")
	if err != nil {
		t.Fatal(err)
	}
	exact := func(b []byte) map[string]any {
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		m := map[string]any{}
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	was, _ := json.Marshal(exact(r.Value))
	is, _ := json.Marshal(exact(again.Value))
	if !bytes.Equal(was, is) {
		t.Errorf("%s\nbecame\n%s", was, is)
	}
}

// An event that can't be read stops the commands of its partition, and nothing
// is said not to exist; the other partitions go on.
func TestUnreadableEventStopsItsPartition(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*kgo.Record)
	}{
		{"not JSON", func(r *kgo.Record) { r.Value = []byte("{") }},
		{"no event at all", func(r *kgo.Record) { r.Headers = nil }},
		{"another provider's key", func(r *kgo.Record) { r.Key = []byte("provider:x") }},
		{"a type of a newer version", func(r *kgo.Record) {
			for i, h := range r.Headers {
				if h.Key == "ce_type" {
					r.Headers[i].Value = []byte("appointment.split")
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := testenv.Kafka(t, nil)
			s := start(t, conf, "http://a")
			broken, well := provider(t, 0), provider(t, 1)
			made := mustCreate(t, at(broken, "10:00", "10:30"), s)
			mustCreate(t, at(well, "10:00", "10:30"), s)
			r := golden(t)
			r.Topic, r.Partition = conf.Topics().Events(), 0
			c.edit(r)
			produce(t, conf, r)

			check := func(s *instance, start, end string) {
				t.Helper()
				mustCreate(t, at(well, start, end), s)
				if _, err := s.Get(deadline(t), made.ID); !errors.Is(err, appointment.ErrUnavailable) {
					t.Errorf("Get of what may have changed since: %v, want ErrUnavailable", err)
				}
				if _, err := s.Create(deadline(t), meta(), at(broken, "11:00", "11:30")); !errors.Is(err, appointment.ErrUnavailable) {
					t.Errorf("Create: %v, want ErrUnavailable", err)
				}
				status := appointment.Confirmed
				if _, err := s.Change(deadline(t), meta(), appointment.Change{ID: made.ID, Status: &status}); !errors.Is(err, appointment.ErrUnavailable) {
					t.Errorf("Change: %v, want ErrUnavailable", err)
				}
				if _, err := s.Get(deadline(t), "appointment:none"); !errors.Is(err, appointment.ErrUnavailable) {
					t.Errorf("Get of what is not there: %v, want ErrUnavailable", err)
				}
				for _, f := range []appointment.Filter{{}, {Date: made.Date}, {PatientID: made.PatientID}, {ProviderID: broken}} {
					if _, err := s.List(deadline(t), f, anyone); !errors.Is(err, appointment.ErrUnavailable) {
						t.Errorf("List %+v: %v, want ErrUnavailable", f, err)
					}
				}
				if found, err := s.List(deadline(t), appointment.Filter{ProviderID: well}, anyone); err != nil || len(found) == 0 {
					t.Errorf("List of another partition's provider: %v, %v", found, err)
				}
			}
			check(s, "11:00", "11:30")
			s.stop()
			check(start(t, conf, "http://b"), "12:00", "12:30")
		})
	}
}
