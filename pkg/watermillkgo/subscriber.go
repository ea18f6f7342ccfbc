package watermillkgo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// None is no time at all, for a duration of SubscriberConfig that has a default.
const None time.Duration = -1

// TopicConfig says how SubscribeInitialize creates topics.
type TopicConfig struct {
	// Partitions is how many. Default: as the broker's num.partitions says.
	Partitions int32
	// ReplicationFactor is how many brokers keep each. Default: as the broker's
	// default.replication.factor says.
	ReplicationFactor int16
	// Configs are settings by name, as "retention.ms".
	Configs map[string]string
}

// SubscriberConfig configures a Subscriber. Fields without a default are
// required.
type SubscriberConfig struct {
	// Brokers are the addresses to begin with. They may be left out if
	// ClientOptions have them.
	Brokers []string
	// ClientOptions are further options of the connection: TLS, SASL, hooks,
	// session time-outs, balancers (default: cooperative-sticky). They win over the
	// defaults that this package sets, except for what its promises stand on: group,
	// topic, start, isolation, commits, callbacks.
	ClientOptions []kgo.Opt
	// ConsumerGroup shares the partitions of a topic among all who subscribe to it
	// with the same name. If it is empty, each subscription reads every partition,
	// from Start on, and commits nothing.
	ConsumerGroup string
	// Start is where a partition is begun that the group has not committed an
	// offset of. The zero value is at the start: nothing that was published is
	// missed. To read from kgo.NewOffset().At(n), commit that to the group instead.
	Start kgo.Offset
	// StartAt, if set, says where partitions are begun that are assigned to the
	// subscription, for those whose positions are kept with what is made of their
	// messages rather than by the group. It is called at each assignment, by several
	// subscriptions at once; those that it leaves out begin at what the group has
	// committed. After an error the subscription joins the group again.
	StartAt func(ctx context.Context, topic string, partitions []int32) (map[int32]kgo.Offset, error)
	// ReadCommitted hides records of aborted transactions, and of open ones until
	// they are committed.
	ReadCommitted bool
	// MaxInFlight bounds the messages of one partition that are handed out and not
	// acked. With 1, the default, the partition's order is kept. With more, the
	// order of each key is kept: a message waits until the one before it with the
	// same key is acked; those without a key have no order. What is acked ahead of
	// one that is not, can't be committed: it is delivered again if the partition is
	// taken away, or the subscription ends, before that one is acked.
	MaxInFlight int
	// BatchRecords, if more than 1, hands out up to so many records as one message:
	// those of a partition that have been fetched, in order. Its payload and metadata
	// are empty: MessageRecordsFromCtx returns the records, and Unmarshal is not
	// called. A batch is acked and nacked as a whole. It goes with a MaxInFlight of 1.
	// Default 1.
	BatchRecords int
	// BufferBytes bounds what is read ahead of one partition; what one fetch brings
	// (1 MiB unless ClientOptions say otherwise) may come on top. Default 1 MiB.
	BufferBytes int64
	// NackDelay is how long a nacked message waits until it is handed out again.
	// Default 100 ms; None for no wait.
	NackDelay time.Duration
	// CommitInterval is how often offsets are committed. What was acked since is
	// delivered again after a crash. Default 100 ms.
	CommitInterval time.Duration
	// DrainTimeout is what messages in flight get to be acked when their partition
	// is taken away, or the subscription ends. After it their contexts end; a later
	// ack is ignored, and they are delivered again, elsewhere or later. It must be
	// shorter than the group's rebalance time-out, franz-go's default of which is
	// 1 minute. Default 10 s; None for no wait.
	DrainTimeout time.Duration
	// Unmarshal makes a message, a new one at each call, of a record. Default: the
	// function Unmarshal. It may be called at once from several goroutines.
	Unmarshal func(*kgo.Record) *message.Message
	// Topic says how SubscribeInitialize creates topics.
	Topic TopicConfig
	// InitializeTimeout bounds SubscribeInitialize. Default 30 s.
	InitializeTimeout time.Duration
}

func (c *SubscriberConfig) defaults() {
	if c.Start == (kgo.Offset{}) {
		c.Start = kgo.NewOffset().AtStart()
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 1
	}
	if c.BatchRecords == 0 {
		c.BatchRecords = 1
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = 1 << 20
	}
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&c.NackDelay, 100*time.Millisecond)
	or(&c.CommitInterval, 100*time.Millisecond)
	or(&c.DrainTimeout, 10*time.Second)
	or(&c.InitializeTimeout, 30*time.Second)
	if c.Unmarshal == nil {
		c.Unmarshal = Unmarshal
	}
	if c.Topic.Partitions == 0 {
		c.Topic.Partitions = -1 // the protocol's word for the broker's default
	}
	if c.Topic.ReplicationFactor == 0 {
		c.Topic.ReplicationFactor = -1
	}
}

func (c *SubscriberConfig) validate() error {
	switch {
	case len(c.Brokers) == 0 && len(c.ClientOptions) == 0:
		return errors.New("watermillkgo: neither Brokers nor ClientOptions say where Kafka is")
	case c.MaxInFlight < 1 || c.BufferBytes < 1 || c.BatchRecords < 1:
		return errors.New("watermillkgo: bounds must be positive")
	case c.BatchRecords > 1 && c.MaxInFlight > 1:
		return errors.New("watermillkgo: with BatchRecords only one batch of a partition is in flight: leave MaxInFlight at 1")
	case c.StartAt != nil && c.ConsumerGroup == "":
		return errors.New("watermillkgo: StartAt is for partitions that a ConsumerGroup assigns")
	case c.CommitInterval < 0 || c.InitializeTimeout < 0:
		return errors.New("watermillkgo: CommitInterval and InitializeTimeout must be positive")
	case c.NackDelay < None || c.DrainTimeout < None:
		return errors.New("watermillkgo: NackDelay and DrainTimeout must be positive or None")
	}
	return nil
}

// Subscriber receives messages from Kafka. It implements message.Subscriber and
// message.SubscribeInitializer. Each subscription has its own connection and is
// a member of the group by itself.
type Subscriber struct {
	cfg    SubscriberConfig
	logger watermill.LoggerAdapter

	closing context.Context // the Subscriber's life: ended by Close
	close   context.CancelFunc

	mu            sync.Mutex // guards Add before Wait
	subscriptions sync.WaitGroup
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber checks cfg and makes a Subscriber, without dialling. A nil logger
// logs nothing.
func NewSubscriber(cfg SubscriberConfig, logger watermill.LoggerAdapter) (*Subscriber, error) {
	cfg.defaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if logger == nil {
		logger = watermill.NopLogger{}
	}
	s := &Subscriber{cfg: cfg, logger: logger}
	if err := kgo.ValidateOpts(newSubscription(&s.cfg, logger, "topic").options()...); err != nil {
		return nil, fmt.Errorf("make subscriber: %w", err)
	}
	s.closing, s.close = context.WithCancel(context.Background())
	return s, nil
}

// Subscribe begins to receive the messages of a topic, which need not exist yet.
// The channel is closed when the subscription has ended: after ctx has, or Close
// was called. No message is handed out from then on; those in flight have
// DrainTimeout to be acked. Their contexts have ctx's values, but end with that
// time only, so that handlers can finish.
//
// A message's context also ends when it is acked or nacked, or when its
// partition has been taken away for DrainTimeout.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return nil, fmt.Errorf("subscribe to %s: subscriber: %w", topic, ErrClosed)
	}
	logger := s.logger.With(watermill.LogFields{"topic": topic, "consumer_group": s.cfg.ConsumerGroup})
	sub := newSubscription(&s.cfg, logger, topic)
	if err := sub.join(ctx); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	s.subscriptions.Go(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		detach := context.AfterFunc(s.closing, cancel)
		defer detach()
		sub.run(ctx)
	})
	return sub.out, nil
}

// SubscribeInitialize creates the topic as SubscriberConfig.Topic says, unless it
// exists, and returns when each of its partitions has a leader.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(s.closing, s.cfg.InitializeTimeout)
	defer cancel()
	if err := s.initialize(ctx, topic); err != nil {
		return fmt.Errorf("initialize topic %s: %w", topic, err)
	}
	return nil
}

func (s *Subscriber) initialize(ctx context.Context, topic string) error {
	client, err := kgo.NewClient(append(clientOptions(s.cfg.Brokers, s.logger), s.cfg.ClientOptions...)...)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	admin := kadm.NewClient(client)
	configs := map[string]*string{}
	for name, value := range s.cfg.Topic.Configs {
		configs[name] = &value
	}
	_, err = admin.CreateTopic(ctx, s.cfg.Topic.Partitions, s.cfg.Topic.ReplicationFactor, configs, topic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create: %w", err)
	}
	for {
		topics, err := admin.ListTopics(ctx, topic)
		if err == nil && led(topics[topic]) {
			return nil
		}
		if err == nil {
			err = topics[topic].Err
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("wait for leaders: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

func led(topic kadm.TopicDetail) bool {
	for _, p := range topic.Partitions {
		if p.Err != nil || p.Leader < 0 {
			return false
		}
	}
	return topic.Err == nil && len(topic.Partitions) > 0
}

// pause waits, and returns false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Close ends all subscriptions and returns when their channels are closed: after
// DrainTimeout, and some seconds for the last commit and leaving the group if
// Kafka does not answer, at the latest. It may be called again.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.close()
	s.mu.Unlock()
	s.subscriptions.Wait()
	return nil
}
