package watermillkgo_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// Only what is acked without a gap is committed, in whatever order it is.
func TestCommitsInOrder(t *testing.T) {
	const n = 8
	e := newEnv(t, 1)
	e.publish(n)
	for _, c := range []struct {
		name          string
		first         int64 // where the subscription begins
		acks          []int64
		wantCommitted int64
	}{
		{"none acked", 0, nil, -1},
		{"all but the first", 0, []int64{7, 6, 5, 4, 3, 2, 1}, -1},
		{"two, and two behind a gap", 0, []int64{4, 1, 3, 0}, 2},
		{"backwards", 2, []int64{5, 4, 3, 2}, 6},
		{"the rest", 6, []int64{6, 7}, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := e.subscriber(watermillkgo.SubscriberConfig{MaxInFlight: n})
			messages := e.subscribe(s)
			received := map[int64]*message.Message{}
			for range n - c.first {
				m := e.receive(messages)
				_, offset := position(t, m)
				if offset < c.first {
					t.Fatalf("received offset %d, which was committed", offset)
				}
				received[offset] = m
			}
			for _, offset := range c.acks {
				m := received[offset]
				m.Ack()
				<-m.Context().Done()
			}
			e.close(s)
			if got := e.committed(0); got != c.wantCommitted {
				t.Errorf("committed %d, want %d", got, c.wantCommitted)
			}
		})
	}
}

// Acks are committed while the subscription lasts.
func TestCommitsMeanwhile(t *testing.T) {
	e := newEnv(t, 1)
	e.publish(2)
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{}))
	e.receive(messages).Ack()
	e.receive(messages) // in flight
	e.await("the first message is committed", func() bool { return e.committed(0) == 1 })
}
