package sender_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// A request under way when the sender stops is waited for, written down and
// committed; those that wait for their turn are not begun any more, for they
// might not end in time.
func TestStopEndsWhatIsUnderWayAndBeginsNothing(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		open := make(gate)
		rc := b.receive(open.answer)
		s := b.subscribe(rc.url)
		oneAtATime := func(cfg *sender.Config) { cfg.PerEndpoint = 1 }
		var ids []string
		for range 20 {
			ids = append(ids, b.deliver(s).ID)
		}
		snd := b.start(oneAtATime)
		first := rc.next()
		synctest.Wait()
		stopped := stopping(snd)
		close(open)
		stopped()
		rc.wantOnce(t, first.id())
		b.wantCount(b.topics.Attempts(), 1)

		snd = b.start(oneAtATime)
		for range 19 {
			rc.next()
		}
		synctest.Wait() // the first has been found settled
		snd.stop()
		rc.wantOnce(t, ids...)
		b.wantCount(b.topics.Attempts(), 20)
		b.wantAllCommitted(b.topics.Deliveries())
	})
}

// A request that outlasts the drain time is given up. It is made again, but only
// when the lease has ended, so never while it may still be under way.
func TestStopGivesUpAfterTheDrainTime(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		rc := b.receive(func(_ http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				<-r.Context().Done()
			}
		})
		s := b.subscribe(rc.url)
		d := b.deliver(s)
		snd := b.start(func(cfg *sender.Config) { cfg.Drain = 2 * time.Second })
		first := rc.next()
		if took := stopping(snd)(); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("stopping took %s, want the drain time of 2s", took)
		}
		b.wantCount(b.topics.Attempts(), 0)

		snd = b.start()
		again := rc.next()
		if again.id() != d.ID || again.at.Sub(first.at) < 15*time.Second {
			t.Errorf("made again after %s, within the lease", again.at.Sub(first.at))
		}
		snd.stop()
		b.wantAllCommitted(b.topics.Deliveries())
	})
}

// Without Kafka nothing can be written down; the sender stops all the same.
func TestStopWithoutKafka(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		open := make(gate)
		rc := b.receive(open.answer)
		s := b.subscribe(rc.url)
		snd := b.start()
		b.deliver(s)
		rc.next()
		// The broker takes the outcome but is gone before it answers, so that the
		// client can't know whether it was written.
		taken := make(chan struct{})
		b.virtual.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			close(taken)
			return nil, errors.New("gone"), true
		})
		close(open)
		<-taken
		b.virtual.cluster.Close()
		if took := stopping(snd)(); took > 15*time.Second+2*5*time.Second {
			t.Errorf("stopping took %s, more than the drain time and the grace of two requests", took)
		}
	})
}

// redis is a store whose connection can be cut.
type redis struct {
	dedupe.Memory
	cut atomic.Bool
}

func (r *redis) gone() error {
	if r.cut.Load() {
		return fmt.Errorf("%w: cut", dedupe.ErrUnavailable)
	}
	return nil
}

func (r *redis) Open(ctx context.Context) error {
	if err := r.gone(); err != nil {
		return err
	}
	return r.Memory.Open(ctx)
}

func (r *redis) Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error) {
	if err := r.gone(); err != nil {
		return dedupe.Claim{}, err
	}
	return r.Memory.Claim(ctx, id, attempt)
}

func (r *redis) SettleAll(ctx context.Context, all []dedupe.Settlement) error {
	if err := r.gone(); err != nil {
		return err
	}
	return r.Memory.SettleAll(ctx, all)
}

// Deliveries that wait for Redis are not under way: stopping is immediate.
func TestStopWithoutRedis(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		claims := new(redis)
		b.claims = claims
		rc := b.receive(nil)
		s := b.subscribe(rc.url)
		snd := b.start()
		before := b.deliver(s)
		rc.next()
		time.Sleep(time.Second) // virtual; it is recorded and marked
		claims.cut.Store(true)
		after := b.deliver(s)
		time.Sleep(time.Second)
		if snd.Ready() == nil {
			t.Error("ready without Redis")
		}
		if took := stopping(snd)(); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		rc.wantOnce(t, before.ID)

		claims.cut.Store(false)
		snd = b.start()
		rc.next()
		snd.stop()
		rc.wantOnce(t, before.ID, after.ID)
		b.wantAllCommitted(b.topics.Deliveries())
	})
}

// Redis is away through the whole drain: what a delivery came to is on record,
// and that is enough to have done with it.
func TestStopWithoutRedisRemembersWhatIsRecorded(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		claims := new(redis)
		b.claims = claims
		rc := b.receive(func(w http.ResponseWriter, _ *http.Request, _ int) {
			claims.cut.Store(true)
			w.WriteHeader(http.StatusOK)
		})
		snd := b.start()
		d := b.deliver(b.subscribe(rc.url))
		rc.next()
		snd.stop()
		b.wantAllCommitted(b.topics.Deliveries())

		claims.cut.Store(false)
		snd = b.start()
		time.Sleep(time.Minute) // virtual; longer than the lost claim
		snd.stop()
		rc.wantOnce(t, d.ID)
	})
}

// While Redis is away the outcomes of what is under way go on record, batch after
// batch, and are marked when it is back.
func TestOutcomesAreRecordedWithoutRedis(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		claims := new(redis)
		b.claims = claims
		const underWay = 3
		var came atomic.Int64
		rc := b.receive(func(http.ResponseWriter, *http.Request, int) { time.Sleep(time.Duration(came.Add(1)) * time.Second) })
		snd := b.start()
		ids := b.deliverMany(b.subscribe(rc.url), underWay)
		for range underWay {
			rc.next()
		}
		claims.cut.Store(true)
		time.Sleep((underWay + 1) * time.Second) // virtual; each has been answered a second after the other
		b.wantCount(b.topics.Attempts(), underWay)
		claims.cut.Store(false)
		time.Sleep(time.Second)
		for _, id := range ids {
			if c, err := claims.Claim(t.Context(), id, 1); err != nil || c.Outcome != webhook.Delivered {
				t.Errorf("%s is marked as %+v, %v", id, c, err)
			}
		}
		snd.stop()
		rc.wantOnce(t, ids...)
		b.wantAllCommitted(b.topics.Deliveries())
	})
}

// Redis fails while a stopping sender marks its last outcome, and comes back
// within the drain time.
func TestStopMarksWhenRedisComesBack(t *testing.T) {
	inVirtualTime(t, short, func(t *testing.T, b *bench) {
		claims := new(redis)
		b.claims = claims
		open := make(gate)
		rc := b.receive(open.answer)
		s := b.subscribe(rc.url)
		snd := b.start()
		d := b.deliver(s)
		rc.next()
		stopped := stopping(snd)
		claims.cut.Store(true)
		close(open)
		time.Sleep(3 * time.Second)
		claims.cut.Store(false)
		if took := stopped(); took > 5*time.Second {
			t.Errorf("stopping took %s, although Redis was back after 3s", took)
		}
		rc.wantOnce(t, d.ID)
		b.wantAllCommitted(b.topics.Deliveries())
		if c, err := claims.Claim(t.Context(), d.ID, 1); err != nil || c.Outcome != webhook.Delivered {
			t.Errorf("it is marked as %+v, %v", c, err)
		}
	})
}
