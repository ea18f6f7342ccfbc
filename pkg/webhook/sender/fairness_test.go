package sender_test

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// neighbour makes a subscription whose deliveries share their partition with
// another's.
func (b *bench) neighbour(of *subscription, url string) *subscription {
	b.t.Helper()
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic(b.topics.Deliveries())
	partition := func(id string) int {
		return partitioner.Partition(&kgo.Record{Key: []byte(id)}, testenv.Partitions)
	}
	s := &subscription{Subscription: of.Subscription}
	for s.ID = of.ID; s.ID == of.ID || partition(s.ID) != partition(of.ID); {
		s.ID = "webhook_subscription:" + uuid.NewString()
	}
	s.TargetURL, s.Version = url, 0
	b.put(s)
	return s
}

// hang is an endpoint that never answers.
func hang(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }

// deliverMany appends n deliveries and returns their ids in order.
func (b *bench) deliverMany(s *subscription, n int) []string {
	b.t.Helper()
	var ids []string
	var records []*kgo.Record
	for range n {
		d := newDelivery(s)
		r, err := d.Encode(b.topics.Deliveries())
		if err != nil {
			b.t.Fatal(err)
		}
		ids, records = append(ids, d.ID), append(records, r)
	}
	ctx, cancel := b.limited()
	defer cancel()
	if err := b.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
	return ids
}

// An endpoint that hangs, and has more waiting than memory holds, delays nobody
// else by anything, and holds up no commit: what waits for it leaves the topic
// of deliveries.
func TestHangingEndpointHoldsUpNobody(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		stuck, well := b.receive(hang), b.receive(nil)
		a := b.subscribe(stuck.url)
		other := b.neighbour(a, well.url)
		const backlog = 3000
		b.deliverMany(a, backlog)
		ids := []string{b.deliver(other).ID}
		snd := b.start()
		well.next() // all that was appended before it has been read
		for range 50 {
			d := b.deliver(other)
			sent := time.Now()
			ids = append(ids, d.ID)
			// A round of requests to the broker is all that takes time here.
			if got := well.next(); got.at.Sub(sent) > 20*time.Millisecond {
				t.Errorf("%s arrives %s after it was appended", got.id(), got.at.Sub(sent))
			}
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(15 * time.Second) // what was under way has timed out
		b.wantAllCommitted(b.topics.Deliveries())
		snd.stop()
		well.wantOnce(t, ids...)
	})
}

// Endpoints that hang delay nobody, however many of them share a partition, while
// there are places for requests.
func TestManyHangingEndpointsHoldUpNobody(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		const many, each, window = 300, 3, 64
		stuck, well := b.receive(hang), b.receive(nil)
		a := b.subscribe(stuck.url)
		other := b.neighbour(a, well.url)
		b.deliverMany(a, each)
		for range many - 1 {
			b.deliverMany(b.neighbour(a, stuck.url), each)
		}
		ids := []string{b.deliver(other).ID}
		snd := b.start(func(cfg *sender.Config) { cfg.Window = window })
		well.next() // all that was appended before it has been read
		for range 150 {
			d := b.deliver(other)
			sent := time.Now()
			ids = append(ids, d.ID)
			// Until it is noticed that they take room for nothing.
			if got := well.next(); got.at.Sub(sent) > 300*time.Millisecond {
				t.Errorf("%s arrives %s after it was appended", got.id(), got.at.Sub(sent))
			}
			time.Sleep(100 * time.Millisecond)
		}
		snd.stop()
		well.wantOnce(t, ids...)
	})
}

// What is parked is drawn in order when the endpoint is well again, and nothing is
// lost or sent twice when the sender stops in the middle.
func TestParkedAreDrawnInOrder(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		var open atomic.Bool
		rc := b.receive(func(w http.ResponseWriter, r *http.Request, _ int) {
			if !open.Load() {
				w.Header().Set("Retry-After", "600") // out of the way
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		s := b.subscribe(rc.url)
		oneAtATime := func(cfg *sender.Config) { cfg.PerEndpoint, cfg.Window = 1, 8 }
		failing := newDelivery(s)
		b.send(b.topics.Deliveries(), failing)
		// Nobody else is there to blame it, so it is those that wait too long.
		stall := make(gate)
		rc.answer = stall.answer
		ids := b.deliverMany(s, 1000)
		snd := b.start(oneAtATime)
		rc.next()
		time.Sleep(5 * time.Second)
		close(stall)
		for range 300 {
			rc.next()
		}
		snd.stop()
		snd = b.start(oneAtATime)
		for range 1001 - 301 {
			rc.next()
		}
		time.Sleep(time.Second)
		b.wantAllCommitted(b.topics.Deliveries())
		b.wantAllCommitted(b.topics.Parked())
		committed, err := b.adm.FetchOffsets(t.Context(), b.group())
		if err != nil {
			t.Fatal(err)
		}
		for p, o := range committed[b.topics.Parked()] {
			if o.LeaderEpoch != -1 { // it is none that is known to be right
				t.Errorf("parked deliveries of partition %d are committed with the epoch %d", p, o.LeaderEpoch)
			}
		}
		snd.stop()
		rc.wantOnce(t, append(ids, failing.ID)...)
		rc.wantOrder(t, append([]string{failing.ID}, ids...))
	})
}

// slow is a store that takes its time.
type slow struct{ sender.Claims }

func (s *slow) Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error) {
	time.Sleep(time.Millisecond) // virtual
	return s.Claims.Claim(ctx, id, attempt)
}

// One that is well but has far more waiting than it takes at a time gives way
// too.
func TestFloodGivesWay(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		b.claims = &slow{b.claims}
		flooded := b.receive(func(http.ResponseWriter, *http.Request, int) { time.Sleep(5 * time.Millisecond) })
		well := b.receive(nil)
		a := b.subscribe(flooded.url)
		other := b.neighbour(a, well.url)
		const backlog = 4000 // takes 2.5 s
		b.deliverMany(a, backlog)
		snd := b.start(func(cfg *sender.Config) { cfg.PerEndpoint = 8 })
		first := flooded.next()
		d := b.deliver(other)
		if got := well.next(); got.at.Sub(first.at) > time.Second {
			t.Errorf("it waits %s behind the flood", got.at.Sub(first.at))
		}
		for range backlog - 1 {
			flooded.next()
		}
		snd.stop()
		well.wantOnce(t, d.ID)
		b.wantAllCommitted(b.topics.Parked())
	})
}

// One subscription's parked deliveries are found behind another's many, and those
// are not forgotten.
func TestNobodyWaitsBehindAnothersBacklog(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		stall, open := make(gate), make(gate)
		stuck, well := b.receive(stall.answer), b.receive(open.answer)
		a := b.subscribe(stuck.url)
		other := b.neighbour(a, well.url)
		all := b.deliverMany(a, 1000)
		ids := b.deliverMany(other, 250)
		all = append(all, b.deliverMany(a, 1000)...)
		ids = append(ids, b.deliverMany(other, 250)...)
		snd := b.start(func(cfg *sender.Config) { cfg.PerEndpoint, cfg.Window, cfg.DrawBytes = 1, 16, 48<<10 })
		time.Sleep(5 * time.Second)
		close(open)
		for range ids {
			well.next()
		}
		well.wantOnce(t, ids...)
		well.wantOrder(t, ids)
		close(stall)
		for range all {
			stuck.next()
		}
		time.Sleep(time.Minute) // those that timed out come again
		b.wantAllCommitted(b.topics.Parked())
		snd.stop()
		for _, id := range all {
			if stuck.times[id] == 0 {
				t.Errorf("%s never arrives", id)
			}
		}
	})
}

// An endpoint that fails and fails is left alone, but for a request from time to
// time. When it is well again it gets what waits for it.
func TestFailingEndpointIsLeftAlone(t *testing.T) {
	inVirtualTime(t, webhook.Schedule{time.Minute}, func(t *testing.T, b *bench) {
		var down atomic.Bool
		down.Store(true)
		var failures atomic.Int64
		rc := b.receive(func(w http.ResponseWriter, _ *http.Request, _ int) {
			if down.Load() {
				failures.Add(1)
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		s := b.subscribe(rc.url)
		const backlog = 1000
		b.deliverMany(s, backlog)
		metrics := newRegistry()
		snd := b.start(func(cfg *sender.Config) { cfg.BreakAfter, cfg.Metrics = 30, metrics })
		time.Sleep(time.Hour)
		// 30, those that were under way, 6 while the rest grows to a minute, 60.
		if n := failures.Load(); n < 30+60 || n > 30+10+8+62 {
			t.Errorf("%d requests in an hour of failures", n)
		}
		if n := metrics.value(t, "webhooks_endpoints_left_alone"); n != 1 {
			t.Errorf("%v endpoints are said to be left alone, want 1", n)
		}
		down.Store(false)
		time.Sleep(5 * time.Minute)
		if n := metrics.value(t, "webhooks_endpoints_left_alone"); n != 0 {
			t.Errorf("%v endpoints are said to be left alone, want 0", n)
		}
		snd.stop()
		b.wantAllCommitted(b.topics.Deliveries())
		b.wantAllCommitted(b.topics.Parked())
		// A delivery that failed twice is dead; all others have arrived.
		outcomes := map[string]int{}
		for _, a := range b.attempts(backlog) {
			outcomes[a.Outcome]++
		}
		if outcomes[webhook.Delivered]+outcomes[webhook.Dead] != backlog {
			t.Errorf("outcomes %v, want %d ends", outcomes, backlog)
		}
	})
}

// A rate limit is kept, and waiting for it costs no attempt.
func TestRateLimit(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(nil)
		s := b.subscribe(rc.url)
		s.RateLimit = &webhook.RateLimit{PerSecond: 10, Burst: 5}
		b.put(s)
		ids := b.deliverMany(s, 205)
		snd := b.start()
		first := rc.next().at
		var last time.Time
		for range 204 {
			last = rc.next().at
		}
		if took := last.Sub(first); took < 19*time.Second || took > 21*time.Second {
			t.Errorf("205 requests took %s, want the 20 s that a burst of 5 and 10 a second leave", took)
		}
		snd.stop()
		rc.wantOnce(t, ids...)
		b.wantCount(b.topics.Attempts(), 205)
	})
}

// What is found to be settled already takes nothing of a rate limit: no request is
// made.
func TestSettledTakesNoRate(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		rc := b.receive(nil)
		s := b.subscribe(rc.url)
		s.RateLimit = &webhook.RateLimit{PerSecond: 1, Burst: 1}
		b.put(s)
		first := newDelivery(s)
		for range 100 {
			b.send(b.topics.Deliveries(), first)
		}
		last := b.deliver(s)
		snd := b.start(func(cfg *sender.Config) { cfg.PerEndpoint = 1 })
		began := rc.next().at
		if took := rc.next().at.Sub(began); took > 5*time.Second {
			t.Errorf("after 99 that are settled the next one came after %s", took)
		}
		snd.stop()
		rc.wantOnce(t, first.ID, last.ID)
	})
}

// What has just happened goes before what is replayed, but that is not starved.
func TestLiveBeforeReplayed(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		turns := make(chan struct{})
		rc := b.receive(func(http.ResponseWriter, *http.Request, int) { <-turns })
		s := b.subscribe(rc.url)
		replayed := map[string]bool{}
		for range 20 {
			d := newDelivery(s)
			d.Origin = webhook.OriginOf(webhook.OriginReplay, "r")
			b.send(b.topics.Backfill(), d)
			replayed[d.ID] = true
		}
		snd := b.start(func(cfg *sender.Config) { cfg.PerEndpoint, cfg.LaneWait = 1, time.Hour })
		rc.next()
		b.deliverMany(s, 40)
		time.Sleep(time.Second)
		var order []bool
		for range 59 {
			turns <- struct{}{}
			order = append(order, replayed[rc.next().id()])
		}
		turns <- struct{}{}
		snd.stop()
		firstReplayed := slices.Index(order, true)
		if firstReplayed < 8 || firstReplayed > 20 {
			t.Errorf("the first replayed one comes after %d live ones", firstReplayed)
		}
		if n := len(slices.DeleteFunc(order[:40], func(r bool) bool { return !r })); n > 4 {
			t.Errorf("%d of the first 40 are replayed", n)
		}
		b.wantAllCommitted(b.topics.Backfill())
	})
}

// An endpoint that answers steadily gets a replay with half of all the requests at a
// time that it may have, though there is nothing else for it.
func TestReplayGrows(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		const perEndpoint, n = 32, 400
		var now, most atomic.Int64
		rc := b.receive(func(http.ResponseWriter, *http.Request, int) {
			if at := now.Add(1); at > most.Load() {
				most.Store(at)
			}
			time.Sleep(100 * time.Millisecond)
			now.Add(-1)
		})
		s := b.subscribe(rc.url)
		for range n {
			d := newDelivery(s)
			d.Origin = webhook.OriginOf(webhook.OriginReplay, "r")
			b.send(b.topics.Backfill(), d)
		}
		snd := b.start(func(cfg *sender.Config) { cfg.PerEndpoint, cfg.LaneWait = perEndpoint, time.Hour })
		for range n {
			rc.next()
		}
		snd.stop()
		if got := most.Load(); got != perEndpoint/2 {
			t.Errorf("at most %d requests were under way at a time, want %d", got, perEndpoint/2)
		}
	})
}

// What waits of a replay that has been cancelled is not sent.
func TestCancelledReplay(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	for _, id := range []string{"cancelled", "other"} {
		d := newDelivery(s)
		d.Origin = webhook.OriginOf(webhook.OriginReplay, id)
		b.send(b.topics.Backfill(), d)
	}
	snd := b.start(func(cfg *sender.Config) { cfg.Cancelled = func(id string) bool { return id == "cancelled" } })
	rc.next()
	for _, a := range b.attempts(2) {
		if (a.Origin == "replay:cancelled") != (a.Outcome == webhook.Discarded && a.Error == "replay_cancelled") {
			t.Errorf("recorded as %+v", a)
		}
	}
	snd.stop()
	b.wantAllCommitted(b.topics.Backfill())
}

// The sender asks for a subscription to be disabled whose endpoint says that it is
// gone, at the last attempt and not before, and for one that has not taken anything
// for too long.
func TestAsksToDisable(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		giveUp  time.Duration
		reason  string
		attempt int // the first that asks
	}{
		"gone":       {http.StatusGone, 0, webhook.DisabledGone, 6},
		"no success": {http.StatusBadGateway, 6 * time.Second, webhook.DisabledNoSuccess, 4},
		"not yet":    {http.StatusBadGateway, 0, "", 7},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
				rc := b.receive(status(c.status))
				s := b.subscribe(rc.url)
				b.put(s) // version 2
				snd := b.start(func(cfg *sender.Config) { cfg.GiveUpAfter = c.giveUp })
				b.deliver(s)
				b.deadLetters(1)
				for _, a := range b.attempts(6) {
					asks := a.Disable != nil
					if asks != (a.Attempt >= c.attempt) || asks && (a.Disable.Reason != c.reason || a.Disable.Version != 2) {
						t.Errorf("attempt %d asks for %+v", a.Attempt, a.Disable)
					}
				}
				snd.stop()
			})
		})
	}
}

// A success ends the time without one, whichever sender had it.
func TestSuccessEndsTheTimeWithoutOne(t *testing.T) {
	inVirtualTime(t, webhook.Schedule{time.Second}, func(t *testing.T, b *bench) {
		rc := b.receive(func(w http.ResponseWriter, r *http.Request, _ int) {
			if r.Header.Get("X-Delivery-Attempt") == "1" {
				w.WriteHeader(http.StatusBadGateway)
			}
		})
		s := b.subscribe(rc.url)
		for range 5 {
			snd := b.start(func(cfg *sender.Config) { cfg.GiveUpAfter = 20 * time.Second })
			b.deliver(s)
			rc.next()
			rc.next()
			snd.stop()
			time.Sleep(15 * time.Second)
		}
		for _, a := range b.attempts(10) {
			if a.Disable != nil {
				t.Errorf("attempt asks for %+v", a.Disable)
			}
		}
	})
}
