// Package transaction is what a Kafka transaction of franz-go needs besides the
// client, for those who write without a consumer group.
package transaction

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Known waits until the client has stored what it learnt of the partitions that
// produced records stand in; it is to be called before EndTransaction. The first
// records of a client are sent a moment before that, and until then
// EndTransaction of kgo 1.22 does not see that something was written there: a
// commit of nothing else is an abort that returns nil, and the next transaction
// would not tell the broker of the partition. A GroupTransactSession does not need
// it, for its offsets are something. The error is that of ctx.
func Known(ctx context.Context, client *kgo.Client, produced ...*kgo.Record) error {
	for i, r := range produced {
		if i > 0 && r.Topic == produced[i-1].Topic && r.Partition == produced[i-1].Partition {
			continue
		}
		for {
			if leader, _, err := client.PartitionLeader(r.Topic, r.Partition); err == nil && leader >= 0 {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("learn of %s[%d]: %w", r.Topic, r.Partition, context.Cause(ctx))
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}
