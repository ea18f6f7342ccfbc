package watermillkgo_test

import (
	"bytes"
	"context"
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// What is published is on the wire as watermill-kafka writes it.
func TestPublishedRecord(t *testing.T) {
	e := newEnv(t, 1)
	p := e.publisher(watermillkgo.PublisherConfig{
		PartitionKey: func(_ string, m *message.Message) ([]byte, error) {
			if m.Metadata["key"] == "" {
				return nil, nil
			}
			return []byte(m.Metadata["key"]), nil
		},
	})
	keyed := message.NewMessage("the-uuid", []byte("payload"))
	keyed.Metadata = message.Metadata{"z": "1", "key": "k", "a": "ü"}
	if err := p.Publish(e.topic, keyed, message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	records := testenv.Read(t, e.kafka, e.topic, 2)
	r := records[0]
	want := []kgo.RecordHeader{
		{Key: "_watermill_message_uuid", Value: []byte("the-uuid")},
		{Key: "a", Value: []byte("ü")}, {Key: "key", Value: []byte("k")}, {Key: "z", Value: []byte("1")},
	}
	if !slices.EqualFunc(r.Headers, want, func(a, b kgo.RecordHeader) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }) {
		t.Errorf("headers %q, want %q", r.Headers, want)
	}
	if string(r.Key) != "k" || string(r.Value) != "payload" {
		t.Errorf("key %q, value %q; want k, payload", r.Key, r.Value)
	}
	if records[1].Key != nil {
		t.Errorf("the message without a key has key %q", records[1].Key)
	}
}

// Records of watermill-kafka, and of anything else, are received.
func TestReceivedMessage(t *testing.T) {
	e := newEnv(t, 1)
	at := time.UnixMilli(1_700_000_000_123)
	client := testenv.Client(t, e.kafka)
	for _, r := range []*kgo.Record{
		{
			Key: []byte("k"), Value: []byte("payload"), Timestamp: at,
			Headers: []kgo.RecordHeader{
				{Key: "a", Value: []byte("1")}, {Key: "_watermill_message_uuid", Value: []byte("the-uuid")},
				{Key: "a", Value: []byte("2")}, {Key: "none"},
			},
		},
		{Value: []byte("foreign")},
		{Value: nil, Headers: []kgo.RecordHeader{{Key: "_watermill_message_uuid"}}},
	} {
		r.Topic = e.topic
		if err := client.ProduceSync(e.ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{}))

	m := e.receive(messages)
	if m.UUID != "the-uuid" || string(m.Payload) != "payload" {
		t.Errorf("UUID %q, payload %q; want the-uuid, payload", m.UUID, m.Payload)
	}
	if want := (message.Metadata{"a": "2", "none": ""}); !maps.Equal(m.Metadata, want) {
		t.Errorf("metadata %q, want %q", m.Metadata, want)
	}
	ctx := m.Context()
	if topic, ok := watermillkgo.MessageTopicFromCtx(ctx); !ok || topic != e.topic {
		t.Errorf("topic %q, %v; want %q", topic, ok, e.topic)
	}
	if partition, offset := position(t, m); partition != 0 || offset != 0 {
		t.Errorf("partition %d, offset %d; want 0, 0", partition, offset)
	}
	if got, ok := watermillkgo.MessageTimestampFromCtx(ctx); !ok || !got.Equal(at) {
		t.Errorf("timestamp %v, %v; want %v", got, ok, at)
	}
	if key, ok := watermillkgo.MessageKeyFromCtx(ctx); !ok || string(key) != "k" {
		t.Errorf("key %q, %v; want k", key, ok)
	}
	// What a handler does to its message is not in the next delivery.
	m.Metadata["added"] = "by a handler"
	m.Nack()
	m = e.receive(messages)
	if _, ok := m.Metadata["added"]; ok {
		t.Error("a redelivered message has the metadata that a handler added")
	}
	m.Ack()

	m = e.receive(messages)
	uuid := m.UUID
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(uuid) {
		t.Errorf("the foreign record's UUID is %q", uuid)
	}
	if key, ok := watermillkgo.MessageKeyFromCtx(m.Context()); !ok || key != nil {
		t.Errorf("key %q, %v; want nil", key, ok)
	}
	m.Nack()
	m = e.receive(messages)
	if m.UUID != uuid {
		t.Errorf("delivered again, the foreign record's UUID is %q, was %q", m.UUID, uuid)
	}
	m.Ack()

	m = e.receive(messages)
	if m.UUID != "" || len(m.Payload) != 0 {
		t.Errorf("UUID %q, payload %q; want both empty, as they were sent", m.UUID, m.Payload)
	}
}

func TestNotReceived(t *testing.T) {
	ctx := context.Background()
	_, topic := watermillkgo.MessageTopicFromCtx(ctx)
	_, partition := watermillkgo.MessagePartitionFromCtx(ctx)
	_, offset := watermillkgo.MessagePartitionOffsetFromCtx(ctx)
	_, timestamp := watermillkgo.MessageTimestampFromCtx(ctx)
	_, key := watermillkgo.MessageKeyFromCtx(ctx)
	if topic || partition || offset || timestamp || key {
		t.Error("a context of no received message has a position")
	}
}
