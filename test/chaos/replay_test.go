package chaos

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
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

// A replay arrives, each event of it once, although who carries it out is killed
// in its middle again and again. CHAOS_EVENTS says of how many events it is.
func TestReplayArrives(t *testing.T) {
	p := newPlan(t)
	d := harness.Start(t, harness.Options{Routers: 2})
	total, kills, body := 2000, 2, map[string]any{"from": "earliest", "rate": 500}
	if text := os.Getenv("CHAOS_EVENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("CHAOS_EVENTS: %v", err)
		}
		total, kills = n, 5
		delete(body, "rate")
	}
	brokers := &address{}
	brokers.set(d.Brokers)
	v := &volume{t: t, brokers: brokers, topic: d.Prefix + "appointments.events"}
	for int(v.acknowledged.Load()) < total && !t.Failed() {
		v.append(t.Context(), 1000)
	}
	v.close()
	c := d.SignIn(d.URL)
	sink := newCounter(t)
	late := c.Subscribe(t, "appointment.*", sink.url, "test-secret")
	began := time.Now()
	id := c.Must(t, http.StatusCreated, http.MethodPost, "/api/webhooks/"+late+"/replays", body).Object("replay").String("id")
	for n := range kills {
		at := awaitReplays(t, d, "the replay goes on", func(now map[string]progress) bool {
			return now[id].over() || int(now[id].Done) > (n+1)*total/(kills+2)
		})[id]
		if at.over() {
			t.Fatalf("the replay had ended before the kill %d", n+1)
		}
		// Whoever of them carries it out.
		for _, router := range d.Of("webhook-router") {
			router.Kill()
		}
		p.pace(100*time.Millisecond, 500*time.Millisecond)
		for _, router := range d.Of("webhook-router") {
			d.Restart(router)
		}
		brokers.set(d.Brokers)
		t.Logf("%6.1f s: killed at %d of %d", time.Since(began).Seconds(), at.Done, total)
	}
	ended := awaitReplays(t, d, "the replay ends", func(now map[string]progress) bool { return now[id].over() })[id]
	made := time.Since(began)
	limit := recoverLimit + time.Duration(total)*time.Millisecond
	d.Sent(t, limit)

	wanted := 0
	var violations []string
	twice := 0
	arrived := sink.arrived()
	d.Read(t, "appointments.events", limit, func(r *kgo.Record) {
		e, err := events.Decode(r)
		if err != nil {
			t.Errorf("%d/%d: %v", r.Partition, r.Offset, err)
			return
		}
		wanted++
		delivery := webhook.DeliveryID(e.ID, late, webhook.OriginOf(webhook.OriginReplay, id))
		switch n := arrived[delivery]; {
		case n == 0:
			violations = append(violations, fmt.Sprintf("no delivery of %d/%d arrived", r.Partition, r.Offset))
		case n > 1:
			twice++
		}
		delete(arrived, delivery)
	})
	t.Logf("%d events, %d kills: made after %s, arrived after %s; %d requests were made twice", wanted, kills,
		made.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond), twice)
	// In one process the sender is killed, too, and what is in flight then is sent
	// again.
	if harness.Real() && twice > 0 {
		violations = append(violations, fmt.Sprintf("%d deliveries came twice", twice))
	}
	if len(arrived) > 0 {
		violations = append(violations, fmt.Sprintf("%d deliveries came that nobody wants", len(arrived)))
	}
	if exact := harness.Real(); wanted < total || ended.State != webhook.ReplayDone || exact && ended.Done != int64(wanted) {
		violations = append(violations, fmt.Sprintf("the replay is %s after %d deliveries, want %d", ended.State, ended.Done, wanted))
	}
	report(t, violations)
}

// counter is an endpoint that counts how often each delivery comes.
type counter struct {
	url string

	mu   sync.Mutex
	came map[string]int // by delivery
}

func newCounter(t *testing.T) *counter {
	c := &counter{came: map[string]int{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// ServeHTTP implements http.Handler.
func (c *counter) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // cut off before it was whole: this is no delivery yet
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.came[r.Header.Get("X-Delivery-Id")]++
}

func (c *counter) arrived() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.came)
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
