package watermillkgo_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// env is one test's Kafka with a topic and a group.
type env struct {
	t            *testing.T
	ctx          context.Context // the test's deadline
	kafka        kafka.Config
	opts         []kgo.Opt
	admin        *kadm.Client
	topic, group string

	mu          sync.Mutex
	subscribers []*watermillkgo.Subscriber
}

func newEnv(t *testing.T, partitions int32) *env {
	t.Helper()
	conf := testenv.Kafka(t, nil)
	return begin(t, conf, testenv.Options(t, conf), partitions)
}

func begin(t *testing.T, conf kafka.Config, opts []kgo.Opt, partitions int32) *env {
	t.Helper()
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	e := &env{
		t: t, kafka: conf, opts: opts, admin: kadm.NewClient(client),
		topic: conf.TopicPrefix + "messages", group: conf.TopicPrefix + "group",
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	e.ctx = ctx
	s := e.subscriber(watermillkgo.SubscriberConfig{Topic: watermillkgo.TopicConfig{Partitions: partitions, ReplicationFactor: 1}})
	if err := s.SubscribeInitialize(e.topic); err != nil {
		t.Fatal(err)
	}
	return e
}

// subscriber makes a subscriber of the group.
func (e *env) subscriber(cfg watermillkgo.SubscriberConfig) *watermillkgo.Subscriber {
	e.t.Helper()
	cfg.ConsumerGroup = e.group
	return e.reader(cfg)
}

// member makes a subscriber of the group, or one of every partition.
func (e *env) member(grouped bool, cfg watermillkgo.SubscriberConfig) *watermillkgo.Subscriber {
	e.t.Helper()
	if grouped {
		return e.subscriber(cfg)
	}
	return e.reader(cfg)
}

// reader makes a subscriber of every partition, unless cfg names a group.
func (e *env) reader(cfg watermillkgo.SubscriberConfig) *watermillkgo.Subscriber {
	e.t.Helper()
	cfg.ClientOptions = append(append([]kgo.Opt(nil), e.opts...), cfg.ClientOptions...)
	if cfg.NackDelay == 0 {
		cfg.NackDelay = watermillkgo.None
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = watermillkgo.None
	}
	s, err := watermillkgo.NewSubscriber(cfg, watermill.NewSlogLogger(testenv.Log(e.t)))
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subscribers == nil {
		e.t.Cleanup(e.closeAll)
	}
	e.subscribers = append(e.subscribers, s)
	return s
}

// closeAll closes all subscribers, at once.
func (e *env) closeAll() {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	var closing sync.WaitGroup
	for _, s := range e.subscribers {
		closing.Go(func() { e.close(s) })
	}
	closing.Wait()
}

func (e *env) publisher(cfg watermillkgo.PublisherConfig) *watermillkgo.Publisher {
	e.t.Helper()
	cfg.ClientOptions = append(append([]kgo.Opt(nil), e.opts...), cfg.ClientOptions...)
	p, err := watermillkgo.NewPublisher(cfg, watermill.NewSlogLogger(testenv.Log(e.t)))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { e.close(p) })
	return p
}

func (e *env) close(c interface{ Close() error }) {
	e.t.Helper()
	if err := c.Close(); err != nil {
		e.t.Errorf("close: %v", err)
	}
}

func (e *env) subscribe(s *watermillkgo.Subscriber) <-chan *message.Message {
	e.t.Helper()
	messages, err := s.Subscribe(context.Background(), e.topic)
	if err != nil {
		e.t.Fatal(err)
	}
	return messages
}

// publish publishes n messages that are numbered, the UUIDs and payloads from
// "0" on, with the keys in turn.
func (e *env) publish(n int, keys ...string) {
	e.t.Helper()
	p := e.publisher(watermillkgo.PublisherConfig{PartitionKey: func(_ string, m *message.Message) ([]byte, error) {
		if len(keys) == 0 {
			return nil, nil
		}
		return []byte(m.Metadata["key"]), nil
	}})
	messages := make([]*message.Message, n)
	for i := range messages {
		messages[i] = message.NewMessage(fmt.Sprint(i), fmt.Append(nil, i))
		if len(keys) > 0 {
			messages[i].Metadata["key"] = keys[i%len(keys)]
		}
	}
	if err := p.Publish(e.topic, messages...); err != nil {
		e.t.Fatal(err)
	}
	e.close(p)
}

func (e *env) receive(messages <-chan *message.Message) *message.Message {
	e.t.Helper()
	select {
	case m, ok := <-messages:
		if !ok {
			e.t.Fatal("the channel is closed, want a message")
		}
		return m
	case <-e.ctx.Done():
		e.t.Fatal("no message came")
	}
	return nil
}

// committed returns the group's offset of a partition, -1 if it has none.
func (e *env) committed(partition int32) int64 {
	e.t.Helper()
	offsets, err := e.admin.FetchOffsets(e.ctx, e.group)
	if err != nil {
		e.t.Fatal(err)
	}
	o, ok := offsets.Lookup(e.topic, partition)
	if !ok {
		return -1
	}
	return o.At
}

// await waits until something holds that can only be asked for.
func (e *env) await(what string, holds func() bool) {
	e.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			e.t.Fatalf("still not so: %s", what)
		}
	}
}

func position(t *testing.T, m *message.Message) (partition int32, offset int64) {
	t.Helper()
	partition, ok := watermillkgo.MessagePartitionFromCtx(m.Context())
	if !ok {
		t.Fatal("the message has no partition")
	}
	offset, ok = watermillkgo.MessagePartitionOffsetFromCtx(m.Context())
	if !ok {
		t.Fatal("the message has no offset")
	}
	return partition, offset
}
