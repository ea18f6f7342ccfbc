package watermillkgo_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// Subscribers come and go while messages are published and some are nacked: none
// is lost, and those of a key come in order. With one in flight, none comes again
// after it was acked; with more, what was acked ahead of one that was not does.
func TestRebalance(t *testing.T) {
	t.Run("one in flight", func(t *testing.T) { rebalance(t, 1, false) })
	t.Run("some in flight", func(t *testing.T) { rebalance(t, 4, true) })
}

func rebalance(t *testing.T, inFlight int, again bool) {
	const n, perMember, keys = 3000, 300, 20
	e := newEnv(t, 6)
	var mu sync.Mutex
	acked := map[int]int{}
	last := map[int]int{}
	going, end := context.WithCancel(e.ctx) // until all is acked
	defer end()

	publisher := e.publisher(watermillkgo.PublisherConfig{
		PartitionKey: func(_ string, m *message.Message) ([]byte, error) { return []byte(m.Metadata["key"]), nil },
	})
	var working sync.WaitGroup
	working.Go(func() {
		for i := 0; i < n; i += keys {
			var batch []*message.Message
			for k := range keys {
				m := message.NewMessage("", fmt.Append(nil, i+k))
				m.Metadata["key"] = fmt.Sprint(k)
				batch = append(batch, m)
			}
			if err := publisher.Publish(e.topic, batch...); err != nil {
				t.Error(err)
				return
			}
		}
	})

	// member handles some messages and closes its subscriber, then begins again.
	member := func(seed uint64) {
		random := rand.New(rand.NewPCG(seed, seed))
		for {
			s := e.subscriber(watermillkgo.SubscriberConfig{MaxInFlight: inFlight, DrainTimeout: 30 * time.Second})
			messages := e.subscribe(s)
			context.AfterFunc(going, func() { e.close(s) })
			closing := make(chan struct{})
			handled := 0
			for m := range messages {
				if random.IntN(10) == 0 {
					m.Nack()
					continue
				}
				i := number(t, m)
				mu.Lock()
				previous, begun := last[i%keys]
				if begun && i != previous+keys && (i > previous || !again) {
					t.Errorf("key %d: message %d came after %d", i%keys, i, previous)
				}
				last[i%keys] = i
				acked[i]++
				if len(acked) == n {
					end()
				}
				mu.Unlock()
				m.Ack()
				if handled++; handled == perMember {
					// While it closes, messages in flight are still acked here.
					go func() {
						defer close(closing)
						e.close(s)
					}()
				}
			}
			if handled < perMember {
				return // all is acked
			}
			<-closing
			if going.Err() != nil {
				return
			}
		}
	}
	for i := range 3 {
		working.Go(func() { member(uint64(i)) })
	}
	working.Wait()
	if e.ctx.Err() != nil {
		t.Error("not all messages came")
	}
	for i := range n {
		if acked[i] == 0 || acked[i] > 1 && !again {
			t.Errorf("message %d was acked %d times", i, acked[i])
		}
	}
}
