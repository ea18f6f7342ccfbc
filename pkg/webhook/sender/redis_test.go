package sender_test

import (
	"context"
	"testing"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
)

// onMiniredis replaces a bench's claims by some whose server the test owns.
func onMiniredis(t *testing.T, b *bench) *miniredis.Miniredis {
	t.Helper()
	server := miniredis.RunT(t)
	b.claims = newRedis(t, kafka.Config{TopicPrefix: b.topics.Prefix}, dedupe.Config{Redis: &goredis.Options{Addr: server.Addr()}})
	return server
}

// watched tells of the times that Redis was looked for in vain, and of the
// deliveries that were found settled.
type watched struct {
	sender.Claims
	failed  chan error
	settled chan string
}

func watch(b *bench) *watched {
	w := &watched{b.claims, make(chan error), make(chan string, 10_000)}
	b.claims = w
	return w
}

func (w *watched) Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error) {
	c, err := w.Claims.Claim(ctx, id, attempt)
	if c.Verdict == dedupe.Settled {
		w.settled <- id
	}
	return c, err
}

func (w *watched) Open(ctx context.Context) error {
	err := w.Claims.Open(ctx)
	if err != nil {
		select {
		case w.failed <- err:
		default:
		}
	}
	return err
}

// While Redis is stopped nothing is sent; when it is back, all is.
func TestRedisStopped(t *testing.T) {
	b := newBench(t, short)
	server := onMiniredis(t, b)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	w := watch(b)
	snd := b.start()
	<-w.failed // it is empty and has to be restored
	ids := []string{b.deliver(s).ID}
	rc.next()
	server.Close()
	for range 20 {
		ids = append(ids, b.deliver(s).ID)
	}
	<-w.failed
	if snd.Ready() == nil {
		t.Error("ready without Redis")
	}
	<-w.failed
	rc.wantOnce(t, ids[0])
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		rc.next()
	}
	if err := snd.Ready(); err != nil {
		t.Error(err)
	}
	snd.stop()
	rc.wantOnce(t, ids...)
	b.wantAllCommitted(b.topics.Deliveries())
}

// A silent wipe, in the flow: what is under way ends, the marks are rebuilt
// from the attempts, and nothing settled is POSTed again, even when every
// record is read anew.
func TestRedisEmptied(t *testing.T) {
	b := newBench(t, short)
	server := onMiniredis(t, b)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	snd := b.start()
	var ids []string
	for i := range 200 {
		ids = append(ids, b.deliver(s).ID)
		if i%40 == 20 {
			rc.next()
			server.FlushAll()
		}
	}
	for range 195 {
		rc.next()
	}
	snd.stop()
	rc.wantOnce(t, ids...)
	b.wantAllCommitted(b.topics.Deliveries())

	w := watch(b)
	server.FlushAll()
	snd = b.start(func(cfg *sender.Config) { cfg.Group += "-again" }) // from the beginning
	ids = append(ids, b.deliver(s).ID)
	rc.next()
	for range 200 {
		<-w.settled
	}
	snd.stop()
	rc.wantOnce(t, ids...)
	b.wantCount(b.topics.Attempts(), 201)
}
