package appointment

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// history reads single events from the log. The state keeps their offsets, not
// the events: most appointments' pasts are never asked for.
type history struct {
	topic  string
	mu     sync.Mutex // one read at a time
	client *kgo.Client
}

func newHistory(opts []kgo.Opt, topic string) (*history, error) {
	client, err := kgo.NewClient(append(slices.Clone(opts),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxPartitionBytes(64<<10), // one event is wanted, not what follows
	)...)
	if err != nil {
		return nil, fmt.Errorf("make reader of %s: %w", topic, err)
	}
	return &history{topic: topic, client: client}, nil
}

func (h *history) close() { h.client.Close() }

// read returns the events at the offsets of a partition, which ascend.
func (h *history) read(ctx context.Context, partition int32, offsets []int64) ([]events.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := make([]events.Event, 0, len(offsets))
	for len(found) < len(offsets) {
		records, err := h.fetch(ctx, partition, offsets[len(found)])
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if len(found) == len(offsets) || r.Offset != offsets[len(found)] {
				continue
			}
			e, err := events.Decode(r)
			if err != nil {
				return nil, fmt.Errorf("%s[%d]@%d: %w", h.topic, partition, r.Offset, err)
			}
			found = append(found, e)
		}
	}
	return found, nil
}

// fetch returns some records from the offset on, the first of them at it.
func (h *history) fetch(ctx context.Context, partition int32, offset int64) ([]*kgo.Record, error) {
	at := map[string]map[int32]kgo.Offset{h.topic: {partition: kgo.NewOffset().At(offset)}}
	h.client.AddConsumePartitions(at)
	defer h.client.RemoveConsumePartitions(map[string][]int32{h.topic: {partition}})
	fetches := h.client.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		return nil, fmt.Errorf("read %s[%d] at %d: %w", h.topic, partition, offset, err)
	}
	records := fetches.Records()
	if len(records) == 0 || records[0].Offset != offset {
		return nil, fmt.Errorf("read %s[%d] at %d: the event is gone from the log", h.topic, partition, offset)
	}
	return records, nil
}
