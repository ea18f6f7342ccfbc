package watermillkgo_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// inVirtualTime runs a test on a broker in memory: time passes when nobody has
// anything to do, and nothing else takes any.
func inVirtualTime(t *testing.T, partitions int32, test func(t *testing.T, e *env, cluster *kfake.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var network kfake.VirtualNetwork
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(network.Listen))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		conf := kafka.Config{Brokers: cluster.ListenAddrs()}
		test(t, begin(t, conf, append(testenv.Options(t, conf), kgo.Dialer(network.DialContext)), partitions), cluster)
	})
}

// pass lets time pass, and everything happen that then does.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// none fails the test if there is a message to receive or the channel is closed.
func none(t *testing.T, messages <-chan *message.Message) {
	t.Helper()
	select {
	case m, ok := <-messages:
		if !ok {
			t.Fatal("the channel is closed")
		}
		_, offset := position(t, m)
		t.Fatalf("received offset %d, want nothing", offset)
	default:
	}
}

func TestNackDelay(t *testing.T) {
	inVirtualTime(t, 1, func(t *testing.T, e *env, _ *kfake.Cluster) {
		e.publish(1)
		messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{NackDelay: 7 * time.Second}))
		e.receive(messages).Nack()
		nacked := time.Now()
		e.receive(messages).Ack()
		if took := time.Since(nacked); took != 7*time.Second {
			t.Errorf("the nacked message came after %v, want 7s", took)
		}
	})
}

// Who handles a message when the subscription ends has time to finish, with a
// context that lasts; nothing more is handed out.
func TestDrain(t *testing.T) {
	type key struct{}
	for name, end := range map[string]func(s *watermillkgo.Subscriber, cancel func()){
		"closed":        func(s *watermillkgo.Subscriber, _ func()) { _ = s.Close() },
		"context ended": func(_ *watermillkgo.Subscriber, cancel func()) { cancel() },
	} {
		for _, c := range []struct {
			name          string
			ackAfter      time.Duration
			wantEnd       time.Duration
			wantCommitted int64
		}{
			{"in time", 9 * time.Second, 9 * time.Second, 1},
			{"too late", 11 * time.Second, 10 * time.Second, -1},
		} {
			t.Run(name+", acked "+c.name, func(t *testing.T) {
				inVirtualTime(t, 1, func(t *testing.T, e *env, _ *kfake.Cluster) {
					e.publish(3)
					s := e.subscriber(watermillkgo.SubscriberConfig{MaxInFlight: 2, DrainTimeout: 10 * time.Second})
					ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
					defer cancel()
					messages, err := s.Subscribe(ctx, e.topic)
					if err != nil {
						t.Fatal(err)
					}
					first, second := e.receive(messages), e.receive(messages)
					if _, offset := position(t, first); offset == 1 {
						first, second = second, first
					}

					began := time.Now()
					var ending sync.WaitGroup
					ending.Go(func() { end(s, cancel) })
					synctest.Wait()
					second.Nack()
					pass(c.ackAfter / 2)
					none(t, messages)
					if err := first.Context().Err(); err != nil {
						t.Errorf("the context of a message in flight has ended: %v", err)
					}
					if first.Context().Value(key{}) != "kept" {
						t.Error("the message's context lacks the values of the subscription's")
					}
					ending.Go(func() {
						pass(c.ackAfter - c.ackAfter/2)
						first.Ack()
					})
					for range messages {
						t.Error("a message was handed out after the end")
					}
					if took := time.Since(began).Truncate(time.Second); took != c.wantEnd {
						t.Errorf("it ended after %v, want %v", took, c.wantEnd)
					}
					if first.Context().Err() == nil {
						t.Error("the message's context has not ended with the subscription")
					}
					ending.Wait()
					if got := e.committed(0); got != c.wantCommitted {
						t.Errorf("committed %d, want %d", got, c.wantCommitted)
					}
				})
			})
		}
	}
}

// A partition that is taken away waits for its message in flight, so that nobody
// else gets it, but not for ever.
func TestRevoke(t *testing.T) {
	for _, acked := range []bool{true, false} {
		name := "acked"
		if !acked {
			name = "given up"
		}
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, 2, func(t *testing.T, e *env, _ *kfake.Cluster) {
				e.publish(20, "a", "b", "c", "d") // some for each partition
				// Commits are for revocations and ends: one in the middle of a rebalance
				// waits for a lock, and virtual time does not pass then.
				cfg := watermillkgo.SubscriberConfig{DrainTimeout: 20 * time.Second, CommitInterval: time.Hour}
				subscriber := e.subscriber(cfg)
				old := e.subscribe(subscriber)
				held := map[int32]*message.Message{}
				for range 2 {
					m := e.receive(old)
					partition, _ := position(t, m)
					held[partition] = m
				}
				cfg.DrainTimeout = watermillkgo.None // nobody acks at the end
				joined := e.subscribe(e.subscriber(cfg))
				pass(10 * time.Second)
				none(t, joined)
				none(t, old)

				if acked {
					for _, m := range held {
						m.Ack()
					}
					// What the old one keeps, goes on there.
					m := e.receive(old)
					kept, _ := position(t, m)
					m.Ack()
					partition, offset := position(t, e.receive(joined))
					if partition == kept || offset != 1 {
						t.Errorf("the other got offset %d of partition %d, want 1 of %d", offset, partition, 1-kept)
					}
					return
				}
				partition, offset := position(t, e.receive(joined))
				if offset != 0 {
					t.Errorf("the other got offset %d, want 0: it was not acked", offset)
				}
				if held[partition].Context().Err() == nil {
					t.Error("the context of a message whose partition is another's goes on")
				}
				if held[1-partition].Context().Err() != nil {
					t.Error("the context of a message whose partition was kept has ended")
				}
				held[partition].Ack()
				held[1-partition].Ack()
				<-held[1-partition].Context().Done()
				e.close(subscriber)
				if got := e.committed(partition); got != -1 {
					t.Errorf("committed %d by who had lost the partition", got)
				}
				if got := e.committed(1 - partition); got != 1 {
					t.Errorf("committed %d of the partition that was kept, want 1", got)
				}
			})
		})
	}
}

// A member that was thrown out may commit nothing of what it has in flight, and
// does not wait for it.
func TestLost(t *testing.T) {
	inVirtualTime(t, 1, func(t *testing.T, e *env, cluster *kfake.Cluster) {
		e.publish(2)
		subscriber := e.subscriber(watermillkgo.SubscriberConfig{CommitInterval: time.Hour})
		messages := e.subscribe(subscriber)
		first := e.receive(messages)
		cluster.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
			resp := kmsg.NewPtrHeartbeatResponse()
			resp.Version = req.GetVersion()
			resp.ErrorCode = kerr.UnknownMemberID.Code
			return resp, nil, true
		})
		<-first.Context().Done()
		first.Ack()
		if _, offset := position(t, e.receive(messages)); offset != 0 {
			t.Errorf("received offset %d, want 0 again", offset)
		}
		e.close(subscriber)
		if got := e.committed(0); got != -1 {
			t.Errorf("committed %d, want nothing", got)
		}
	})
}
