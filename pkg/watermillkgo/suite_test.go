package watermillkgo_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// suite is Watermill's own test suite on one Kafka.
type suite struct {
	kafka kafka.Config
	opts  []kgo.Opt
	// partitions is how many each topic gets.
	partitions  int32
	maxInFlight int
	groups      bool
	key         func(string, *message.Message) ([]byte, error)
}

func newSuite(t *testing.T) *suite {
	conf := testenv.Kafka(t, nil)
	return &suite{kafka: conf, opts: testenv.Options(t, conf), partitions: 6, groups: true}
}

func (s *suite) run(t *testing.T, features tests.Features) {
	features.Persistent = true
	features.ConsumerGroups = s.groups
	features.NewSubscriberReceivesOldMessages = !s.groups
	features.GenerateTopicFunc = func(c tests.TestContext) string { return s.kafka.TopicPrefix + c.TestID.String() }
	// The group of a test's subscribers is that test's.
	constructor := func(t *testing.T) (message.Publisher, message.Subscriber) { return s.pubSub(t, t.Name()) }
	tests.TestPubSub(t, features, constructor, s.pubSub)
}

func (s *suite) pubSub(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	pub, err := watermillkgo.NewPublisher(watermillkgo.PublisherConfig{ClientOptions: s.opts, PartitionKey: s.key}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := watermillkgo.SubscriberConfig{
		ClientOptions: s.opts, ConsumerGroup: s.kafka.TopicPrefix + group, MaxInFlight: s.maxInFlight,
		NackDelay: time.Millisecond, DrainTimeout: time.Second,
		Topic: watermillkgo.TopicConfig{Partitions: s.partitions, ReplicationFactor: 1},
	}
	if !s.groups {
		cfg.ConsumerGroup = ""
		// All fifty subscribers of the suite's test of concurrency are left with a
		// message that nobody acks, and are closed one after the other.
		cfg.DrainTimeout = watermillkgo.None
	}
	sub, err := watermillkgo.NewSubscriber(cfg, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The suite does not close all.
		if err := pub.Close(); err != nil {
			t.Errorf("close publisher: %v", err)
		}
		if err := sub.Close(); err != nil {
			t.Errorf("close subscriber: %v", err)
		}
	})
	return pub, sub
}

func TestSuite(t *testing.T) {
	newSuite(t).run(t, tests.Features{})
}

// byPayload keys messages by what the suite's test of order expects to be kept
// in order. The suite's test of acks publishes two of one payload: one partition.
func byPayload(_ string, msg *message.Message) ([]byte, error) { return msg.Payload, nil }

func TestSuiteOrdered(t *testing.T) {
	s := newSuite(t)
	s.key = byPayload
	s.run(t, tests.Features{GuaranteedOrder: true})
}

// In flight at once are only messages of different keys.
func TestSuiteInFlight(t *testing.T) {
	s := newSuite(t)
	s.key, s.maxInFlight = byPayload, 16
	s.run(t, tests.Features{GuaranteedOrder: true})
}

func TestSuiteEveryPartition(t *testing.T) {
	s := newSuite(t)
	s.groups = false
	s.run(t, tests.Features{})
}
