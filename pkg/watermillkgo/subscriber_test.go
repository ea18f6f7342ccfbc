package watermillkgo_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

func TestSubscriberConfig(t *testing.T) {
	brokers := []string{"b:9092"}
	for name, cfg := range map[string]watermillkgo.SubscriberConfig{
		"nowhere":            {},
		"bound":              {Brokers: brokers, MaxInFlight: -1},
		"commit interval":    {Brokers: brokers, CommitInterval: watermillkgo.None},
		"nack delay":         {Brokers: brokers, NackDelay: -time.Second},
		"bad client options": {Brokers: brokers, ClientOptions: []kgo.Opt{kgo.RecordDeliveryTimeout(time.Millisecond)}},
	} {
		if s, err := watermillkgo.NewSubscriber(cfg, nil); err == nil {
			_ = s.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSubscribeInitialize(t *testing.T) {
	e := newEnv(t, 1)
	topic := e.topic + ".settings"
	s := e.subscriber(watermillkgo.SubscriberConfig{Topic: watermillkgo.TopicConfig{
		Partitions: 4, ReplicationFactor: 1, Configs: map[string]string{"retention.ms": "12345"},
	}})
	for range 2 { // the second time it exists
		if err := s.SubscribeInitialize(topic); err != nil {
			t.Fatal(err)
		}
	}
	topics, err := e.admin.ListTopics(e.ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(topics[topic].Partitions); got != 4 {
		t.Errorf("%d partitions, want 4", got)
	}
	configs, err := e.admin.DescribeTopicConfigs(e.ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "retention.ms" && c.MaybeValue() != "12345" {
			t.Errorf("retention.ms is %s, want 12345", c.MaybeValue())
		}
	}
	s = e.subscriber(watermillkgo.SubscriberConfig{Topic: watermillkgo.TopicConfig{Partitions: 1, ReplicationFactor: 100}})
	if err := s.SubscribeInitialize(topic + ".impossible"); !errors.Is(err, kerr.InvalidReplicationFactor) {
		t.Errorf("replicated 100 times: %v", err)
	}
}

// A topic may be made after it was subscribed to.
func TestSubscribeFirst(t *testing.T) {
	for name, grouped := range map[string]bool{"group": true, "every partition": false} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, 1)
			e.topic += ".later"
			s := e.member(grouped, watermillkgo.SubscriberConfig{Topic: watermillkgo.TopicConfig{Partitions: 2, ReplicationFactor: 1}})
			messages := e.subscribe(s)
			if err := s.SubscribeInitialize(e.topic); err != nil {
				t.Fatal(err)
			}
			e.publish(1)
			e.receive(messages).Ack()
		})
	}
}

func TestStart(t *testing.T) {
	for name, grouped := range map[string]bool{"group": true, "every partition": false} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, 1)
			e.publish(5)
			messages := e.subscribe(e.member(grouped, watermillkgo.SubscriberConfig{Start: kgo.NewOffset().AtEnd().Relative(-2)}))
			if _, offset := position(t, e.receive(messages)); offset != 3 {
				t.Errorf("began at offset %d, want 3", offset)
			}
		})
	}
}

// Without a group, everyone gets everything, each time.
func TestEveryPartition(t *testing.T) {
	const n = 30
	e := newEnv(t, 3)
	e.publish(n, "a", "b", "c", "d", "e")
	s := e.reader(watermillkgo.SubscriberConfig{})
	for range 2 {
		messages := e.subscribe(s)
		seen := map[int]bool{}
		for range n {
			m := e.receive(messages)
			seen[number(t, m)] = true
			m.Ack()
		}
		if len(seen) != n {
			t.Errorf("received %d different messages, want %d", len(seen), n)
		}
	}
}

func TestReadCommitted(t *testing.T) {
	e := newEnv(t, 1)
	client := testenv.Client(t, e.kafka, kgo.TransactionalID(e.kafka.TopicPrefix+"writer"))
	for _, c := range []struct {
		value string
		end   kgo.TransactionEndTry
	}{{"aborted", kgo.TryAbort}, {"committed", kgo.TryCommit}} {
		testenv.Transaction(t, client, c.end, &kgo.Record{Topic: e.topic, Value: []byte(c.value)})
	}
	for _, c := range []struct {
		committed bool
		want      string
	}{{true, "committed"}, {false, "aborted"}} {
		messages := e.subscribe(e.reader(watermillkgo.SubscriberConfig{ReadCommitted: c.committed}))
		if got := string(e.receive(messages).Payload); got != c.want {
			t.Errorf("ReadCommitted %v: the first message is %q, want %q", c.committed, got, c.want)
		}
	}
}

// Close ends although nobody receives, nobody acks, and no broker answers any
// more; and it leaves nothing behind.
func TestCloseAlone(t *testing.T) {
	for _, gone := range []bool{false, true} {
		name := "broker there"
		if gone {
			name = "broker gone"
		}
		t.Run(name, func(t *testing.T) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			// Clients that miss their broker may log for a moment after they are closed:
			// not to the test's log.
			quiet := kgo.WithLogger(kgo.BasicLogger(io.Discard, kgo.LogLevelNone, nil))
			conf := kafka.Config{Brokers: cluster.ListenAddrs()}
			e := begin(t, conf, append(testenv.Options(t, conf), quiet), 3)
			e.publish(100, "a", "b", "c", "d", "e")
			before := goleak.IgnoreCurrent()
			s := e.subscriber(watermillkgo.SubscriberConfig{DrainTimeout: time.Millisecond})
			var all []<-chan *message.Message
			for i := range 3 {
				all = append(all, e.subscribe(s))
				if i == 0 {
					e.receive(all[0]) // has all partitions still
				}
			}
			if gone {
				cluster.Close()
			}
			e.close(s)
			for _, messages := range all {
				if _, open := <-messages; open {
					t.Error("a message came after Close")
				}
			}
			if _, err := s.Subscribe(context.Background(), e.topic); !errors.Is(err, watermillkgo.ErrClosed) {
				t.Errorf("subscribe: %v, want that it is closed", err)
			}
			if err := s.SubscribeInitialize(e.topic); err == nil {
				t.Error("a closed subscriber initialised a topic")
			}
			e.close(s)
			goleak.VerifyNone(t, before)
		})
	}
}
