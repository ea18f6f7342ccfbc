package router_test

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/router"
)

// virtual makes a bench for virtual time, which is always on an embedded broker.
func virtual(t *testing.T) *bench {
	t.Helper()
	network := &kfake.VirtualNetwork{}
	var topics webhook.Topics
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.ListenFn(network.Listen), kfake.SeedTopics(1, topics.Subscriptions()),
		kfake.SeedTopics(testenv.Partitions, topics.Events(), topics.Deliveries(), topics.DeadLetters()),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelNone)),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	opts := []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.Dialer(network.DialContext)}
	client, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &bench{t: t, opts: opts, topics: topics, client: client, adm: kadm.NewClient(client)}
}

// crowded is a table in which a match takes its time, as where very many match.
type crowded struct {
	*registry.Registry

	mu      sync.Mutex
	takes   time.Duration
	batches []int // how many events each batch has come to
}

func (c *crowded) Sync(ctx context.Context) error {
	c.mu.Lock()
	c.batches = append(c.batches, 0)
	c.mu.Unlock()
	return c.Registry.Sync(ctx)
}

func (c *crowded) Match(eventType string, at webhook.Position) []webhook.Registered {
	c.mu.Lock()
	c.batches[len(c.batches)-1]++
	takes := c.takes
	c.mu.Unlock()
	time.Sleep(takes)
	return c.Registry.Match(eventType, at)
}

// Events that together take longer than a transaction can are routed in smaller
// ones, and in larger ones again when they take less.
func TestMoreThanATransactionCanTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := virtual(t)
		b.rule(newSubscription(1), "appointment.*", true)
		const each = 100
		for range each {
			b.event(events.Created)
		}
		table := &crowded{takes: time.Second}
		stop := b.startWith("a", func(r *registry.Registry) router.Subscriptions { table.Registry = r; return table })
		defer stop()
		if got := len(b.deliveries(each)); got != each {
			t.Errorf("%d deliveries, want %d", got, each)
		}
		table.mu.Lock()
		slow := len(table.batches)
		table.takes = 10 * time.Millisecond
		table.mu.Unlock()
		for range each {
			b.event(events.Created)
		}
		if got := len(b.deliveries(2 * each)); got != 2*each {
			t.Errorf("%d deliveries, want %d", got, 2*each)
		}
		table.mu.Lock()
		defer table.mu.Unlock()
		// What 15 seconds have room for, and the event at which they ended.
		if most := slices.Max(table.batches[:slow]); most > 16 {
			t.Errorf("batches of %v while each event takes a second", table.batches[:slow])
		}
		if most := slices.Max(table.batches[slow:]); most <= 16 {
			t.Errorf("batches of %v when events take little", table.batches[slow:])
		}
	})
}
