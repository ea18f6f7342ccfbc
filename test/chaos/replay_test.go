package chaos

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// A replay makes one delivery of each event that it covers, however often routers
// and brokers are killed while it is carried out.
func TestReplaying(t *testing.T) {
	p := newPlan(t)
	d := harness.Start(t, harness.Options{Routers: 2, Senders: -1, Env: []string{"REPLAY_AHEAD=1000000"}})
	total, kills, moving := 3000, 5, 8*time.Second
	switch {
	case p.long > 0:
		total, kills, moving = 50_000, 1_000_000, p.long
	case !harness.Real():
		kills = 4
	}
	brokers := &address{}
	brokers.set(d.Brokers)
	v := &volume{t: t, brokers: brokers, topic: d.Prefix + "appointments.events"}
	for int(v.acknowledged.Load()) < total && !t.Failed() {
		v.append(t.Context(), 500)
	}
	v.close()
	c := d.SignIn(d.URL)
	sink := harness.NewSink(t, nil)
	late := c.Subscribe(t, "appointment.*", sink.URL, "test-secret")
	ask := func(body map[string]any) string {
		body["from"] = "earliest"
		return c.Must(t, http.StatusCreated, http.MethodPost, "/api/webhooks/"+late+"/replays", body).Object("replay").String("id")
	}
	slow := ask(map[string]any{"rate": total / int(moving/time.Second)})
	partly := ask(map[string]any{"rate": total / int(moving/time.Second) / 2, "event_names": []string{events.Created}})

	faults := p.replayFaults(d, brokers)
	began, struck := time.Now(), 0
	for last := replays(t, d); struck < kills && !last[slow].over(); struck++ {
		p.pace(300*time.Millisecond, 1200*time.Millisecond)
		before := replays(t, d)
		one := faults[struck%len(faults)]
		one.strike(func(...string) {})
		at := time.Now()
		last = awaitReplays(t, d, "the replay goes on", func(now map[string]progress) bool {
			return now[slow].over() || now[slow].Done > before[slow].Done
		})
		t.Logf("%6.1f s: %s, going on after %s: %d of %d", time.Since(began).Seconds(), one.name, time.Since(at).Round(time.Millisecond), last[slow].Done, total)
	}
	ended := awaitReplays(t, d, "the replays end", func(now map[string]progress) bool { return now[slow].over() && now[partly].over() })
	if struck < min(3, kills) {
		t.Errorf("the run shows nothing: %d kills", struck)
	}

	want, ids := map[string]string{}, map[string]int{}
	d.Read(t, "appointments.events", recoverLimit, func(r *kgo.Record) {
		e, err := events.Decode(r)
		if err != nil {
			t.Errorf("%d/%d: %v", r.Partition, r.Offset, err)
			return
		}
		where := fmt.Sprintf("%s at %d/%d", e.Type, r.Partition, r.Offset)
		want[webhook.DeliveryID(e.ID, late, webhook.OriginOf(webhook.OriginReplay, slow))] = where
		if e.Type == events.Created {
			want[webhook.DeliveryID(e.ID, late, webhook.OriginOf(webhook.OriginReplay, partly))] = where
		}
	})
	var violations []string
	d.Read(t, "webhooks.backfill", recoverLimit, func(r *kgo.Record) {
		delivery, err := webhook.ParseDelivery(r)
		if err != nil {
			violations = append(violations, fmt.Sprintf("delivery at %d/%d: %v", r.Partition, r.Offset, err))
			return
		}
		if want[delivery.ID] == "" {
			violations = append(violations, fmt.Sprintf("a delivery of %s to %s by %q, which is not wanted", delivery.Event, delivery.SubscriptionID, delivery.Origin))
		}
		ids[delivery.ID]++
	})
	repeated := 0
	for id, where := range want {
		switch n := ids[id]; {
		case n == 0:
			violations = append(violations, "no delivery of "+where)
		case n > 1:
			// On the embedded broker a commit of several partitions is not atomic; the
			// id of the delivery absorbs what is there twice.
			repeated += n - 1
			if harness.Real() {
				violations = append(violations, fmt.Sprintf("%d deliveries of %s", n, where))
			}
		}
	}
	if made := ended[slow].Done + ended[partly].Done; harness.Real() && made != int64(len(want)) {
		violations = append(violations, fmt.Sprintf("the replays say that they made %d deliveries, and %d are wanted", made, len(want)))
	}
	t.Logf("%d kills, %d deliveries wanted, %d repeated, %s", struck, len(want), repeated, time.Since(began).Round(time.Second))
	report(t, violations)
}

// replayFaults are the faults of the processes that carry replays out, and of
// what they stand on, in an order of chance.
func (p *plan) replayFaults(d *harness.Deployment, brokers *address) []fault {
	faults := p.routerFaults(d, brokers)
	p.rand.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	return faults
}

// progress is how far a replay is; it has no state before it has begun.
type progress struct{ *webhook.ReplayProgress }

func (p progress) over() bool { return p.State != "" && p.Ended() }

// replays returns how far each replay is. It tries again while brokers are away.
func replays(t *testing.T, d *harness.Deployment) map[string]progress {
	t.Helper()
	limit := time.Now().Add(recoverLimit)
	for {
		found, err := readReplays(t, d)
		if err == nil {
			return found
		}
		if time.Now().After(limit) {
			t.Fatalf("read the replays: %v", err)
		}
	}
}

func readReplays(t *testing.T, d *harness.Deployment) (map[string]progress, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	topic := d.Prefix + "webhooks.replays"
	opts := []kgo.Opt{kgo.SeedBrokers(strings.Split(d.Brokers, ",")...), kgo.FetchMaxWait(100 * time.Millisecond), kgo.MetadataMinAge(250 * time.Millisecond)}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	starts, ends, err := replay.Bounds(ctx, kadm.NewClient(client), topic)
	if err != nil {
		return nil, err
	}
	found := map[string]progress{}
	return found, replay.Scan(ctx, opts, func(r *kgo.Record) bool {
		id, kind, err := webhook.ParseReplayKey(r.Key)
		if err != nil {
			t.Errorf("replay at %d: %v", r.Offset, err)
			return true
		}
		if _, known := found[id]; !known {
			found[id] = progress{&webhook.ReplayProgress{}}
		}
		if kind != webhook.ReplayKindProgress {
			return true
		}
		p, err := webhook.ParseReplayProgress(id, r.Value)
		if err != nil {
			t.Errorf("progress at %d: %v", r.Offset, err)
			return true
		}
		if before := found[id]; before.State != "" && p.Done < before.Done {
			t.Errorf("the progress at %d goes back from %d to %d", r.Offset, before.Done, p.Done)
		}
		found[id] = progress{p}
		return true
	}, replay.Range{Topic: topic, From: starts, To: ends})
}

// awaitReplays returns how far the replays are once it is as wanted.
func awaitReplays(t *testing.T, d *harness.Deployment, what string, wanted func(map[string]progress) bool) map[string]progress {
	t.Helper()
	limit := time.Now().Add(2 * recoverLimit)
	for {
		now := replays(t, d)
		if wanted(now) {
			return now
		}
		if time.Now().After(limit) {
			t.Fatalf("waiting until %s", what)
		}
		tick := time.NewTimer(100 * time.Millisecond)
		<-tick.C
	}
}
