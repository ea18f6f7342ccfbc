package sender_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// observed counts the requests of one sender and tells when the group has given
// it partitions.
type observed struct {
	sender.Poster
	posts  atomic.Int64
	synced chan struct{}
}

func (o *observed) Post(ctx context.Context, r endpoint.Request) endpoint.Result {
	o.posts.Add(1)
	return o.Poster.Post(ctx, r)
}

// OnBrokerRead implements kgo.HookBrokerRead.
func (o *observed) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key == int16(kmsg.SyncGroup) && err == nil {
		o.synced <- struct{}{}
	}
}

func (o *observed) attach(cfg *sender.Config) {
	o.Poster, o.synced = cfg.Client, make(chan struct{}, 1000)
	cfg.Client = o
	cfg.Kafka = append(slices.Clip(cfg.Kafka), kgo.WithHooks(o))
}

// A second sender joins while requests are under way, some first attempts fail,
// and then the first sender leaves: nothing is lost, nothing is made twice.
func TestPartitionsMove(t *testing.T) {
	// One delay, as no delivery fails twice: a sender that was given only the
	// topics of further ones would never have anything to do.
	schedule := short[:1]
	b := newBench(t, schedule)
	open, delivered := make(gate), make(chan struct{}, 10_000)
	var failures atomic.Int64
	rc := b.receive(func(w http.ResponseWriter, r *http.Request, n int) {
		if r.Header.Get("X-Delivery-Attempt") == "1" && r.Header.Get("X-Delivery-Id")[0] < '8' {
			failures.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		open.answer(w, r, n)
		delivered <- struct{}{}
	})
	var subscriptions []*subscription
	for range 12 {
		subscriptions = append(subscriptions, b.subscribe(rc.url))
	}
	ctx, cancel := b.limited()
	defer cancel()
	wait := func(c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
	total := 0
	deliver := func() {
		for _, s := range subscriptions {
			b.deliver(s)
			total++
		}
	}
	var first, second observed
	// Nothing is parked: of what one sender has parked and not committed, the other
	// may still wait for its own claim when it stops.
	patient := func(cfg *sender.Config) { cfg.LaneWait = time.Hour }
	one := b.start(first.attach, patient, func(cfg *sender.Config) { cfg.PerEndpoint = 3 })
	wait(first.synced)
	for range 8 {
		deliver()
	}
	rc.next()
	two := b.start(second.attach, patient)
	wait(first.synced) // some partitions are taken away, with requests under way
	close(open)
	for range total {
		wait(delivered)
	}
	for second.posts.Load() == 0 {
		deliver()
		for range subscriptions {
			wait(delivered)
		}
	}
	deliver()
	one.stop()
	deliver()
	for range 2 * len(subscriptions) {
		wait(delivered)
	}
	two.stop()

	want := int64(total) + failures.Load()
	if got := first.posts.Load() + second.posts.Load(); got != want {
		t.Errorf("%d requests for %d deliveries of which %d failed once, want %d", got, total, failures.Load(), want)
	}
	seen := map[string]bool{}
	for _, a := range b.attempts(int(want)) {
		key := a.DeliveryID + "/" + strconv.Itoa(a.Attempt)
		if seen[key] || a.Outcome != webhook.Delivered && a.Outcome != webhook.Failed {
			t.Errorf("recorded %+v, and %v that before", a, seen[key])
		}
		seen[key] = true
	}
	b.wantCount(b.topics.Attempts(), want)
	b.wantAllCommitted(b.topics.Deliveries())
	for _, delay := range schedule {
		b.wantAllCommitted(b.topics.Retry(delay))
	}
}

// However many others are settled, an offset is never committed past one that
// is not.
func TestCommitsNeverPassTheUnsettled(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		var held *webhook.Delivery
		open := make(gate)
		rc := b.receive(nil)
		rc.answer = func(w http.ResponseWriter, r *http.Request, n int) {
			if r.Header.Get("X-Delivery-Id") == held.ID {
				open.answer(w, r, n)
			}
		}
		s := b.subscribe(rc.url)
		held = newDelivery(s)
		for range 3 {
			b.deliver(s)
		}
		r := b.send(b.topics.Deliveries(), held)
		for range 50 {
			b.deliver(s)
		}
		snd := b.start()
		for range 54 {
			rc.next()
		}
		for range 8 {
			time.Sleep(time.Second)
			if at := b.committed(r.Topic, r.Partition); at != r.Offset {
				t.Errorf("committed to %d, want %d, the one that is under way", at, r.Offset)
			}
		}
		b.wantCount(b.topics.Attempts(), 53)
		close(open)
		time.Sleep(time.Second)
		b.wantAllCommitted(r.Topic) // also before it stops
		snd.stop()
		b.wantAllCommitted(r.Topic)
	})
}

// What a partition holds is bounded in bytes, whatever the backlog.
func TestHeldBytes(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		open := make(gate)
		rc := b.receive(open.answer)
		s := b.subscribe(rc.url)
		const n, body = 400, 10 << 10 // 4 MB
		var last *kgo.Record
		for range n {
			d := newDelivery(s)
			random := make([]byte, body) // can't be compressed
			_, _ = rand.Read(random)     // never fails
			d.Body = append(d.Body, random...)
			last = b.send(b.topics.Deliveries(), d)
		}
		metrics := newRegistry()
		snd := b.start(func(cfg *sender.Config) { cfg.WindowBytes, cfg.Metrics = 64<<10, metrics })
		rc.next()
		time.Sleep(5 * time.Second)
		held := metrics.value(t, "webhooks_deliveries_held_bytes")
		if held < 64<<10 || held > 64<<10+1<<20+2*body {
			t.Errorf("%.0f bytes are held, want the bound of %d and at most a fetch of %d more", held, 64<<10, 1<<20)
		}
		close(open)
		for range n - 1 {
			rc.next()
		}
		snd.stop()
		if held := metrics.value(t, "webhooks_deliveries_held_bytes"); held != 0 {
			t.Errorf("%.0f bytes are held after all is settled", held)
		}
		if at := b.committed(last.Topic, last.Partition); at != last.Offset+1 {
			t.Errorf("committed to %d, want %d", at, last.Offset+1)
		}
	})
}
