package subscription_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
)

// Every change of what matches begins at the positions at which it was made;
// earlier rules stay until they have been routed past.
func TestRulesCarryPositions(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	rule := func(name string, active bool, from ...int64) webhook.Rule {
		return webhook.Rule{From: from, EventName: name, Active: active}
	}
	w.at([]int64{5, 0, 1}, []int64{0, 0, 0})
	made := mustCreate(t, valid(), s)
	first := rule("appointment.created", true, 5, 0, 1)
	want := []webhook.Rule{first}
	check := func(what string, sub *webhook.Subscription) {
		t.Helper()
		if !reflect.DeepEqual(sub.Rules, want) {
			t.Errorf("%s: rules %v, want %v", what, sub.Rules, want)
		}
		if e, _ := s.reg.Get(made.ID); !reflect.DeepEqual(e.Subscription.Rules, want) {
			t.Errorf("%s: the table has %v, want %v", what, e.Subscription.Rules, want)
		}
	}
	check("created", made)

	w.at([]int64{7, 2, 1}, []int64{5, 0, 0})
	check("another URL and secret", mustChange(t, s, made.ID, subscription.Change{TargetURL: new("http://localhost/"), Secret: new("new")}))

	off := rule("appointment.created", false, 7, 2, 1)
	want = []webhook.Rule{first, off}
	check("disabled", mustChange(t, s, made.ID, subscription.Change{Enabled: new(false)}))

	w.at([]int64{9, 2, 1}, []int64{7, 1, 1}) // partition 1 is behind
	all := rule("appointment.*", true, 9, 2, 1)
	want = []webhook.Rule{first, off, all}
	check("other events", mustChange(t, s, made.ID, subscription.Change{EventName: new("appointment.*"), Enabled: new(true)}))

	w.at([]int64{9, 2, 1}, []int64{7, 2, 1}) // all are past the first
	if err := subscription.Sweep(s.Service, deadline(t)); err != nil {
		t.Fatal(err)
	}
	want = []webhook.Rule{off, all}
	e, _ := s.reg.Get(made.ID)
	check("swept", e.Subscription)
	if e.Subscription.Version != 4 {
		t.Errorf("the sweep made version %d of 4", e.Subscription.Version)
	}

	w.at([]int64{9, 3, 1}, []int64{9, 3, 1})
	want = []webhook.Rule{rule("appointment.*", false, 9, 3, 1)}
	check("disabled when all is routed", mustChange(t, s, made.ID, subscription.Change{Enabled: new(false)}))
}

// A rule that can't be given its positions is not made.
func TestRefusesWithoutPositions(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	made := mustCreate(t, valid(), s)
	gone := mustCreate(t, valid(), s) // gives sweeps something to look at
	if err := s.Delete(deadline(t), meta(), gone.ID, 0); err != nil {
		t.Fatal(err)
	}
	w.isDown(errors.New("the log is away"))
	if _, err := s.Create(deadline(t), meta(), valid()); !errors.Is(err, appointment.ErrUnavailable) {
		t.Errorf("Create: %v, want ErrUnavailable", err)
	}
	if _, err := s.Change(deadline(t), meta(), made.ID, subscription.Change{Enabled: new(false)}); !errors.Is(err, appointment.ErrUnavailable) {
		t.Errorf("Change: %v, want ErrUnavailable", err)
	}
	if err := subscription.Sweep(s.Service, deadline(t)); err == nil {
		t.Error("a sweep that does not know what is routed went well")
	}
	w.isDown(nil)
	if found, err := s.List(deadline(t), "", nil); err != nil || len(found) != 1 || !reflect.DeepEqual(found[0], made) {
		t.Errorf("%v, %v; want it as it was made", found, err)
	}
}

// A deletion is a change first, and a tombstone when everything before it has
// been routed.
func TestDeletionBecomesATombstone(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	made := mustCreate(t, valid(), s)
	kept := mustCreate(t, valid(), s)
	w.at([]int64{4, 4, 4}, []int64{4, 3, 4})
	if err := s.Delete(deadline(t), meta(), made.ID, 0); err != nil {
		t.Fatal(err)
	}
	sweep := func() {
		t.Helper()
		if err := subscription.Sweep(s.Service, deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	e, there := s.reg.Get(made.ID)
	if !there || !e.Subscription.Deleted || e.Subscription.Enabled || e.Subscription.Rules[len(e.Subscription.Rules)-1].Active {
		t.Fatalf("before the routers have passed it: %+v, %v", e.Subscription, there)
	}
	w.at([]int64{4, 4, 4}, []int64{4, 4, 4})
	sweep()
	if e, there := s.reg.Get(made.ID); there {
		t.Errorf("afterwards there is %+v", e.Subscription)
	}
	sweep() // finds nothing more to do
	records := w.written(4)
	if last := records[3]; string(last.Key) != made.ID || last.Value != nil {
		t.Errorf("the last record is %s = %s, want a tombstone", last.Key, last.Value)
	}
	if e, there := s.reg.Get(kept.ID); !there || e.Subscription.Deleted {
		t.Errorf("the other one: %+v, %v", e.Subscription, there)
	}
}

func TestTooManyChanges(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	subscription.LimitRules(s.Service, 10)
	made := mustCreate(t, valid(), s)
	w.at([]int64{1, 0, 0}, []int64{0, 0, 0}) // the router is behind
	for n := range 9 {
		mustChange(t, s, made.ID, subscription.Change{Enabled: new(n%2 == 1)})
	}
	_, err := s.Change(deadline(t), meta(), made.ID, subscription.Change{Enabled: new(true)})
	refusedWith(t, err, "too_many_changes")
	w.at([]int64{1, 0, 0}, []int64{1, 0, 0})
	if changed := mustChange(t, s, made.ID, subscription.Change{Enabled: new(true)}); len(changed.Rules) != 1 {
		t.Errorf("%d rules when all is routed, want 1", len(changed.Rules))
	}
}

// Two instances share the table: each command is carried out once, and what one
// acknowledged the other shows. When one goes, the other takes over.
func TestTwoInstances(t *testing.T) {
	w := newWorld(t)
	a, b := w.start("http://a"), w.start("http://b")
	made := mustCreate(t, valid(), a, b)
	const clients, each = 6, 10
	var (
		g    sync.WaitGroup
		mu   sync.Mutex
		ids  = []string{made.ID}
		half = make(chan struct{})
		once sync.Once
	)
	for c := range clients {
		g.Go(func() {
			for n := range each {
				if n == each/2 {
					once.Do(func() { close(half) })
				}
				sub, err := create(t, keyed(fmt.Sprint(c, n), ""), valid(), a, b)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := b.Get(deadline(t), sub.ID); err != nil || got.ID != sub.ID {
					t.Errorf("the other instance shows %v (%v)", got, err)
				}
				mu.Lock()
				ids = append(ids, sub.ID)
				mu.Unlock()
			}
		})
	}
	<-half
	a.stop()
	g.Wait()
	found, err := b.List(deadline(t), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, sub := range found {
		listed = append(listed, sub.ID)
	}
	slices.Sort(ids)
	slices.Sort(listed)
	if !slices.Equal(ids, listed) {
		t.Errorf("%d are listed, %d were acknowledged", len(listed), len(ids))
	}
}

// Whose caller gives up while the command is carried out is not handed what the
// writer still works on.
func TestGivesUp(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	mustCreate(t, valid(), s)
	w.mu.Lock() // the writer waits for positions
	w.asked = make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error, 1)
	go func() {
		made, err := s.Create(ctx, meta(), valid())
		if made != nil {
			t.Errorf("handed %+v", made)
		}
		answer <- err
	}()
	<-w.asked
	cancel()
	err := <-answer
	w.mu.Unlock()
	if !errors.Is(err, appointment.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

// Who can't find out who writes the table, since the group's coordinator is just
// being chosen, has done nothing and says so: the command can wait.
func TestOwnerUnknown(t *testing.T) {
	w := newWorld(t)
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, webhook.Topics{}.Subscriptions()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.ControlKey(int16(kmsg.FindCoordinator), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
		for _, key := range req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			found := kmsg.NewFindCoordinatorResponseCoordinator()
			found.Key, found.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			resp.Coordinators = append(resp.Coordinators, found)
		}
		return resp, nil, true
	})
	w.conf = kafka.Config{Brokers: c.ListenAddrs()}
	_, err = w.start("http://a").Create(deadline(t), meta(), valid())
	if !errors.Is(err, writer.ErrNotOwner) || !errors.Is(err, appointment.ErrUnavailable) || !errors.Is(err, kerr.CoordinatorNotAvailable) {
		t.Errorf("got %v, want ErrNotOwner and ErrUnavailable with the cause", err)
	}
}

// The positions of a rule are sampled when whoever reads to the table's end
// already waits for it: else an event behind them could be routed without it.
func TestRoutersWaitForARuleBeforeItsPositionsAreSampled(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	mustCreate(t, valid(), s)
	before, err := s.reg.End(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := registry.New(registry.Config{Kafka: testenv.Options(t, w.conf), Topic: w.conf.Topics().Subscriptions(), Log: testenv.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	reading, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- reader.Run(reading) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	w.sampling = make(chan chan struct{})
	made := make(chan *webhook.Subscription, 1)
	go func() {
		sub, err := s.Create(deadline(t), meta(), valid())
		if err != nil {
			t.Error(err)
		}
		made <- sub
	}()
	goOn := <-w.sampling
	end, err := s.reg.End(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if end <= before {
		t.Errorf("the table ends at %d as before, and a router would not wait", end)
	}
	synced := make(chan error, 1)
	go func() { synced <- reader.Await(deadline(t), 0, end) }()
	close(goOn)
	sub := <-made
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if _, there := reader.Get(sub.ID); !there {
		t.Error("who waited for the end does not know the rule")
	}
}
