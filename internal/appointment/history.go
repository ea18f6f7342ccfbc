package appointment

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// history reads single events from the log. The state keeps their offsets, not
// the events: most appointments' pasts are never asked for. Each partition has a
// reader of its own: one that is slow to answer holds up nobody else's.
type history struct {
	topic   string
	opts    []kgo.Opt
	readers []reader // by partition
}

// reader reads a partition, one read at a time.
type reader struct {
	turn   chan struct{} // full during a read
	client *kgo.Client   // nil before the first
}

func newHistory(opts []kgo.Opt, topic string, partitions int) *history {
	h := &history{topic: topic, readers: make([]reader, partitions), opts: append(slices.Clone(opts),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxPartitionBytes(64<<10), // one event is wanted, not what follows
	)}
	for p := range h.readers {
		h.readers[p].turn = make(chan struct{}, 1)
	}
	return h
}

// close waits for reads under way; none may follow.
func (h *history) close() {
	for p := range h.readers {
		r := &h.readers[p] // its client may be made meanwhile
		r.turn <- struct{}{}
		if r.client != nil {
			r.client.Close()
		}
	}
}

// read returns the events at the offsets of a partition, which ascend.
func (h *history) read(ctx context.Context, partition int32, offsets []int64) ([]events.Event, error) {
	r := &h.readers[partition]
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other reads of %s[%d]: %w", h.topic, partition, ctx.Err())
	}
	if r.client == nil {
		var err error
		if r.client, err = kgo.NewClient(h.opts...); err != nil {
			return nil, fmt.Errorf("make reader of %s: %w", h.topic, err)
		}
	}
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
	client := h.readers[partition].client
	client.AddConsumePartitions(at)
	defer client.RemoveConsumePartitions(map[string][]int32{h.topic: {partition}})
	fetches := client.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		return nil, fmt.Errorf("read %s[%d] at %d: %w", h.topic, partition, offset, err)
	}
	records := fetches.Records()
	if len(records) == 0 || records[0].Offset != offset {
		return nil, fmt.Errorf("read %s[%d] at %d: the event is gone from the log", h.topic, partition, offset)
	}
	return records, nil
}
