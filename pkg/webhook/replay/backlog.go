package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// backlog knows how many deliveries wait in the partitions of the backfill topic
// for the senders to settle them.
type backlog struct {
	adm   *kadm.Client
	topic string
	group string
	// partition is the producer's: the hash of a record's key.
	partition kgo.TopicPartitioner

	looked time.Time
	// By partition: where the topic ends, and what the senders have committed.
	ends, settled []int64
}

// lookEvery is how old what is known of the senders may be.
const lookEvery = 250 * time.Millisecond

func newBacklog(client *kgo.Client, topic, group string) *backlog {
	return &backlog{
		adm: kadm.NewClient(client), topic: topic, group: group,
		partition: kgo.StickyKeyPartitioner(nil).ForTopic(topic),
	}
}

// waiting returns how many records wait in a subscription's partition, the
// markers of transactions included.
func (b *backlog) waiting(ctx context.Context, subscriptionID string) (int64, error) {
	if time.Since(b.looked) >= lookEvery {
		if err := b.look(ctx); err != nil {
			return 0, err
		}
	}
	p := b.partition.Partition(&kgo.Record{Key: []byte(subscriptionID)}, len(b.ends))
	return b.ends[p] - b.settled[p], nil
}

// added tells of the last record that was just written to a partition.
func (b *backlog) added(last *kgo.Record) { b.ends[last.Partition] = last.Offset + 1 }

func (b *backlog) look(ctx context.Context) error {
	began := time.Now()
	// What was deleted before anybody has read it does not wait any more.
	starts, ends, err := Bounds(ctx, b.adm, b.topic)
	if err != nil {
		return err
	}
	committed, err := b.adm.FetchOffsets(ctx, b.group)
	if err == nil {
		err = committed.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // no sender has been there yet
		return fmt.Errorf("fetch offsets of group %s: %w", b.group, err)
	}
	if len(ends) == 0 {
		return fmt.Errorf("topic %s does not exist", b.topic)
	}
	b.ends, b.settled = ends, starts
	for p, start := range starts {
		if o, ok := committed.Lookup(b.topic, int32(p)); ok {
			b.settled[p] = max(o.At, start)
		}
	}
	b.looked = began
	return nil
}
