package sender_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// As long as Kafka takes no outcomes, no more requests are made than may be under
// way and wait to be recorded: each of them would be made twice if the process were
// killed now. Nothing is parked for that, and all is sent once when Kafka takes
// outcomes again.
func TestUnrecordedOutcomesAreBounded(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		const inFlight, unrecorded, each = 5, 3, 4
		const most = inFlight + unrecorded
		rc := b.receive(nil)
		sub := b.subscribe(rc.url)
		ids := b.deliverMany(sub, each)
		for range most { // so that every place is taken: one lane may not take all
			sub = b.neighbour(sub, rc.url)
			ids = append(ids, b.deliverMany(sub, each)...)
		}
		takesOutcomes := b.refuseOutcomes()
		snd := b.start(func(cfg *sender.Config) { cfg.InFlight, cfg.Unrecorded = inFlight, unrecorded })
		for range most {
			rc.next()
		}
		time.Sleep(20 * time.Second) // in which Kafka is asked again and again
		synctest.Wait()
		if n := len(rc.arrived); n > 0 {
			t.Errorf("%d requests were made beyond %d", n, most)
		}
		takesOutcomes()
		for range len(ids) - most {
			rc.next()
		}
		b.attempts(len(ids))
		snd.stop()
		rc.wantOnce(t, ids...)
		b.wantCount(b.topics.Parked(), 0)
		b.wantAllCommitted(b.topics.Deliveries())
	})
}

// Endpoints that have answered are not to blame for what waits behind outcomes that
// Kafka is slow to take: nothing of theirs is parked.
func TestOutcomesThatWaitBlameNobody(t *testing.T) {
	inVirtualTime(t, webhook.DefaultSchedule(), func(t *testing.T, b *bench) {
		const lanes, each, window = 8, 20, 32
		rc := b.receive(nil)
		first := b.subscribe(rc.url)
		subs := []*subscription{first}
		for range lanes - 1 {
			subs = append(subs, b.neighbour(first, rc.url))
		}
		takesOutcomes := b.refuseOutcomes()
		var ids []string
		deliver := func(each int) {
			for _, s := range subs {
				ids = append(ids, b.deliverMany(s, each)...)
			}
		}
		snd := b.start(func(cfg *sender.Config) { cfg.InFlight, cfg.Unrecorded, cfg.Window = lanes, 1, window })
		deliver(2) // more than there is room for
		time.Sleep(50 * time.Millisecond)
		deliver(each)
		time.Sleep(700 * time.Millisecond) // silent endpoints are noticed within 300 ms
		b.wantCount(b.topics.Attempts(), 0)
		takesOutcomes()
		b.attempts(len(ids))
		snd.stop()
		rc.wantOnce(t, ids...)
		b.wantCount(b.topics.Parked(), 0)
	})
}

// refuseOutcomes has the broker in memory take no attempts until the returned
// function is called.
func (b *bench) refuseOutcomes() (takes func()) {
	b.t.Helper()
	topics, err := b.adm.ListTopics(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	attempts := topics[b.topics.Attempts()]
	var away atomic.Bool
	away.Store(true)
	b.virtual.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.virtual.cluster.KeepControl()
		for _, t := range r.(*kmsg.ProduceRequest).Topics {
			if away.Load() && t.TopicID == attempts.ID {
				return nil, errors.New("away"), true
			}
		}
		return nil, nil, false
	})
	return func() { away.Store(false) }
}
