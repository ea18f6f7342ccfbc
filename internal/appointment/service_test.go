package appointment_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// instance is a running service. Several share the partitions of one log.
type instance struct {
	*appointment.Service
	t    *testing.T
	url  string
	stop func() // ends it and waits
}

func start(t *testing.T, conf kafka.Config, url string) *instance {
	t.Helper()
	s, err := appointment.New(appointment.Config{
		Kafka: testenv.Options(t, conf), Topic: conf.Topics().Events(), Group: conf.TopicPrefix + "appointments",
		TransactionalID: conf.TopicPrefix + "appointments", Advertise: url, Log: testenv.Log(t),
	}, testenv.Partitions)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	i := &instance{Service: s, t: t, url: url}
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s ended with %v", url, err)
		}
	})
	t.Cleanup(i.stop)
	select {
	case <-s.Restored():
	case <-deadline(t).Done():
		t.Fatal("never restored")
	}
	return i
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func anyone(*appointment.Appointment) bool { return true }

func meta() appointment.Meta {
	return appointment.Meta{Actor: "user:1", Command: uuid.NewString(), Allowed: anyone}
}

func keyed(key, body string) appointment.Meta {
	m := meta()
	m.Idempotency = appointment.Fingerprint("user:1", "POST /api/appointments", key, []byte(body))
	return m
}

func at(provider, start, end string) appointment.Create {
	return appointment.Create{PatientID: "patient:1", ProviderID: provider, Date: "2026-03-02", Start: start, End: end}
}

// provider returns the id of a provider whose calendar is in that partition.
func provider(t *testing.T, partition int32) string {
	t.Helper()
	for {
		if id := "provider:" + uuid.NewString(); events.Partition(id, testenv.Partitions) == partition {
			return id
		}
	}
}

// among carries a command out on the instance that owns the calendar, as the
// API does: who does not own it names who does. While a partition changes
// hands nobody does, and the command is sent again, as a client does after a
// 503. Where a batch may be in flight then, it must carry a key.
func among(t *testing.T, instances []*instance, command func(*instance) error) error {
	t.Helper()
	ctx := deadline(t)
	for n := 0; ; n++ {
		err := command(instances[n%len(instances)])
		var elsewhere *appointment.ElsewhereError
		if !errors.As(err, &elsewhere) && !errors.Is(err, appointment.ErrUnavailable) {
			return err
		}
		if ctx.Err() != nil {
			t.Fatalf("nobody took the command: %v", err)
		}
	}
}

func create(t *testing.T, m appointment.Meta, c appointment.Create, instances ...*instance) (*appointment.Appointment, error) {
	t.Helper()
	var made *appointment.Appointment
	err := among(t, instances, func(i *instance) (err error) { made, err = i.Create(deadline(t), m, c); return err })
	return made, err
}

func mustCreate(t *testing.T, c appointment.Create, instances ...*instance) *appointment.Appointment {
	t.Helper()
	made, err := create(t, meta(), c, instances...)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func change(t *testing.T, m appointment.Meta, c appointment.Change, instances ...*instance) (*appointment.Appointment, error) {
	t.Helper()
	var made *appointment.Appointment
	err := among(t, instances, func(i *instance) (err error) { made, err = i.Change(deadline(t), m, c); return err })
	return made, err
}

func refusedWith(t *testing.T, err error, code string) {
	t.Helper()
	var r *appointment.Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("got %v, want a refusal %s", err, code)
	}
}

func TestLife(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	s := start(t, conf, "http://a")
	c := at("provider:1", "10:00", "10:30")
	c.Notes, c.Location = "notes", "room"
	made := mustCreate(t, c, s)
	status, notes, start := appointment.Confirmed, "", "10:15"
	changed, err := change(t, meta(), appointment.Change{ID: made.ID, Notes: &notes, Start: &start, Status: &status}, s)
	if err != nil {
		t.Fatal(err)
	}
	status = appointment.Cancelled
	cancelled, err := change(t, meta(), appointment.Change{ID: made.ID, Status: &status, Move: true, Reason: "ill"}, s)
	if err != nil {
		t.Fatal(err)
	}
	if made.Version != 1 || changed.Version != 3 || changed.Status != appointment.Confirmed || changed.Notes != "" || cancelled.Version != 4 {
		t.Errorf("made %+v, changed %+v, cancelled %+v", made, changed, cancelled)
	}
	got, err := s.Get(deadline(t), made.ID)
	if err != nil || *got != *cancelled {
		t.Errorf("Get: %+v (%v), want %+v", got, err, cancelled)
	}
	history, err := s.History(deadline(t), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{events.Created, events.Updated, events.Confirmed, events.Cancelled}
	for i, e := range history {
		if i >= len(want) || e.Type != want[i] || e.Data.Version != i+1 || e.Actor != "user:1" || e.Command == "" || e.ID == "" {
			t.Errorf("event %d of the history: %+v", i, e)
		}
	}
	if len(history) != len(want) || history[3].Data.Reason != "ill" || history[1].Command != history[2].Command {
		t.Errorf("history: %+v", history)
	}
	// The slot is free again, and the same events read back say the same.
	again := mustCreate(t, c, s)
	s.stop()
	restarted := startAndGet(t, conf, made.ID, again.ID)
	if *restarted[0] != *cancelled || *restarted[1] != *again {
		t.Errorf("after a restart: %+v, %+v; want %+v, %+v", restarted[0], restarted[1], cancelled, again)
	}
}

func startAndGet(t *testing.T, conf kafka.Config, ids ...string) []*appointment.Appointment {
	t.Helper()
	s := start(t, conf, "http://again")
	var all []*appointment.Appointment
	for _, id := range ids {
		a, err := s.Get(deadline(t), id)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

func TestRefusals(t *testing.T) {
	s := start(t, testenv.Kafka(t, nil), "http://a")
	made := mustCreate(t, at("provider:1", "10:00", "10:30"), s)
	_, err := create(t, meta(), at("provider:1", "10:15", "10:45"), s)
	refusedWith(t, err, "time_conflict")
	mustCreate(t, at("provider:1", "10:30", "10:45"), s)
	mustCreate(t, at("provider:2", "10:00", "10:30"), s)
	_, err = create(t, meta(), at("", "10:00", "10:30"), s)
	refusedWith(t, err, "invalid_input")
	_, err = change(t, meta(), appointment.Change{ID: "appointment:none"}, s)
	refusedWith(t, err, "appointment_not_found")
	_, err = s.Get(deadline(t), "appointment:none")
	refusedWith(t, err, "appointment_not_found")
	_, err = s.History(deadline(t), "appointment:none")
	refusedWith(t, err, "appointment_not_found")
	stranger := meta()
	stranger.Allowed = func(*appointment.Appointment) bool { return false }
	_, err = change(t, stranger, appointment.Change{ID: made.ID}, s)
	refusedWith(t, err, "access_denied")
	_, err = create(t, stranger, at("provider:3", "10:00", "10:30"), s)
	refusedWith(t, err, "access_denied")
	notes := "x"
	_, err = change(t, meta(), appointment.Change{ID: made.ID, Notes: &notes, IfVersion: 2}, s)
	refusedWith(t, err, "version_mismatch")
	if same, err := change(t, meta(), appointment.Change{ID: made.ID, IfVersion: 1}, s); err != nil || *same != *made {
		t.Errorf("a change of nothing: %+v, %v", same, err)
	}
	if all, err := s.List(deadline(t), appointment.Filter{}, anyone); err != nil || len(all) != 3 {
		t.Errorf("List: %v, %v; want three", all, err)
	}
}

func TestListAndSlots(t *testing.T) {
	s := start(t, testenv.Kafka(t, nil), "http://a")
	b := mustCreate(t, at("provider:1", "11:00", "11:30"), s)
	a := mustCreate(t, at("provider:1", "09:00", "10:15"), s)
	other := at("provider:2", "10:00", "10:30")
	other.PatientID = "patient:2"
	c := mustCreate(t, other, s)
	status := appointment.NoShow
	if _, err := change(t, meta(), appointment.Change{ID: b.ID, Status: &status, Move: true}, s); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct {
		filter  appointment.Filter
		allowed func(*appointment.Appointment) bool
		want    []string
	}{
		"all":      {want: []string{a.ID, c.ID, b.ID}},
		"provider": {filter: appointment.Filter{ProviderID: "provider:1"}, want: []string{a.ID, b.ID}},
		"patient":  {filter: appointment.Filter{PatientID: "patient:2"}, want: []string{c.ID}},
		"status":   {filter: appointment.Filter{Status: appointment.NoShow}, want: []string{b.ID}},
		"date":     {filter: appointment.Filter{Date: "2026-03-03"}},
		"allowed":  {allowed: func(a *appointment.Appointment) bool { return a.PatientID == "patient:2" }, want: []string{c.ID}},
	} {
		if f.allowed == nil {
			f.allowed = anyone
		}
		found, err := s.List(deadline(t), f.filter, f.allowed)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, a := range found {
			ids = append(ids, a.ID)
		}
		if !slices.Equal(ids, f.want) {
			t.Errorf("%s: %v, want %v", name, ids, f.want)
		}
	}
	slots, err := s.Slots(deadline(t), "provider:1", "2026-03-02", 60)
	if err != nil {
		t.Fatal(err)
	}
	if len(slots) != 12 || slots[0] != (appointment.Free{Start: "10:30", End: "11:30"}) || slots[11] != (appointment.Free{Start: "16:00", End: "17:00"}) {
		t.Errorf("slots: %v", slots)
	}
	for _, minutes := range []int{0, -1, 481} {
		_, err := s.Slots(deadline(t), "provider:1", "2026-03-02", minutes)
		refusedWith(t, err, "invalid_input")
	}
	_, err = s.Slots(deadline(t), "provider:1", "today", 30)
	refusedWith(t, err, "invalid_input")
}

// produce writes records to the log as some other program would.
func produce(t *testing.T, conf kafka.Config, records ...*kgo.Record) {
	t.Helper()
	client := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(deadline(t), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}
