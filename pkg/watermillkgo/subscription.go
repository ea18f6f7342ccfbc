package watermillkgo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// grace is what a last request to Kafka gets when a subscription ends or loses
// partitions.
const grace = 5 * time.Second

// subscription is one call of Subscribe.
type subscription struct {
	cfg    *SubscriberConfig
	logger watermill.LoggerAdapter
	topic  string
	out    chan *message.Message
	client *kgo.Client

	// intake ends when no message may be handed out any more. hard outlives it by
	// the drain time: messages' contexts come from it.
	intake, hard         context.Context // the subscription's own life, set by join
	stopIntake, stopHard context.CancelFunc

	// committing is held from looking at what is acked to the answer to its commit:
	// a commit that began before a partition was taken away must not arrive after
	// its last one, or even after its next owner's.
	committing sync.Mutex

	workers sync.WaitGroup
	mu      sync.Mutex
	parts   map[int32]*partition
}

func newSubscription(cfg *SubscriberConfig, logger watermill.LoggerAdapter, topic string) *subscription {
	return &subscription{
		cfg: cfg, logger: logger, topic: topic,
		// Unbuffered: a message in a buffer would be in nobody's hands, and in flight.
		out:   make(chan *message.Message),
		parts: map[int32]*partition{},
	}
}

func (s *subscription) options() []kgo.Opt {
	opts := clientOptions(s.cfg.Brokers, s.logger)
	opts = append(opts,
		// A partition that is newly assigned, or resumed, is asked for only when the
		// fetch under way has come back, and one of idle partitions comes back after
		// this wait.
		kgo.FetchMaxWait(250*time.Millisecond),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		// A topic that does not exist yet is looked for this often.
		kgo.MetadataMinAge(250*time.Millisecond),
	)
	opts = append(opts, s.cfg.ClientOptions...)
	isolation := kgo.ReadUncommitted()
	if s.cfg.ReadCommitted {
		isolation = kgo.ReadCommitted()
	}
	opts = append(opts,
		kgo.ConsumeTopics(s.topic),
		kgo.ConsumeStartOffset(s.cfg.Start),
		kgo.FetchIsolationLevel(isolation),
	)
	if s.cfg.ConsumerGroup == "" {
		return opts
	}
	if s.cfg.StartAt != nil {
		opts = append(opts, kgo.AdjustFetchOffsetsFn(s.adjust))
	}
	return append(opts,
		kgo.ConsumerGroup(s.cfg.ConsumerGroup),
		kgo.DisableAutoCommit(),
		// Polled records reach their partition before it can be taken away.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { s.revoked(ctx, m[s.topic]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.lost(m[s.topic]) }),
	)
}

// adjust replaces the group's offsets of partitions that are being assigned.
func (s *subscription) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	assigned := offsets[s.topic]
	if len(assigned) == 0 {
		return offsets, nil
	}
	at, err := s.cfg.StartAt(ctx, s.topic, slices.Sorted(maps.Keys(assigned)))
	if err != nil {
		return nil, fmt.Errorf("find where to start: %w", err)
	}
	for n, o := range at {
		if _, ok := assigned[n]; ok {
			assigned[n] = o
		}
	}
	return offsets, nil
}

// join makes the client, which joins the group at once.
func (s *subscription) join(ctx context.Context) error {
	s.hard, s.stopHard = context.WithCancel(context.WithoutCancel(ctx))
	s.intake, s.stopIntake = context.WithCancel(s.hard)
	s.mu.Lock() // the callbacks wait until there is a client
	defer s.mu.Unlock()
	var err error
	if s.client, err = kgo.NewClient(s.options()...); err != nil {
		s.stopHard()
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

// run receives until ctx ends; messages in flight then get the drain time.
func (s *subscription) run(ctx context.Context) {
	defer close(s.out)
	defer s.stopHard()
	detach := context.AfterFunc(ctx, s.stopIntake)
	defer detach()
	var serving sync.WaitGroup
	serving.Go(s.poll)
	if s.cfg.ConsumerGroup != "" {
		serving.Go(s.commits)
	}
	serving.Wait()

	s.mu.Lock()
	var all []int32
	for n := range s.parts {
		all = append(all, n)
	}
	s.mu.Unlock()
	s.revoked(s.hard, all)
	// A rebalance may be taking partitions away just now: they get their time too.
	s.workers.Wait()
	s.leave()
}

func (s *subscription) leave() {
	s.client.AllowRebalance()
	ctx, cancel := context.WithTimeout(s.hard, grace)
	defer cancel()
	if err := s.client.LeaveGroupContext(ctx); err != nil {
		s.logger.Info("Left without telling the group, which notices when the session times out", watermill.LogFields{"err": err})
	}
	s.client.CloseAllowingRebalance()
	// Closing may have begun to leave once more, which waits for polls in the
	// background; there are none any more.
	s.client.AllowRebalance()
}

func (s *subscription) poll() {
	defer s.client.AllowRebalance()
	for {
		fetches := s.client.PollFetches(s.intake)
		if s.intake.Err() != nil || fetches.IsClientClosed() {
			return
		}
		fetches.EachError(func(_ string, n int32, err error) {
			// The client tries again by itself.
			s.logger.Error("Cannot fetch", err, watermill.LogFields{"partition": n})
		})
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if len(f.Records) > 0 {
				s.partition(f.Partition).feed(f.Records)
			}
		})
		s.client.AllowRebalance()
	}
}

// partition returns the partition of that number and begins it if need be. Only
// poll calls it, while no partition can be taken away.
func (s *subscription) partition(n int32) *partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[n]
	if p == nil {
		p = newPartition(s, n)
		s.parts[n] = p
		s.workers.Go(p.run)
	}
	return p
}

// take removes partitions, so that nothing but its caller commits them.
func (s *subscription) take(numbers []int32) []*partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken []*partition
	for _, n := range numbers {
		if p := s.parts[n]; p != nil {
			delete(s.parts, n)
			taken = append(taken, p)
		}
	}
	return taken
}

// revoked ends partitions: nothing more is handed out, what is in flight gets the
// drain time, and what is acked is committed, while nobody else can have them.
func (s *subscription) revoked(ctx context.Context, numbers []int32) {
	gone := s.take(numbers)
	for _, p := range gone {
		p.stopIntake()
	}
	drained, cancel := context.WithTimeout(ctx, max(s.cfg.DrainTimeout, 0))
	defer cancel()
	for _, p := range gone {
		p.await(drained)
	}
	if s.cfg.ConsumerGroup == "" {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	s.committing.Lock() // also with nothing to commit: one that began before ends first
	defer s.committing.Unlock()
	s.commit(last, gone)
}

// lost ends partitions that somebody else may have already. There is nothing to
// wait for: an ack could not be committed.
func (s *subscription) lost(numbers []int32) {
	gone := s.take(numbers)
	ended, cancel := context.WithCancel(s.hard)
	cancel()
	for _, p := range gone {
		p.await(ended)
	}
}

func (s *subscription) commits() {
	tick := time.NewTicker(s.cfg.CommitInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.intake.Done():
			return
		case <-tick.C:
			s.commitHeld()
		}
	}
}

func (s *subscription) commitHeld() {
	ctx, cancel := context.WithTimeout(s.hard, grace) // a rebalance may be waiting for it
	defer cancel()
	s.committing.Lock()
	defer s.committing.Unlock()
	s.mu.Lock()
	held := make([]*partition, 0, len(s.parts))
	for _, p := range s.parts {
		held = append(held, p)
	}
	s.mu.Unlock()
	s.commit(ctx, held)
}

// commit commits what is acked; the caller holds committing.
func (s *subscription) commit(ctx context.Context, partitions []*partition) {
	offsets := map[int32]kgo.EpochOffset{}
	for _, p := range partitions {
		if o, ok := p.tracker.Committable(); ok {
			offsets[p.n] = o
		}
	}
	if len(offsets) == 0 {
		return
	}
	if err := s.commitOffsets(ctx, offsets); err != nil {
		// Nothing is lost: the next commit covers it, or it is delivered again.
		s.logger.Info("Cannot commit offsets", watermill.LogFields{"err": err})
		return
	}
	for _, p := range partitions {
		if o, ok := offsets[p.n]; ok {
			p.tracker.Committed(o.Offset)
		}
	}
}

func (s *subscription) commitOffsets(ctx context.Context, offsets map[int32]kgo.EpochOffset) error {
	var failed error
	s.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{s.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if failed = err; err != nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
						failed = errors.Join(failed, fmt.Errorf("partition %d: %w", p.Partition, err))
					}
				}
			}
		})
	return failed
}
