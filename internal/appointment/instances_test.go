package appointment_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// A repeat with the same key and body answers as the first did and does nothing
// more, whatever has happened since, also after a restart; another body is
// refused.
func TestIdempotencyKey(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	s := start(t, conf, "http://a")
	here, other := provider(t, 0), provider(t, 1)
	first, err := create(t, keyed("k1", "body"), at(here, "10:00", "10:30"), s)
	if err != nil {
		t.Fatal(err)
	}
	step := keyed("k2", "")
	status := appointment.Confirmed
	confirm := appointment.Change{ID: first.ID, Status: &status, Move: true}
	confirmed, err := change(t, step, confirm, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, restarted := range []bool{false, true} {
		if restarted {
			s.stop()
			s = start(t, conf, "http://b")
		}
		again, err := create(t, keyed("k1", "body"), at(here, "10:00", "10:30"), s)
		if err != nil || *again != *first {
			t.Errorf("restarted %v: the repeat answers %+v (%v), the first %+v", restarted, again, err, first)
		}
		if again, err := change(t, step, confirm, s); err != nil || *again != *confirmed {
			t.Errorf("restarted %v: the repeated step answers %+v (%v), the first %+v", restarted, again, err, confirmed)
		}
		_, err = create(t, keyed("k1", "another body"), at(here, "12:00", "12:30"), s)
		refusedWith(t, err, "idempotency_key_reused")
		_, err = create(t, keyed("k1", "another body"), at(other, "12:00", "12:30"), s)
		refusedWith(t, err, "idempotency_key_reused")
		_, err = create(t, keyed("k3", "refused"), at(here, "10:00", "10:30"), s)
		refusedWith(t, err, "time_conflict")
	}
	// A refusal is not remembered: when the time is free again, it is granted.
	status = appointment.Cancelled
	if _, err := change(t, meta(), confirm, s); err != nil {
		t.Fatal(err)
	}
	if _, err := create(t, keyed("k3", "refused"), at(here, "10:00", "10:30"), s); err != nil {
		t.Error(err)
	}
	history, err := s.History(deadline(t), first.ID)
	if err != nil || len(history) != 3 {
		t.Errorf("%d events (%v), want 3", len(history), err)
	}
}

// Repeats that arrive at the same moment are one command.
func TestIdempotencyKeyAtOnce(t *testing.T) {
	s := start(t, testenv.Kafka(t, nil), "http://a")
	mustCreate(t, at("provider:1", "08:00", "08:30"), s) // the partition is ours now
	ids := make(chan string, 50)
	var g sync.WaitGroup
	for range cap(ids) {
		g.Go(func() {
			a, err := s.Create(deadline(t), keyed("k", "body"), at("provider:1", "10:00", "10:30"))
			if err != nil {
				t.Error(err)
				return
			}
			ids <- a.ID
		})
	}
	g.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Fatalf("made %s and %s", first, id)
		}
	}
}

// Two instances share the partitions: each command is decided once, by the
// owner, and what one acknowledged the other shows.
func TestTwoInstances(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	both := []*instance{start(t, conf, "http://a"), start(t, conf, "http://b")}
	const clients, each = 8, 12
	var (
		g    sync.WaitGroup
		mu   sync.Mutex
		made = map[string]*appointment.Appointment{}
	)
	for c := range clients {
		g.Go(func() {
			for n := range each {
				// Few providers and times, so that most are in each other's way.
				p := fmt.Sprintf("provider:%d", n%4)
				begin := fmt.Sprintf("%02d:%02d", 9+n/4, (c%3)*10)
				a, err := create(t, keyed(fmt.Sprint(c, n), ""), at(p, begin, begin[:2]+":50"), both[c%2], both[1-c%2])
				var r *appointment.Refusal
				switch {
				case errors.As(err, &r) && r.Code == "time_conflict":
					continue
				case err != nil:
					t.Error(err)
					return
				}
				for _, i := range both {
					if got, err := i.Get(deadline(t), a.ID); err != nil || *got != *a {
						t.Errorf("%s shows %+v (%v), acknowledged was %+v", i.url, got, err, a)
					}
				}
				mu.Lock()
				made[a.ID] = a
				mu.Unlock()
			}
		})
	}
	g.Wait()
	if len(made) != each {
		t.Errorf("%d were made, want one for each of the %d times", len(made), each)
	}
	exactlyOnce(t, both[1], made)
}

// exactlyOnce compares what was acknowledged with what an instance lists.
func exactlyOnce(t *testing.T, s *instance, made map[string]*appointment.Appointment) {
	t.Helper()
	all, err := s.List(deadline(t), appointment.Filter{}, anyone)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(made) {
		t.Errorf("%d are in the log, %d were acknowledged", len(all), len(made))
	}
	for i, a := range all {
		if was := made[a.ID]; was == nil || *a != *was {
			t.Errorf("%+v is in the log, acknowledged was %+v", a, was)
		}
		for _, b := range all[:i] {
			if a.ProviderID == b.ProviderID && a.Overlaps(b) {
				t.Errorf("%+v overlaps %+v", a, b)
			}
		}
	}
}

// While clients work, one instance goes and another comes. With their keys the
// clients lose nothing and make nothing twice.
func TestHandOver(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	a, b := start(t, conf, "http://a"), start(t, conf, "http://b")
	const clients, each = 6, 20
	var (
		g    sync.WaitGroup
		mu   sync.Mutex
		made = map[string]*appointment.Appointment{}
		half = make(chan struct{})
		once sync.Once
	)
	work := func(c int) {
		for n := range each {
			if n == each/2 {
				once.Do(func() { close(half) })
			}
			p := fmt.Sprintf("provider:%d", c)
			begin := fmt.Sprintf("%02d:%02d", n/2, n%2*30)
			got, err := create(t, keyed(fmt.Sprint(c, n), ""), at(p, begin, begin[:3]+fmt.Sprintf("%02d", n%2*30+20)), a, b)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			made[got.ID] = got
			mu.Unlock()
		}
	}
	for c := range clients {
		g.Go(func() { work(c) })
	}
	<-half
	a.stop()
	g.Wait()
	if len(made) != clients*each {
		t.Errorf("%d were acknowledged, want %d", len(made), clients*each)
	}
	exactlyOnce(t, b, made)
	b.stop()
	exactlyOnce(t, start(t, conf, "http://c"), made)
}

// Who can't find out who owns a calendar, since the group's coordinator is just
// being chosen, has done nothing and says so: the command can wait.
func TestOwnerUnknown(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.ControlKey(int16(kmsg.FindCoordinator), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		for _, key := range req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			found := kmsg.NewFindCoordinatorResponseCoordinator()
			found.Key, found.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			resp.Coordinators = append(resp.Coordinators, found)
		}
		return resp, nil, true
	})
	conf := kafka.Config{Brokers: c.ListenAddrs()}
	s, err := appointment.New(appointment.Config{
		Kafka: testenv.Options(t, conf), Topic: "log", Group: "g", TransactionalID: "a", Advertise: "http://a", Log: testenv.Log(t),
	}, 1)
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	defer func() { _ = s.Run(ended) }() // gives back what New took
	_, err = s.Create(deadline(t), meta(), at("provider:1", "10:00", "10:30"))
	if !errors.Is(err, writer.ErrNotOwner) || !errors.Is(err, appointment.ErrUnavailable) || !errors.Is(err, kerr.CoordinatorNotAvailable) {
		t.Errorf("got %v, want ErrNotOwner and ErrUnavailable with the cause", err)
	}
}

// Who does not own a calendar says who does.
func TestNamesTheOwner(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	both := []*instance{start(t, conf, "http://a"), start(t, conf, "http://b")}
	for p := range int32(testenv.Partitions) {
		c := at(provider(t, p), "10:00", "10:30")
		named := map[string]bool{}
		err := among(t, both, func(i *instance) error {
			_, err := i.Create(deadline(t), meta(), c)
			if elsewhere, ok := errors.AsType[*appointment.ElsewhereError](err); ok {
				if elsewhere.URL == i.url {
					t.Errorf("%s says that the calendar is at %s", i.url, elsewhere.URL)
				}
				named[elsewhere.URL] = true
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if events.Partition(c.ProviderID, testenv.Partitions) != p {
			t.Errorf("the calendar is not in partition %d", p)
		}
		for url := range named {
			if url != both[0].url && url != both[1].url {
				t.Errorf("named %q", url)
			}
		}
	}
}
