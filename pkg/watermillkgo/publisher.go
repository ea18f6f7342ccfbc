package watermillkgo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrClosed is what a call on a closed Publisher or Subscriber returns.
var ErrClosed = errors.New("closed")

// PublisherConfig configures a Publisher. Fields without a default are required.
type PublisherConfig struct {
	// Brokers are the addresses to begin with. They may be left out if
	// ClientOptions have them.
	Brokers []string
	// ClientOptions are further options of the connection: TLS, SASL, hooks,
	// compression, another partitioner. They win over the defaults that this
	// package sets, except for acks: all in-sync replicas, always.
	ClientOptions []kgo.Opt
	// PartitionKey, if set, gives each message its key; messages of one key go to
	// one partition and keep their order. A nil key means none: Kafka's client
	// chooses the partition. It may be called at once from several goroutines.
	PartitionKey func(topic string, msg *message.Message) ([]byte, error)
	// Marshal makes the record of a message. Default: the function Marshal. It may
	// be called at once from several goroutines.
	Marshal func(topic string, msg *message.Message) (*kgo.Record, error)
	// DeliveryTimeout bounds how long a message is tried to be published, however
	// long its own context lasts. One whose request is under way without an answer
	// is not given up, as it may have been written. At least 1 s; default 30 s.
	DeliveryTimeout time.Duration
	// CloseTimeout bounds how long Close waits for calls of Publish. Default 10 s.
	CloseTimeout time.Duration
}

func (c *PublisherConfig) defaults() {
	if c.Marshal == nil {
		c.Marshal = Marshal
	}
	if c.DeliveryTimeout == 0 {
		c.DeliveryTimeout = 30 * time.Second
	}
	if c.CloseTimeout == 0 {
		c.CloseTimeout = 10 * time.Second
	}
}

func (c *PublisherConfig) validate() error {
	switch {
	case len(c.Brokers) == 0 && len(c.ClientOptions) == 0:
		return errors.New("watermillkgo: neither Brokers nor ClientOptions say where Kafka is")
	case c.DeliveryTimeout < 0 || c.CloseTimeout < 0:
		return errors.New("watermillkgo: time-outs must be positive")
	}
	return nil
}

// Publisher publishes messages to Kafka. It implements message.Publisher.
type Publisher struct {
	cfg    PublisherConfig
	client *kgo.Client

	mu      sync.Mutex
	closed  bool
	calls   sync.WaitGroup
	closing sync.Once
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher checks cfg and makes a Publisher, without dialling. A nil logger
// logs nothing.
func NewPublisher(cfg PublisherConfig, logger watermill.LoggerAdapter) (*Publisher, error) {
	cfg.defaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	opts := clientOptions(cfg.Brokers, logger)
	opts = append(opts,
		kgo.ProducerLinger(0), // whoever waits for the answer gains nothing by lingering
		kgo.RecordDeliveryTimeout(cfg.DeliveryTimeout),
	)
	opts = append(opts, cfg.ClientOptions...)
	opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()))
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make publisher: %w", err)
	}
	return &Publisher{cfg: cfg, client: client}, nil
}

// clientOptions are the defaults of all clients, which ClientOptions may
// override.
func clientOptions(brokers []string, logger watermill.LoggerAdapter) []kgo.Opt {
	opts := []kgo.Opt{kgo.ClientID("watermill")}
	if logger != nil {
		opts = append(opts, kgo.WithLogger(NewLogger(logger, kgo.LogLevelInfo)))
	}
	if len(brokers) > 0 {
		opts = append(opts, kgo.SeedBrokers(brokers...))
	}
	return opts
}

// Publish publishes the messages, together and in their order, and returns when
// all in-sync replicas have all of them. If it fails, any of them may have been
// written nevertheless, unless one could not be marshalled or given its key: that
// is found before any is sent. A message's context bounds its own publishing.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("publish to %s: publisher: %w", topic, ErrClosed)
	}
	p.calls.Add(1)
	p.mu.Unlock()
	defer p.calls.Done()

	records := make([]*kgo.Record, len(messages))
	for i, msg := range messages {
		r, err := p.record(topic, msg)
		if err != nil {
			return fmt.Errorf("publish message %s to %s: %w", msg.UUID, topic, err)
		}
		records[i] = r
	}
	errs := make([]error, len(messages))
	var produced sync.WaitGroup
	produced.Add(len(records))
	for i, r := range records {
		p.client.Produce(messages[i].Context(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				errs[i] = fmt.Errorf("publish message %s to %s: %w", messages[i].UUID, topic, err)
			}
			produced.Done()
		})
	}
	produced.Wait()
	return errors.Join(errs...)
}

func (p *Publisher) record(topic string, msg *message.Message) (*kgo.Record, error) {
	r, err := p.cfg.Marshal(topic, msg)
	if err != nil {
		return nil, fmt.Errorf("marshal: %w", err)
	}
	if p.cfg.PartitionKey != nil {
		if r.Key, err = p.cfg.PartitionKey(topic, msg); err != nil {
			return nil, fmt.Errorf("make its partition key: %w", err)
		}
	}
	return r, nil
}

// Close waits for calls of Publish, for CloseTimeout at most; those that last
// longer fail. It may be called again.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.closing.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), p.cfg.CloseTimeout)
		defer cancel()
		done := make(chan struct{})
		go func() {
			p.calls.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-ctx.Done():
		}
		p.client.Close() // fails what is still buffered
		<-done
	})
	return nil
}
