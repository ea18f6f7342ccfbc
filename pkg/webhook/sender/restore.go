package sender

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// load feeds every attempt recorded within the life of a mark to yield. It is
// what Redis's marks are rebuilt from.
func (s *Sender) load(ctx context.Context, yield func(id string, attempt int, outcome string) error) error {
	began := time.Now()
	topic := s.cfg.Topics.Attempts()
	adm := kadm.NewClient(s.client)
	starts, err := adm.ListOffsetsAfterMilli(ctx, began.Add(-s.cfg.MarkLife).UnixMilli(), topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("find the attempts to rebuild from: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("find the end of the attempts: %w", err)
	}
	from := map[int32]kgo.Offset{}
	left := map[int32]int64{} // by partition: the offset to reach
	var total int64
	ends.Each(func(end kadm.ListedOffset) {
		start, ok := starts.Lookup(topic, end.Partition)
		if !ok {
			err = fmt.Errorf("find the attempts to rebuild from: partition %d is missing", end.Partition)
			return
		}
		if start.Offset < end.Offset {
			from[end.Partition] = kgo.NewOffset().At(start.Offset)
			left[end.Partition] = end.Offset
			total += end.Offset - start.Offset
		}
	})
	if err != nil {
		return err
	}
	if len(left) == 0 {
		return nil
	}
	s.cfg.Log.Info("rebuilding Redis's marks from the attempts", "attempts", total)
	client, err := kgo.NewClient(append(slices.Clone(s.cfg.Kafka),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // or a marker at the end would be waited for
	)...)
	if err != nil {
		return fmt.Errorf("read the attempts: %w", err)
	}
	defer client.Close()

	var read int64
	told := began
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		// Any error: the client hands over only those that it does not mend itself.
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("read the attempts, partition %d: %w", errs[0].Partition, errs[0].Err)
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			end, wanted := left[r.Partition]
			if failed != nil || !wanted {
				return
			}
			read++
			failed = s.loadOne(r, yield)
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
		if failed != nil {
			return failed
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			s.cfg.Log.Info("rebuilding", "done", read, "total", total)
		}
	}
	s.cfg.Log.Info("rebuilt", "attempts", read, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

func (s *Sender) loadOne(r *kgo.Record, yield func(id string, attempt int, outcome string) error) error {
	if r.Attrs.IsControl() {
		return nil
	}
	a, err := webhook.ParseAttempt(r.Value)
	if err == nil {
		err = markable(a)
	}
	if err != nil {
		s.cfg.Log.Error("unreadable attempt passed over", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		return nil
	}
	if err := yield(a.DeliveryID, a.Attempt, a.Outcome); err != nil {
		return fmt.Errorf("restore the mark of delivery %s: %w", a.DeliveryID, err)
	}
	return nil
}

// markable says why an attempt can't be marked, as one of a newer version may
// be.
func markable(a *webhook.Attempt) error {
	if a.Attempt > dedupe.MaxAttempt {
		return fmt.Errorf("attempt: more than %d", dedupe.MaxAttempt)
	}
	switch a.Outcome {
	case webhook.Delivered, webhook.Failed, webhook.Dead, webhook.Discarded:
		return nil
	}
	return errors.New("attempt: the outcome is unknown")
}

// Ready says why the sender can't send just now, or nil.
func (s *Sender) Ready() error {
	if !s.keeper.ready() {
		return errors.New("waiting for Redis, or for its marks to be rebuilt")
	}
	return nil
}
