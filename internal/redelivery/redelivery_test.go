package redelivery_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// subscriptions has one, which is enabled.
type subscriptions struct{}

const subscriptionID = "webhook_subscription:1"

func (subscriptions) Sync(context.Context) error { return nil }

func (subscriptions) Get(id string) (webhook.Registered, bool) {
	return webhook.Registered{Subscription: &webhook.Subscription{ID: id, EventName: "appointment.*", Enabled: true}}, id == subscriptionID
}

// service returns a service with a table of its own, as each process has.
func service(t *testing.T, conf kafka.Config, set func(*redelivery.Config)) *redelivery.Service {
	t.Helper()
	opts := testenv.Options(t, conf)
	table, err := replay.NewTable(replay.TableConfig{Kafka: opts, Topic: conf.Topics().Replays(), Log: testenv.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	c := redelivery.Config{Kafka: opts, Topics: conf.Topics(), Replays: table, Subscriptions: subscriptions{}}
	if set != nil {
		set(&c)
	}
	s, err := redelivery.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return table.Run(ctx) })
	t.Cleanup(func() { cancel(); _ = g.Wait(); s.Close() })
	return s
}

func event(t *testing.T, client *kgo.Client, topic string) *kgo.Record {
	t.Helper()
	e := events.Event{ID: uuid.NewString(), Type: events.Created, Time: time.Now(), Data: events.Data{
		AppointmentID: "appointment:1", PatientID: "patient:1", ProviderID: "provider:1", AppointmentDate: "2026-01-02",
		StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: "scheduled", Version: 1,
	}}
	r, err := e.Encode(topic)
	if err == nil {
		err = client.ProduceSync(t.Context(), r).FirstErr()
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func meta(body string) appointment.Meta {
	return appointment.Meta{Actor: "user:1", Idempotency: appointment.Fingerprint("user:1", "/route", "key", []byte(body))}
}

// One command that reaches two processes at the same time is one replay, and both
// are told of the same; with another body one of them is refused.
func TestRepeatsAtTheSameTime(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	client := testenv.Client(t, conf)
	services := []*redelivery.Service{service(t, conf, nil), service(t, conf, nil)}
	stop := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error { // so that the ends that they find differ
		for {
			select {
			case <-stop:
				return nil
			default:
				event(t, client, conf.Topics().Events())
			}
		}
	})
	for round := range 5 {
		m := meta("")
		m.Idempotency = appointment.Fingerprint("user:1", "/route", strings.Repeat("k", round+1), nil)
		made := make([]replay.Replay, len(services))
		var both errgroup.Group
		for i, s := range services {
			both.Go(func() (err error) {
				made[i], err = s.Replay(t.Context(), m, subscriptionID, redelivery.Ask{From: "earliest"})
				return err
			})
		}
		if err := both.Wait(); err != nil {
			t.Fatal(err)
		}
		a, b := made[0].Request, made[1].Request
		if a.ID != b.ID || a.Total != b.Total || !a.CreatedAt.Equal(b.CreatedAt) {
			t.Errorf("one is told of %+v, the other of %+v", a, b)
		}
	}
	close(stop)
	_ = g.Wait()
	if list, err := services[0].List(t.Context(), subscriptionID); err != nil || len(list) != 5 {
		t.Errorf("%d replays, %v; want 5", len(list), err)
	}

	refused := make([]error, len(services))
	var both errgroup.Group
	for i, body := range []string{"a", "b"} {
		both.Go(func() error {
			_, refused[i] = services[i].Replay(t.Context(), meta(body), subscriptionID, redelivery.Ask{From: "earliest"})
			return nil
		})
	}
	_ = both.Wait()
	if (refused[0] == nil) == (refused[1] == nil) {
		t.Errorf("two commands with one key: %v and %v", refused[0], refused[1])
	}
}

// What can't be counted in time is estimated, and what can't be found in time is
// not said to be missing.
func TestLimit(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	client := testenv.Client(t, conf)
	event(t, client, conf.Topics().Events())
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: conf.Topics().DeadLetters(), Value: []byte("{}")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	s := service(t, conf, func(c *redelivery.Config) { c.Limit = time.Nanosecond })
	n, estimated, err := s.Count(t.Context(), subscriptionID, redelivery.Ask{From: "earliest"})
	if err != nil || !estimated || n != 1 {
		t.Errorf("counted %d (estimated: %t), %v", n, estimated, err)
	}
	r, err := s.Replay(t.Context(), appointment.Meta{}, subscriptionID, redelivery.Ask{From: "earliest"})
	if err != nil || !r.Request.Estimated {
		t.Errorf("replay %+v, %v", r.Request, err)
	}
	_, err = s.Resend(t.Context(), appointment.Meta{}, uuid.NewString())
	if refused, ok := errors.AsType[*appointment.Refusal](err); !ok || refused.Kind != appointment.Conflict || refused.Code != "search_too_long" {
		t.Errorf("a delivery that can't be found in time: %v", err)
	}
}

// There are not more replays at the same time than can be worked on.
func TestTooMany(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	s := service(t, conf, nil)
	var last replay.Replay
	var err error
	n := 0
	for ; err == nil; n++ {
		var made replay.Replay
		if made, err = s.Replay(t.Context(), appointment.Meta{}, subscriptionID, redelivery.Ask{From: "earliest"}); err == nil {
			last = made
		}
	}
	refused, ok := errors.AsType[*appointment.Refusal](err)
	if !ok || refused.Code != "too_many_replays" || n != 33 {
		t.Fatalf("replay %d: %v", n, err)
	}
	if _, err := s.Get(t.Context(), subscriptionID, last.Request.ID); err != nil {
		t.Error(err)
	}
}

// What is too large for the client or for the broker was surely not written.
func TestTooLarge(t *testing.T) {
	for _, whose := range []string{"client", "broker"} {
		t.Run(whose, func(t *testing.T) {
			conf := testenv.Kafka(t, nil)
			client := testenv.Client(t, conf)
			event(t, client, conf.Topics().Events())
			if whose == "broker" {
				topics := []string{conf.Topics().Backfill(), conf.Topics().Replays()}
				set := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: new("100")}}
				altered, err := kadm.NewClient(client).AlterTopicConfigs(t.Context(), set, topics...)
				for _, one := range altered {
					err = errors.Join(err, one.Err)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s := service(t, conf, func(c *redelivery.Config) {
				if whose == "client" {
					c.Kafka = append(slices.Clip(c.Kafka), kgo.ProducerBatchMaxBytes(512))
				}
			})
			_, tested := s.Test(t.Context(), meta(""), subscriptionID)
			_, replayed := s.Replay(t.Context(), meta(""), subscriptionID, redelivery.Ask{From: "earliest", ProviderID: strings.Repeat("p", 200)})
			for what, err := range map[string]error{"test": tested, "replay": replayed} {
				if refused, ok := errors.AsType[*appointment.Refusal](err); !ok || refused.Code != "record_too_large" {
					t.Errorf("a %s: %v", what, err)
				}
			}
			if all, err := s.List(t.Context(), subscriptionID); err != nil || len(all) > 0 {
				t.Errorf("%d replays, %v; want none", len(all), err)
			}
		})
	}
}

// known is somebody who knows deliveries.
type known map[string]webhook.Attempt

func (k known) Find(_ context.Context, id string) (webhook.Attempt, bool, error) {
	a, ok := k[id]
	return a, ok, nil
}

// Who knows a delivery is asked first; the topics tell of the others.
func TestDeliveriesAreAskedFirst(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	client := testenv.Client(t, conf)
	rec := event(t, client, conf.Topics().Events())
	at := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
	there := uuid.NewString()
	s := service(t, conf, func(c *redelivery.Config) {
		c.Deliveries = known{there: {DeliveryID: there, SubscriptionID: subscriptionID, EventPosition: at.String()}}
	})
	id, err := s.Resend(t.Context(), meta(""), there)
	if err != nil {
		t.Fatal(err)
	}
	d, err := webhook.ParseDelivery(testenv.Read(t, conf, conf.Topics().Backfill(), 1)[0])
	if err != nil || d.ID != id || d.Event != at {
		t.Errorf("delivery %+v, %v", d, err)
	}
	if again, err := s.Resend(t.Context(), meta("other"), id); err != nil || again != id {
		t.Errorf("found in the topics: %s, %v", again, err) // the same key: the same delivery
	}
	if _, err := s.Resend(t.Context(), meta(""), uuid.NewString()); err == nil {
		t.Error("a delivery that nobody knows is sent again")
	}
}

// gate holds up the next clients that are made, as many as it is set to.
type gate struct {
	left atomic.Int64
	// came has one of each that it holds up, until open is closed.
	came, open chan struct{}
	subscriptions
	disabled atomic.Bool
}

// Get returns the subscription.
func (g *gate) Get(id string) (webhook.Registered, bool) {
	reg, ok := subscriptions{}.Get(id)
	reg.Subscription.Enabled = !g.disabled.Load()
	return reg, ok
}

// OnNewClient implements kgo.HookNewClient.
func (g *gate) OnNewClient(*kgo.Client) {
	if g.left.Add(-1) >= 0 {
		g.came <- struct{}{}
		<-g.open
	}
}

// gated returns a service of which the next readers are held up, with a
// subscription that the gate can disable.
func gated(t *testing.T, conf kafka.Config, readers int64, limit time.Duration) (*redelivery.Service, *gate) {
	t.Helper()
	g := &gate{came: make(chan struct{}), open: make(chan struct{})}
	s := service(t, conf, func(c *redelivery.Config) {
		c.Kafka, c.Limit, c.Subscriptions = append(slices.Clip(c.Kafka), kgo.WithHooks(g)), limit, g
	})
	g.left.Store(readers)
	return s, g
}

// What reads topics has four readers at the same time, whatever is asked for. The
// others wait for their turn, but neither longer than the limit nor without
// somebody who asks.
func TestReadersAreBounded(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	event(t, testenv.Client(t, conf), conf.Topics().Events())
	ask := redelivery.Ask{From: "earliest"}
	count := func(s *redelivery.Service) func() error {
		return func() error {
			_, _, err := s.Count(t.Context(), subscriptionID, ask)
			return err
		}
	}
	replays := func(s *redelivery.Service) error {
		_, err := s.Replay(t.Context(), appointment.Meta{}, subscriptionID, ask)
		return err
	}
	recovers := func(s *redelivery.Service) error {
		_, err := s.Recover(t.Context(), appointment.Meta{}, subscriptionID, time.Unix(1, 0))
		return err
	}
	resends := func(ctx context.Context, s *redelivery.Service) error {
		_, err := s.Resend(ctx, appointment.Meta{}, uuid.NewString())
		return err
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	hasty, shut := gated(t, conf, 4, time.Millisecond)
	patient, held := gated(t, conf, 4, time.Hour)
	var counts errgroup.Group
	for range 4 {
		counts.Go(count(hasty))
		<-shut.came
		counts.Go(count(patient))
		<-held.came
	}
	for name, err := range map[string]error{
		"count": count(hasty)(), "replay": replays(hasty), "recovery": recovers(hasty), "resend": resends(t.Context(), hasty),
		"resend that nobody waits for": resends(gone, patient),
	} {
		if !errors.Is(err, redelivery.ErrBusy) {
			t.Errorf("a %s beside four counts: %v", name, err)
		}
	}
	counts.Go(count(patient)) // has its turn when the others are done
	close(shut.open)
	close(held.open)
	if err := counts.Wait(); err != nil {
		t.Error(err)
	}
	if err := replays(hasty); err != nil {
		t.Errorf("with places free again: %v", err)
	}
}

// A subscription that is disabled while a replay is counted gets none.
func TestDisabledWhileCounting(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	event(t, testenv.Client(t, conf), conf.Topics().Events())
	s, gate := gated(t, conf, 1, time.Minute)
	counted := make(chan error)
	go func() {
		_, err := s.Replay(t.Context(), appointment.Meta{}, subscriptionID, redelivery.Ask{From: "earliest"})
		counted <- err
	}()
	<-gate.came
	gate.disabled.Store(true)
	close(gate.open)
	err := <-counted
	if refused, ok := errors.AsType[*appointment.Refusal](err); !ok || refused.Code != "subscription_disabled" {
		t.Errorf("a replay of a subscription that is disabled by now: %v", err)
	}
}

// Whoever has been counting looks again before writing: others may have taken the
// last place, or used the key for something else.
func TestLooksAgainAfterCounting(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	client := testenv.Client(t, conf)
	event(t, client, conf.Topics().Events())
	slow, gate := gated(t, conf, 3, time.Minute)
	quick := service(t, conf, nil)
	type command struct {
		meta appointment.Meta
		err  error
	}
	ask := redelivery.Ask{From: "earliest"}
	commands := map[string]*command{"last place": {}, "key": {meta: meta("a")}, "repeat": {meta: meta("b")}}
	var counting errgroup.Group
	for _, c := range commands {
		counting.Go(func() error {
			_, c.err = slow.Replay(t.Context(), c.meta, subscriptionID, ask)
			return nil
		})
		<-gate.came
	}
	for i := range 32 {
		m := appointment.Meta{}
		if i == 0 {
			m = meta("b")
		}
		if _, err := quick.Replay(t.Context(), m, subscriptionID, ask); err != nil {
			t.Fatal(err)
		}
	}
	close(gate.open)
	_ = counting.Wait()
	for name, want := range map[string]string{"last place": "too_many_replays", "key": "idempotency_key_reused"} {
		if refused, ok := errors.AsType[*appointment.Refusal](commands[name].err); !ok || refused.Code != want {
			t.Errorf("%s: %v, want %s", name, commands[name].err, want)
		}
	}
	if err := commands["repeat"].err; err != nil {
		t.Errorf("the repeat of what was accepted: %v", err)
	}
	_, ends, err := replay.Bounds(t.Context(), kadm.NewClient(client), conf.Topics().Replays())
	if err != nil || ends[0] != 32 {
		t.Errorf("%d records written (%v), want one of each replay that was accepted", ends, err)
	}
}
