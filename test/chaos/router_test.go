package chaos

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// For each event and each subscription that matches it where it stands there is
// exactly one delivery, whatever happens to routers and brokers while
// subscriptions come, change and go.
func TestRouting(t *testing.T) {
	p := newPlan(t)
	d := harness.Start(t, harness.Options{Routers: 2, Senders: -1})
	total, stable, planned := 2000, 5, 20*time.Second
	switch {
	case p.long > 0:
		total, stable, planned = 100_000, 10, p.long
	case !harness.Real():
		planned = 6 * time.Second
	}
	f := newFlow("1", "2", "3")
	brokers := &address{}
	brokers.set(d.Brokers)
	a := newAPI(d.URLs)
	a.signIn(t.Context(), "", d.URL)
	sink := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer sink.Close()

	c := newCrowd(t)
	ch := &changer{t: t, api: a, rand: p.source(1), brokers: brokers, topic: d.Prefix + "appointments.events", target: sink.URL, done: newWork()}
	for range stable {
		ch.create(c.ctx, "appointment.*", true)
	}
	if ch.fixed = stable; len(ch.now) != stable {
		t.Fatalf("%d of %d subscriptions could be made", len(ch.now), stable)
	}
	c.every(50*time.Millisecond, func() { ch.act(c.ctx) })
	user := &historyClient{h: &historian{t: t, api: a}, rand: p.source(2)}
	c.every(40*time.Millisecond, func() { user.book(c.ctx) })

	v := &volume{t: t, brokers: brokers, topic: d.Prefix + "appointments.events"}
	defer v.close()
	const tick = 25 * time.Millisecond
	chunk := max(2, int(int64(total)*int64(tick)/int64(planned)))
	c.every(tick, func() { v.append(c.ctx, chunk) })
	flowing, stop := context.WithCancel(t.Context())
	defer stop()
	c.all.Go(func() { followDeliveries(flowing, t, d.Prefix, brokers, f) })

	began := time.Now()
	faults := p.routerFaults(d, brokers)
	p.run(f, ch.done, faults)
	paced := time.Since(began)
	stop()
	c.stop(45 * time.Second)
	for int(v.acknowledged.Load()) < total {
		if t.Failed() {
			return
		}
		v.append(t.Context(), 500)
	}
	d.Routed(t, 2*recoverLimit)
	took := time.Since(began)

	var log []routed
	d.Read(t, "appointments.events", recoverLimit, func(r *kgo.Record) {
		e, err := events.Decode(r)
		if err != nil {
			t.Errorf("%d/%d: %v", r.Partition, r.Offset, err)
		}
		log = append(log, routed{webhook.Position{Partition: r.Partition, Offset: r.Offset}, e.ID, e.Type})
	})
	versions := map[string]map[int]*webhook.Subscription{}
	d.Read(t, "webhooks.subscriptions", recoverLimit, func(r *kgo.Record) {
		if r.Value == nil {
			return
		}
		s, err := webhook.ParseSubscription(r.Key, r.Value)
		if err != nil {
			t.Errorf("subscription at %d: %v", r.Offset, err)
			return
		}
		if versions[s.ID] == nil {
			versions[s.ID] = map[int]*webhook.Subscription{}
		}
		if versions[s.ID][s.Version] == nil {
			versions[s.ID][s.Version] = s
		}
	})
	rules, violations := checkChanges(ch.changes, versions)
	check := newRoutingCheck(log, rules)
	d.Read(t, "webhooks.deliveries", 2*recoverLimit, func(r *kgo.Record) {
		delivery, err := webhook.ParseDelivery(r)
		if err != nil {
			t.Errorf("delivery at %d/%d: %v", r.Partition, r.Offset, err)
			return
		}
		check.saw(delivery)
	})
	violations = append(violations, check.end(harness.Real())...)
	t.Logf("%d events (%d by the API), %d deliveries to %d subscriptions, %d of them records that were repeated; "+
		"%d changes acknowledged; %s, of it %s with faults",
		len(log), user.n, check.deliveries, len(rules), check.repeated, len(ch.changes), took.Round(time.Second), paced.Round(time.Second))
	t.Logf("%d pairs of event and subscription lay in the time of a change", check.between(ch.changes))
	report(t, violations)
	if len(ch.changes) < 10 || check.deliveries < total*stable {
		t.Errorf("the run shows nothing: %d changes, %d deliveries", len(ch.changes), check.deliveries)
	}
}

// routerFaults are the faults of routers, and of what they stand on.
func (p *plan) routerFaults(d *harness.Deployment, brokers *address) []fault {
	if !harness.Real() {
		kill := p.kill(d, "the process", d.Of("webhook-router"), nil, func() { brokers.set(d.Brokers) })
		return []fault{kill, kill, kill}
	}
	kill := p.kill(d, "a router", d.Of("webhook-router"), nil, nil)
	both := fault{"kill -9 of both routers", func(struck func(...string)) {
		for _, r := range d.Of("webhook-router") {
			r.Kill()
		}
		struck()
		p.pace(100*time.Millisecond, time.Second)
		for _, r := range d.Of("webhook-router") {
			d.Restart(r)
		}
	}}
	return append([]fault{kill, kill, both}, p.brokers()...)
}

// book makes an appointment; the confirmations and cancellations of others are
// volume's.
func (c *historyClient) book(ctx context.Context) {
	c.n++
	date, start, end := c.slot()
	cmd := &command{kind: "create", key: fmt.Sprintf("b-%016x-%d", c.rand.Uint64(), c.n)}
	c.h.carryOut(ctx, c.next, cmd, http.MethodPost, "/api/appointments", map[string]any{
		"patient_id": "patient:1", "provider_id": providerOf(0, "doctor"),
		"appointment_date": date, "start_time": start, "end_time": end,
	})
}

// followDeliveries tells the flow of deliveries as soon as they can be read,
// until ctx ends.
func followDeliveries(ctx context.Context, t *testing.T, prefix string, brokers *address, f *flow) {
	for ctx.Err() == nil {
		at := brokers.get()
		client, err := kgo.NewClient(kgo.SeedBrokers(at...), kgo.ConsumeTopics(prefix+"webhooks.deliveries"),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(250*time.Millisecond))
		if err != nil {
			t.Errorf("follow the deliveries: %v", err)
			return
		}
		for ctx.Err() == nil && brokers.get()[0] == at[0] {
			poll, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			fetches := client.PollFetches(poll)
			cancel()
			if !f.watching() {
				continue
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if origin, partition, ok := madeAt(r.Value); ok {
					f.saw(strconv.Itoa(int(partition)), origin)
				}
			})
		}
		client.Close()
	}
}
