package watermillkgo_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// Records of a partition come as batches: in order, none missing, a nacked one
// again as it was, and nothing of it is committed before it is acked.
func TestBatches(t *testing.T) {
	const n, most = 500, 64
	e := newEnv(t, 1)
	e.publish(n, "a", "b", "c")
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{BatchRecords: most}))
	var next, nacked int64 = 0, -1
	largest := 0
	for next < n {
		m := e.receive(messages)
		records, ok := watermillkgo.MessageRecordsFromCtx(m.Context())
		if !ok || len(records) == 0 || len(records) > most || len(m.Payload) > 0 {
			t.Fatalf("a batch of %d records with a payload of %d bytes", len(records), len(m.Payload))
		}
		largest = max(largest, len(records))
		if _, offset := position(t, m); offset != next {
			t.Fatalf("the batch begins at %d, want %d", offset, next)
		}
		for i, r := range records {
			if r.Offset != next+int64(i) {
				t.Fatalf("record %d of the batch at %d stands at %d", i, next, r.Offset)
			}
		}
		for i, single := range watermillkgo.Split(m) {
			of, ok := watermillkgo.MessageRecordsFromCtx(single.Context())
			if !ok || len(of) != 1 || of[0] != records[i] || string(single.Payload) != string(records[i].Value) || single.UUID == m.UUID && i > 0 {
				t.Fatalf("message %d of the batch at %d is of %v", i, next, of)
			}
		}
		if nacked != next {
			nacked = next
			m.Nack()
			continue
		}
		if at := e.committed(0); at > next {
			t.Fatalf("offset %d is committed, acked is up to %d", at, next)
		}
		next += int64(len(records))
		m.Ack()
	}
	if largest != most {
		t.Errorf("the largest batch has %d records, want %d", largest, most)
	}
	e.await("all is committed", func() bool { return e.committed(0) == n })
}

// Where a partition is begun is said by who keeps its position, whatever the
// group has committed; after an error it is asked again.
func TestStartAt(t *testing.T) {
	const n, start = 10, 4
	e := newEnv(t, 1)
	e.publish(n)
	first := e.subscriber(watermillkgo.SubscriberConfig{})
	messages := e.subscribe(first)
	for range n {
		e.receive(messages).Ack()
	}
	e.await("all is committed", func() bool { return e.committed(0) == n })
	e.close(first)

	var asked atomic.Int64
	messages = e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{
		StartAt: func(_ context.Context, topic string, partitions []int32) (map[int32]kgo.Offset, error) {
			if topic != e.topic || len(partitions) != 1 || partitions[0] != 0 {
				t.Errorf("asked for %s%v", topic, partitions)
			}
			if asked.Add(1) == 1 {
				return nil, errors.New("away")
			}
			return map[int32]kgo.Offset{0: kgo.NewOffset().At(start)}, nil
		},
	}))
	for want := int64(start); want < n; want++ {
		m := e.receive(messages)
		if _, offset := position(t, m); offset != want {
			t.Fatalf("received offset %d, want %d", offset, want)
		}
		m.Ack()
	}
	if asked.Load() < 2 {
		t.Error("it was not asked again")
	}
}

func TestBatchConfig(t *testing.T) {
	at := func(context.Context, string, []int32) (map[int32]kgo.Offset, error) { return nil, nil }
	for name, cfg := range map[string]watermillkgo.SubscriberConfig{
		"several batches in flight": {BatchRecords: 2, MaxInFlight: 2, ConsumerGroup: "g"},
		"negative":                  {BatchRecords: -1, ConsumerGroup: "g"},
		"start without a group":     {StartAt: at},
	} {
		cfg.Brokers = []string{"localhost:9092"}
		if _, err := watermillkgo.NewSubscriber(cfg, watermill.NopLogger{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
