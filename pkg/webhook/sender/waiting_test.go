package sender_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// The schedule was changed while a delivery waited: it is not forgotten in the
// topic of a delay that is no more.
func TestFormerDelays(t *testing.T) {
	b := newBench(t, short)
	const former = 7 * time.Millisecond
	if _, err := b.adm.CreateTopic(t.Context(), testenv.Partitions, -1, nil, b.topics.Retry(former)); err != nil {
		t.Fatal(err)
	}
	rc := b.receive(nil)
	d := newDelivery(b.subscribe(rc.url))
	d.Attempt, d.NotBefore, d.History = 2, time.Now(), []webhook.PastAttempt{{Attempt: 1, Status: 500}}
	b.claims = new(dedupe.Memory)
	if err := b.settle(d.ID, 1, webhook.Failed); err != nil {
		t.Fatal(err)
	}
	b.send(b.topics.Retry(former), d)
	snd := b.start(func(c *sender.Config) { c.FormerDelays = []time.Duration{former, short[0]} })
	if got := rc.next(); got.id() != d.ID {
		t.Errorf("got %s, want %s", got.id(), d.ID)
	}
	snd.stop()
	b.wantAllCommitted(b.topics.Retry(former))
}

// Deliveries that Kafka deletes before they are sent raise an alarm.
func TestExpiredDeliveries(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	b.deliver(s)
	snd := b.start()
	rc.next()
	snd.stop()

	const lost = 3
	last := kadm.Offsets{}
	for range lost {
		r := b.send(b.topics.Deliveries(), newDelivery(s))
		last.AddOffset(r.Topic, r.Partition, r.Offset+1, -1)
	}
	if _, err := b.adm.DeleteRecords(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	reg := newRegistry()
	snd = b.start(func(c *sender.Config) { c.Metrics = reg })
	next := b.deliver(s)
	if got := rc.next(); got.id() != next.ID {
		t.Errorf("got %s, want %s", got.id(), next.ID)
	}
	snd.stop()
	if got := reg.value(t, "webhooks_deliveries_expired"); got != lost {
		t.Errorf("%v deliveries are said to have expired, want %d", got, lost)
	}
}
