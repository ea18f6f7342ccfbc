package sender

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// drawer fetches parked deliveries for lanes that have room for them again, from
// wherever they are: one subscription's are found behind another's million
// without drawing those. It serves one shard after the other.
type drawer struct {
	s     *Sender
	topic [16]byte     // the id of the topic, once it is known
	bytes atomic.Int64 // of what is drawn and not settled
	stir  chan struct{}
	// decompress keeps its large buffers from one fetch to the next.
	decompress kgo.Decompressor

	mu   sync.Mutex
	line []*shard
}

func newDrawer(s *Sender) *drawer {
	return &drawer{s: s, stir: make(chan struct{}, 1), decompress: kgo.DefaultDecompressor()}
}

// ask lines up a shard; its drawing stays set until no lane of it is hungry.
func (dr *drawer) ask(sh *shard) {
	dr.mu.Lock()
	dr.line = append(dr.line, sh)
	dr.mu.Unlock()
	select {
	case dr.stir <- struct{}{}:
	default:
	}
}

// room says whether more may be drawn than one delivery for each lane.
func (dr *drawer) room() bool { return dr.bytes.Load() < dr.s.cfg.DrawBytes }

// ample says whether there is room enough to fetch more: a fetch for a single
// delivery costs as much as one for many.
func (dr *drawer) ample() bool { return 2*dr.bytes.Load() < dr.s.cfg.DrawBytes }

// run fetches until ctx ends.
func (dr *drawer) run(ctx context.Context) {
	for {
		dr.mu.Lock()
		var sh *shard
		if len(dr.line) > 0 {
			sh, dr.line = dr.line[0], dr.line[1:]
		}
		dr.mu.Unlock()
		if sh == nil {
			select {
			case <-ctx.Done():
				return
			case <-dr.stir:
			}
			continue
		}
		more, err := dr.draw(ctx, sh)
		if err != nil && ctx.Err() == nil {
			dr.s.cfg.Log.Warn("parked deliveries can't be fetched; trying again", "partition", sh.number, "error", err)
			time.AfterFunc(time.Second, func() { dr.ask(sh) }) // the others go on
		}
		if more {
			dr.ask(sh)
		}
	}
}

// draw makes one fetch for a shard's lanes and says whether some are still
// hungry. Lanes take turns at where it is made, so that nobody waits for one whose
// deliveries are far apart.
func (dr *drawer) draw(ctx context.Context, sh *shard) (more bool, err error) {
	sh.mu.Lock()
	p, until := sh.parked, sh.seen
	at, hungry := sh.hungriest()
	if !hungry {
		sh.drawing = false
	}
	sh.mu.Unlock()
	if !hungry {
		return false, nil
	}
	records, next, err := dr.fetch(ctx, p.partition, at)
	if err != nil {
		return false, err
	}
	for i, r := range records {
		if next = r.Offset + 1; r.Offset >= until {
			records = records[:i]
			break
		}
	}
	return sh.feed(p, records, at, min(next, until)), nil
}

// fetch returns records of the topic of parked deliveries from an offset on, which
// is before its end; or none, and the offset to go on from, if Kafka has deleted
// them.
func (dr *drawer) fetch(ctx context.Context, partition int32, at int64) (records []*kgo.Record, next int64, err error) {
	topic := dr.s.cfg.Topics.Parked()
	if dr.topic == [16]byte{} {
		found, err := kadm.NewClient(dr.s.client).ListTopics(ctx, topic)
		if err == nil {
			err = found.Error()
		}
		if err != nil {
			return nil, 0, fmt.Errorf("look at topic %s: %w", topic, err)
		}
		dr.topic = found[topic].ID
	}
	leader, _, err := dr.s.client.PartitionLeader(topic, partition)
	if err != nil {
		return nil, 0, fmt.Errorf("find the leader of %s[%d]: %w", topic, partition, err)
	}
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.SessionEpoch = -1, -1
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 250, 1, maxFetch, 1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, dr.topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, at, maxFetch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	answer, err := dr.s.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, 0, fmt.Errorf("fetch %s[%d]@%d: %w", topic, partition, at, err)
	}
	resp, ok := answer.(*kmsg.FetchResponse)
	if !ok || resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, 0, fmt.Errorf("fetch %s[%d]@%d: unexpected answer", topic, partition, at)
	}
	part := &resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
		if errors.Is(err, kerr.OffsetOutOfRange) && part.LogStartOffset > at {
			dr.s.cfg.Log.Error("parked deliveries were deleted before they were sent: the topic's retention is too short for the backlog",
				"partition", partition, "offset", at, "log_start", part.LogStartOffset)
			return nil, part.LogStartOffset, nil
		}
		dr.topic = [16]byte{} // it may have been made anew
		return nil, 0, fmt.Errorf("fetch %s[%d]@%d: %w", topic, partition, at, err)
	}
	processed, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Topic: topic, Partition: partition, Offset: at, IsolationLevel: kgo.ReadCommitted(),
	}, part, dr.decompress, nil)
	if processed.Err != nil {
		return nil, 0, fmt.Errorf("read %s[%d]@%d: %w", topic, partition, at, processed.Err)
	}
	if len(processed.Records) == 0 {
		return nil, 0, fmt.Errorf("fetch %s[%d]@%d: nothing is there", topic, partition, at)
	}
	return processed.Records, at, nil
}

// maxFetch bounds what one fetch brings.
const maxFetch = 1 << 20
