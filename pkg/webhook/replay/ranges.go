package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Range is a part of a topic: by partition, the first offset that is in it and
// the first that is not any more.
type Range struct {
	Topic    string
	From, To []int64
}

// ErrOutOfRange says that the topic does not go back to where the range begins.
var ErrOutOfRange = errors.New("the topic does not go back so far")

const (
	// fetchBytes bounds what a reader has been sent and not handed on.
	fetchBytes = 2 << 20
	// maxPoll bounds the records that are looked at together.
	maxPoll = 2000
)

// reader goes through ranges of topics, the records of each partition in order.
type reader struct {
	client *kgo.Client
	left   map[string]map[int32]span
}

// span is where a partition's reader stands, and where it ends.
type span struct{ at, end int64 }

// newReader makes a reader of committed records. Close it.
func newReader(opts []kgo.Opt, ranges ...Range) (*reader, error) {
	r := &reader{left: map[string]map[int32]span{}}
	starts := map[string]map[int32]kgo.Offset{}
	for _, one := range ranges {
		for p, from := range one.From {
			if from >= one.To[p] {
				continue
			}
			if starts[one.Topic] == nil {
				starts[one.Topic], r.left[one.Topic] = map[int32]kgo.Offset{}, map[int32]span{}
			}
			starts[one.Topic][int32(p)] = kgo.NewOffset().At(from)
			r.left[one.Topic][int32(p)] = span{from, one.To[p]}
		}
	}
	if len(starts) == 0 {
		return r, nil
	}
	var err error
	r.client, err = kgo.NewClient(append(slices.Clone(opts),
		kgo.ConsumePartitions(starts),
		// Never by surprise: what is missing is for the caller to know.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Ranges end in markers, and only who sees them knows that the end is there.
		kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(fetchBytes/2),
		kgo.MaxConcurrentFetches(1),
	)...)
	if err != nil {
		return nil, fmt.Errorf("read a range: %w", err)
	}
	return r, nil
}

func (r *reader) close() {
	if r.client != nil {
		r.client.Close()
	}
}

// done says whether every range has been read to its end.
func (r *reader) done() bool { return len(r.left) == 0 }

// poll waits for records until ctx ends, and returns those of the ranges, control
// records too: they are in the way. Nothing and no error means that there was
// nothing yet.
func (r *reader) poll(ctx context.Context) ([]*kgo.Record, error) {
	if r.done() {
		return nil, nil
	}
	fetches := r.client.PollRecords(ctx, maxPoll)
	var failed error
	fetches.EachError(func(topic string, partition int32, err error) {
		_, lost := errors.AsType[*kgo.ErrDataLoss](err)
		switch {
		case lost || errors.Is(err, kerr.OffsetOutOfRange):
			failed = fmt.Errorf("read %s[%d]: %w", topic, partition, ErrOutOfRange)
		case ctx.Err() == nil && failed == nil && !kerr.IsRetriable(err) && !kgo.IsRetryableBrokerErr(err):
			failed = fmt.Errorf("read %s[%d]: %w", topic, partition, err)
		}
	})
	if failed != nil {
		return nil, failed
	}
	var found []*kgo.Record
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		for _, rec := range p.Records {
			s, wanted := r.left[p.Topic][p.Partition]
			if !wanted {
				break
			}
			if rec.Offset < s.end {
				found = append(found, rec)
			}
			if s.at = rec.Offset + 1; s.at < s.end {
				r.left[p.Topic][p.Partition] = s
				continue
			}
			r.drop(p.Topic, p.Partition)
		}
	})
	return found, nil
}

// drop ends the reading of a partition.
func (r *reader) drop(topic string, partition int32) {
	r.client.RemoveConsumePartitions(map[string][]int32{topic: {partition}})
	if delete(r.left[topic], partition); len(r.left[topic]) == 0 {
		delete(r.left, topic)
	}
}

// remaining returns how many offsets are still to be read.
func (r *reader) remaining() int64 {
	var n int64
	for _, partitions := range r.left {
		for _, s := range partitions {
			n += s.end - s.at
		}
	}
	return n
}

// Scan calls each for the committed records of ranges, those of a partition in
// order, until it returns false, the ranges have been read or ctx ends; the last
// is an error.
func Scan(ctx context.Context, opts []kgo.Opt, each func(*kgo.Record) bool, ranges ...Range) error {
	_, err := scan(ctx, opts, each, ranges...)
	return err
}

// scan returns besides how many offsets were not read.
func scan(ctx context.Context, opts []kgo.Opt, each func(*kgo.Record) bool, ranges ...Range) (int64, error) {
	r, err := newReader(opts, ranges...)
	if err != nil {
		return 0, err
	}
	defer r.close()
	for !r.done() {
		records, err := r.poll(ctx)
		if err == nil && len(records) == 0 && ctx.Err() != nil {
			err = fmt.Errorf("read a range: %w", context.Cause(ctx))
		}
		if err != nil {
			return r.remaining(), err
		}
		for _, rec := range records {
			if !rec.Attrs.IsControl() && !each(rec) {
				return r.remaining(), nil
			}
		}
	}
	return 0, nil
}

// Lookup returns the records at positions of a topic, those that are there and
// committed. It is meant for positions that lie close together, as those of an
// outage do, and is only slower where they don't.
func Lookup(ctx context.Context, opts []kgo.Opt, topic string, positions []webhook.Position) (map[webhook.Position]*kgo.Record, error) {
	// near is how far it rather reads on than begins anew.
	const near = 500
	if len(positions) == 0 {
		return nil, nil
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("look up records of %s: %w", topic, err)
	}
	defer client.Close()
	starts, ends, err := Bounds(ctx, kadm.NewClient(client), topic)
	if err != nil {
		return nil, err
	}
	wanted := map[int32][]int64{}
	for _, at := range positions {
		// What is not there would be waited for.
		if p := int(at.Partition); p < len(ends) && at.Offset >= starts[p] && at.Offset < ends[p] {
			wanted[at.Partition] = append(wanted[at.Partition], at.Offset)
		}
	}
	found := make(map[webhook.Position]*kgo.Record, len(positions))
	for len(wanted) > 0 {
		// One stretch of each partition at a time.
		var stretch Range
		stretch.Topic = topic
		for p, offsets := range wanted {
			slices.Sort(offsets)
			n := 1
			for n < len(offsets) && offsets[n]-offsets[n-1] <= near {
				n++
			}
			for int(p) >= len(stretch.From) {
				stretch.From, stretch.To = append(stretch.From, 0), append(stretch.To, 0)
			}
			stretch.From[p], stretch.To[p] = offsets[0], offsets[n-1]+1
			for _, o := range offsets[:n] {
				found[webhook.Position{Partition: p, Offset: o}] = nil
			}
			if n == len(offsets) {
				delete(wanted, p)
			} else {
				wanted[p] = offsets[n:]
			}
		}
		err := Scan(ctx, opts, func(rec *kgo.Record) bool {
			at := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
			if _, asked := found[at]; asked {
				found[at] = rec
			}
			return true
		}, stretch)
		if err != nil {
			return nil, err
		}
	}
	for at, rec := range found {
		if rec == nil {
			delete(found, at)
		}
	}
	return found, nil
}

// Bounds returns where the partitions of a topic start and end.
func Bounds(ctx context.Context, adm *kadm.Client, topic string) (starts, ends []int64, err error) {
	if starts, err = Offsets(ctx, topic, adm.ListStartOffsets); err != nil {
		return nil, nil, fmt.Errorf("look up the start of %s: %w", topic, err)
	}
	ends, err = Offsets(ctx, topic, adm.ListEndOffsets)
	if err == nil && len(ends) != len(starts) {
		err = errors.New("not all partitions answered")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look up the end of %s: %w", topic, err)
	}
	return starts, ends, nil
}

// Offsets returns listed offsets of a topic by partition. It tries again while
// leaders move, until ctx ends.
func Offsets(ctx context.Context, topic string, list func(context.Context, ...string) (kadm.ListedOffsets, error)) ([]int64, error) {
	for {
		listed, err := list(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err != nil && kerr.IsRetriable(err) {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		offsets := make([]int64, len(listed[topic]))
		for p, o := range listed[topic] {
			if int(p) >= len(offsets) {
				return nil, fmt.Errorf("partition %d answered, and not all before it", p)
			}
			offsets[p] = o.Offset
		}
		return offsets, nil
	}
}
