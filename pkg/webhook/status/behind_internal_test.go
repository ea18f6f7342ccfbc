package status

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
)

// Who waits for another's look-up of the ends waits no longer than they want to.
func TestLookUpHoldsUpNobody(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dialled := make(chan struct{})
	once := sync.OnceFunc(func() { close(dialled) })
	silent := kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
		once()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	p, err := New(Config{Kafka: append(testenv.Options(t, conf), silent), Topics: conf.Topics(), Group: conf.TopicPrefix + "status", Redis: testenv.Redis(t), Log: testenv.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	asking, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := p.Behind(asking)
		ended <- err
	}()
	select {
	case <-dialled:
	case <-ctx.Done():
		t.Fatal("Kafka was never asked")
	}
	over, end := context.WithCancel(ctx)
	end()
	if _, err := p.Behind(over); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("who waits no longer is told %v", err)
	}
	if len(p.ends.turn) == 0 {
		t.Error("it waited until the look-up had ended")
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the look-up ended with %v", err)
	}
}
