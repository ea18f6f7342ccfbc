package watermillkgo_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// A message that can't be made into a record stops all of its call.
func TestPublishRefused(t *testing.T) {
	keyless := errors.New("no key")
	reserved := message.NewMessage("reserved", nil)
	reserved.Metadata["_watermill_message_uuid"] = "x"
	e := newEnv(t, 1)
	p := e.publisher(watermillkgo.PublisherConfig{PartitionKey: func(_ string, m *message.Message) ([]byte, error) {
		if m.UUID == "keyless" {
			return nil, keyless
		}
		return nil, nil
	}})
	if err := p.Publish(e.topic, message.NewMessage("a", nil), message.NewMessage("keyless", nil)); !errors.Is(err, keyless) {
		t.Errorf("error %v, want the key function's", err)
	}
	if err := p.Publish(e.topic, message.NewMessage("b", nil), reserved); err == nil {
		t.Error("reserved metadata was published")
	}
	if err := p.Publish(e.topic); err != nil {
		t.Errorf("publish nothing: %v", err)
	}
	if err := p.Publish(e.topic, message.NewMessage("c", []byte("only"))); err != nil {
		t.Fatal(err)
	}
	if r := testenv.Read(t, e.kafka, e.topic, 1)[0]; string(r.Value) != "only" {
		t.Errorf("the first record is %q, want the last call's", r.Value)
	}
}

// Publishing ends although Kafka does not answer.
func TestPublishUnanswered(t *testing.T) {
	nobody := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	unanswered := func(t *testing.T, cfg watermillkgo.PublisherConfig) *watermillkgo.Publisher {
		cfg.Brokers = []string{"nobody:9092"}
		cfg.ClientOptions = []kgo.Opt{kgo.Dialer(nobody)}
		p, err := watermillkgo.NewPublisher(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("context", func(t *testing.T) {
		p := unanswered(t, watermillkgo.PublisherConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Publish("topic", message.NewMessageWithContext(ctx, "", nil)); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context canceled", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("close", func(t *testing.T) {
		p := unanswered(t, watermillkgo.PublisherConfig{CloseTimeout: time.Millisecond})
		published := publishing(p)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-published; err == nil {
			t.Error("published to nobody")
		}
		if err := p.Publish("topic", message.NewMessage("", nil)); !errors.Is(err, watermillkgo.ErrClosed) {
			t.Errorf("error %v, want that it is closed", err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
	})
	t.Run("delivery time-out", func(t *testing.T) {
		p := unanswered(t, watermillkgo.PublisherConfig{DeliveryTimeout: time.Second})
		if err := <-publishing(p); err == nil {
			t.Error("published to nobody")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

func publishing(p *watermillkgo.Publisher) <-chan error {
	published := make(chan error, 1)
	go func() { published <- p.Publish("topic", message.NewMessage("", nil)) }()
	return published
}

func TestPublisherConfig(t *testing.T) {
	for name, cfg := range map[string]watermillkgo.PublisherConfig{
		"nowhere":            {},
		"negative":           {Brokers: []string{"b:9092"}, DeliveryTimeout: -1},
		"bad client options": {Brokers: []string{"b:9092"}, ClientOptions: []kgo.Opt{kgo.ProducerBatchMaxBytes(-1)}},
	} {
		if p, err := watermillkgo.NewPublisher(cfg, nil); err == nil {
			_ = p.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
