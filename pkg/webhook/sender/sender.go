// Package sender delivers: it reads delivery records, POSTs each to its
// endpoint, and hands it to a retry topic or the dead letters when that fails.
//
// Deliveries of one partition go out concurrently, but the committed offset is
// always the lowest that is not settled: delivered, handed over, dead or
// discarded, each acknowledged by Kafka and marked in Redis. Whatever crashes,
// what was not settled is read again, and what was settled is recognised.
package sender

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// Subscriptions is the table that targets and secrets are taken from, at each
// attempt anew.
type Subscriptions interface {
	Get(id string) (webhook.Registered, bool)
	// Await returns when the table has been read up to the offset.
	Await(ctx context.Context, partition int32, offset int64) error
}

// Claims says who may make which attempt; see package dedupe.
type Claims interface {
	Open(ctx context.Context) error
	Restore(ctx context.Context, load dedupe.Load) error
	Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error)
	Settle(ctx context.Context, id string, attempt int, token, outcome string) error
	Release(ctx context.Context, id string, attempt int, token string) error
}

// Poster makes one request; see package endpoint.
type Poster interface {
	Post(ctx context.Context, r endpoint.Request) endpoint.Result
}

// Config of a Sender. Fields without a default are required.
type Config struct {
	// Kafka are the options of the connection.
	Kafka  []kgo.Opt
	Topics webhook.Topics
	// Group is the consumer group that shares out the partitions.
	Group string
	// Schedule holds the delays between attempts; each has its topic.
	Schedule webhook.Schedule
	// FormerDelays are delays of earlier schedules. Deliveries that still wait in
	// their topics are not forgotten.
	FormerDelays []time.Duration
	// RetryAfterCap bounds how far an endpoint's Retry-After moves an attempt.
	// Default 15 minutes.
	RetryAfterCap time.Duration
	// Timeout is what a request may take; Claims' lease must be longer. Default
	// 10 s.
	Timeout time.Duration
	// MarkLife is how far back marks are rebuilt from attempts. Default 8 days.
	MarkLife time.Duration
	// InFlight and InFlightBytes bound the requests under way and their bodies.
	// Defaults 1024 and 64 MiB.
	InFlight      int
	InFlightBytes int64
	// PerEndpoint bounds the requests under way to one subscription. Default 32.
	PerEndpoint int
	// Window bounds the deliveries of one partition that are begun but not
	// settled, and those that are read and wait for that. Default 1000 each.
	Window int
	// WindowBytes bounds the bytes of both together. What one fetch brings, 1 MiB
	// compressed, may come on top. Default 2 MiB.
	WindowBytes int64
	// Drain is what requests under way get to end when a partition is lost or
	// the sender stops. Default 15 s.
	Drain         time.Duration
	Subscriptions Subscriptions
	// Open opens a subscription's sealed secret.
	Open    func(subscriptionID, sealed string) (string, error)
	Claims  Claims
	Client  Poster
	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

func (c *Config) defaults() {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&c.RetryAfterCap, 15*time.Minute)
	or(&c.Timeout, 10*time.Second)
	or(&c.MarkLife, 8*24*time.Hour)
	or(&c.Drain, 15*time.Second)
	if c.InFlight == 0 {
		c.InFlight = 1024
	}
	if c.InFlightBytes == 0 {
		c.InFlightBytes = 64 << 20
	}
	if c.PerEndpoint == 0 {
		c.PerEndpoint = 32
	}
	if c.Window == 0 {
		c.Window = 1000
	}
	if c.WindowBytes == 0 {
		c.WindowBytes = 2 << 20
	}
}

func (c *Config) validate() error {
	switch {
	case c.Group == "":
		return errors.New("sender: Group is not set")
	case c.Subscriptions == nil || c.Open == nil || c.Claims == nil || c.Client == nil || c.Log == nil:
		return errors.New("sender: Subscriptions, Open, Claims, Client and Log are required")
	case c.RetryAfterCap < 0 || c.Timeout < 0 || c.MarkLife < 0 || c.Drain < 0:
		return errors.New("sender: durations must be positive")
	case c.InFlight < 1 || c.InFlightBytes < 1 || c.PerEndpoint < 1 || c.Window < 1 || c.WindowBytes < 1:
		return errors.New("sender: bounds must be positive")
	}
	return c.Schedule.Validate()
}

// Sender delivers the partitions that are assigned to it.
type Sender struct {
	cfg     Config
	topics  []string
	client  *kgo.Client              // set by Run
	delays  map[string]time.Duration // by retry topic
	keeper  *keeper
	pool    *pool
	log     *attemptLog
	lanes   lanes
	slots   *semaphore.Weighted // requests under way
	bytes   *semaphore.Weighted // their bodies
	held    atomic.Int64        // bytes of the records that all partitions hold
	metrics *metrics

	// committing is held from looking at what is settled to the answer to its
	// commit: a commit that began before a partition was taken away must not
	// arrive after its last one, or even after its next owner's.
	committing sync.Mutex

	// work is where deliveries run. It outlives the polling by the drain time.
	work     context.Context // the second of two contexts, set by Run
	workers  sync.WaitGroup
	mu       sync.Mutex
	parts    map[topicPartition]*partition
	stopping bool
}

type topicPartition struct {
	topic     string
	partition int32
}

// New checks cfg and makes a sender, without dialling; Run joins the group and
// delivers.
func New(cfg Config) (*Sender, error) {
	cfg.defaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Sender{
		cfg: cfg, delays: map[string]time.Duration{}, parts: map[topicPartition]*partition{},
		lanes: lanes{limit: cfg.PerEndpoint, byID: map[string]*lane{}},
		slots: semaphore.NewWeighted(int64(cfg.InFlight)), bytes: semaphore.NewWeighted(cfg.InFlightBytes),
		topics: []string{cfg.Topics.Deliveries()},
		pool:   newPool(cfg.InFlight), log: newAttemptLog(cfg.Log),
	}
	for _, d := range append(cfg.Schedule.Delays(), cfg.FormerDelays...) {
		topic := cfg.Topics.Retry(d)
		if _, twice := s.delays[topic]; !twice {
			s.topics = append(s.topics, topic)
			s.delays[topic] = d
		}
	}
	s.keeper = newKeeper(cfg.Claims, s.load, cfg.Log)
	if err := kgo.ValidateOpts(s.options()...); err != nil {
		return nil, fmt.Errorf("make sender: %w", err)
	}
	s.metrics = newMetrics(cfg.Metrics, &s.held)
	return s, nil
}

func (s *Sender) options() []kgo.Opt {
	return append(slices.Clone(s.cfg.Kafka),
		kgo.ConsumerGroup(s.cfg.Group),
		kgo.ConsumeTopics(s.topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // committed offsets pass markers too
		kgo.DisableAutoCommit(),
		// Polled records reach their partition before it can be taken away.
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		// Who dies is replaced within this time; the least that Kafka takes by default.
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(time.Second),
		kgo.RebalanceTimeout(60*time.Second), // longer than Drain
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.assigned(m) }),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { s.revoked(ctx, m, true) }),
		kgo.OnPartitionsLost(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { s.revoked(ctx, m, false) }),
		// Outcomes of requests that end at about the same time share a request to
		// the broker. Nobody waits for them but the next commit.
		kgo.ProducerLinger(2*time.Millisecond),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
	)
}

// Run delivers until ctx ends; requests under way then get the drain time. It
// is called once.
func (s *Sender) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s.work = work
	if err := s.join(); err != nil {
		return err
	}
	s.lookForExpired(ctx) // before the first commit hides them
	// Outcomes of requests under way are still marked while the sender stops.
	var mending, serving sync.WaitGroup
	mending.Go(func() { s.keeper.run(work) })
	serving.Go(func() { s.commits(ctx) })
	serving.Go(func() { s.poll(ctx) })
	serving.Go(func() { s.watchExpired(ctx) })
	serving.Wait()
	s.drain()
	stop()
	s.pool.close()
	mending.Wait()
	s.leave()
	return nil
}

// join makes the client, which joins the group at once: partitions may be
// assigned from then on.
func (s *Sender) join() error {
	s.mu.Lock() // the callbacks wait until there is a client
	defer s.mu.Unlock()
	var err error
	if s.client, err = kgo.NewClient(s.options()...); err != nil {
		return fmt.Errorf("join group %s: %w", s.cfg.Group, err)
	}
	return nil
}

// grace is what a last request to Kafka gets when the sender stops.
const grace = 5 * time.Second

// drain lets requests under way end, and commits.
func (s *Sender) drain() {
	s.mu.Lock()
	s.stopping = true
	all := map[string][]int32{}
	for tp := range s.parts {
		all[tp.topic] = append(all[tp.topic], tp.partition)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.work, s.cfg.Drain+grace)
	defer cancel()
	s.revoked(ctx, all, true)
	// A rebalance may be taking partitions away just now: they get their time too.
	s.workers.Wait()
}

func (s *Sender) leave() {
	s.client.AllowRebalance()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.work), grace)
	defer cancel()
	if err := s.client.LeaveGroupContext(ctx); err != nil {
		s.cfg.Log.Warn("left without telling the group; it will notice when the session times out", "error", err)
	}
	s.client.CloseAllowingRebalance()
}

func (s *Sender) poll(ctx context.Context) {
	for {
		fetches := s.client.PollRecords(ctx, s.cfg.Window)
		if ctx.Err() != nil {
			s.client.AllowRebalance()
			return
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			s.cfg.Log.Error("fetch", "topic", topic, "partition", partition, "error", err)
		})
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			s.mu.Lock()
			p := s.parts[topicPartition{f.Topic, f.Partition}]
			s.mu.Unlock()
			if p != nil && len(f.Records) > 0 {
				p.feed(f.Records)
			}
		})
		s.client.AllowRebalance()
	}
}

func (s *Sender) assigned(m map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	for topic, partitions := range m {
		for _, n := range partitions {
			tp := topicPartition{topic, n}
			p := newPartition(s, tp)
			s.parts[tp] = p
			s.workers.Go(p.run)
		}
	}
}

// revoked ends the work on partitions: nothing new is begun, what is under way
// gets the drain time, and what is settled is committed if the partitions are
// still ours.
func (s *Sender) revoked(ctx context.Context, m map[string][]int32, commit bool) {
	var gone []*partition
	s.mu.Lock()
	for topic, partitions := range m {
		for _, n := range partitions {
			tp := topicPartition{topic, n}
			if p := s.parts[tp]; p != nil {
				delete(s.parts, tp)
				gone = append(gone, p)
			}
		}
	}
	s.mu.Unlock()
	for _, p := range gone {
		p.stop()
	}
	drained, cancel := context.WithTimeout(ctx, s.cfg.Drain)
	defer cancel()
	for _, p := range gone {
		p.await(drained)
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	if commit {
		s.commit(ctx, gone)
	}
}

// commitEvery is how often offsets are committed. What was settled since is
// recognised by its marks when it is read again.
const commitEvery = 250 * time.Millisecond

func (s *Sender) commits(ctx context.Context) {
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.commitHeld(ctx)
		s.log.flush()
	}
}

func (s *Sender) commitHeld(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, grace) // a rebalance may be waiting for it
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

// commit commits what is settled; the caller holds committing.
func (s *Sender) commit(ctx context.Context, partitions []*partition) {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for _, p := range partitions {
		if o, ok := p.committable(); ok {
			if offsets[p.topic] == nil {
				offsets[p.topic] = map[int32]kgo.EpochOffset{}
			}
			offsets[p.topic][p.partition] = o
		}
	}
	if len(offsets) == 0 {
		return
	}
	if err := s.commitOffsets(ctx, offsets); err != nil {
		// Nothing is lost: the next commit covers it, or it is read again.
		s.cfg.Log.Debug("commit", "error", err)
		return
	}
	for _, p := range partitions {
		if o, ok := offsets[p.topic][p.partition]; ok {
			p.tracker.Committed(o.Offset)
		}
	}
}

func (s *Sender) commitOffsets(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset) error {
	var failed error
	s.client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if failed = err; err != nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed = fmt.Errorf("commit %s[%d]: %w", t.Topic, p.Partition, err)
				}
			}
		}
	})
	return failed
}
