// Package sender delivers: it reads delivery records, POSTs each to its
// endpoint, and hands it to a retry topic or the dead letters when that fails.
//
// Each subscription has a lane, with as many requests at a time as its endpoint
// takes. What a lane can't hold is parked on a topic of its own and drawn from
// there later: no endpoint's backlog is in memory, or in another's way.
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
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// Subscriptions is the table that targets and secrets are taken from, at each
// attempt anew.
type Subscriptions interface {
	Get(id string) (webhook.Registered, bool)
	// All returns all there are, in no order.
	All() []webhook.Registered
	// Await returns when the table has been read up to the offset.
	Await(ctx context.Context, partition int32, offset int64) error
}

// Claims says who may make which attempt; see package dedupe.
type Claims interface {
	Open(ctx context.Context) error
	Restore(ctx context.Context, load dedupe.Load) error
	Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error)
	SettleAll(ctx context.Context, all []dedupe.Settlement) error
	Release(ctx context.Context, id string, attempt int, token string) error
}

// Standing is what all senders know together of endpoints; see package standing.
type Standing interface {
	// Take asks for n requests, but not more than a burst, of what a rate limit
	// grants. It returns how many may be made now: all or none, and then after which
	// time to ask again.
	Take(ctx context.Context, subscriptionID string, limit webhook.RateLimit, n int) (granted int, wait time.Duration, err error)
	// Failed tells of a failure, and returns since when nothing has succeeded.
	Failed(ctx context.Context, subscriptionID string, at time.Time) (since time.Time, err error)
	// Succeeded tells of a success.
	Succeeded(ctx context.Context, subscriptionID string) error
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
	// Member is this instance's name in the group, and the same after a restart,
	// see package member; "" for none.
	Member string
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
	// InFlight bounds the requests under way. Default 1024.
	InFlight int
	// Unrecorded bounds the outcomes that wait to be on record and marked. If the
	// process is killed, their requests may be made twice, as those under way. Default
	// 4096.
	Unrecorded int
	// PerEndpoint bounds the requests under way to one subscription. How many there
	// are, from 1 up to here, depends on how it answers. Default 64.
	PerEndpoint int
	// LaneWait is how long a delivery waits in memory for its endpoint before it is
	// parked. Default 1 s.
	LaneWait time.Duration
	// BreakAfter is after how many failures without a success an endpoint is left
	// alone, but for a single request from time to time. Default 100.
	BreakAfter int
	// GiveUpAfter is how long an endpoint may fail without a success before its
	// subscription is to be disabled. Default 5 days.
	GiveUpAfter time.Duration
	// Window bounds the deliveries that wait in the lanes of one partition's
	// subscriptions, those whose outcomes wait to be recorded, and, eight times as many,
	// those that are read and wait for a lane. Default 256.
	Window int
	// WindowBytes bounds the bytes of both together. What one fetch brings, 1 MiB
	// compressed, may come on top. Default 2 MiB.
	WindowBytes int64
	// DrawBytes bounds what is drawn of parked deliveries before their turn has
	// come, but for one delivery of each subscription. Default 32 MiB.
	DrawBytes int64
	// Drain is what requests under way get to end when a partition is lost or
	// the sender stops. Default 15 s.
	Drain         time.Duration
	Subscriptions Subscriptions
	// Open opens a subscription's sealed secret.
	Open     func(subscriptionID, sealed string) (string, error)
	Claims   Claims
	Standing Standing
	// Cancelled says whether a replay has been cancelled: what waits of it is
	// discarded. It may be nil.
	Cancelled func(replayID string) bool
	Client    Poster
	Log       *slog.Logger
	Metrics   prometheus.Registerer // may be nil
}

func (c *Config) defaults() {
	setDefault(&c.RetryAfterCap, 15*time.Minute)
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.MarkLife, 8*24*time.Hour)
	setDefault(&c.Drain, 15*time.Second)
	setDefault(&c.LaneWait, time.Second)
	setDefault(&c.GiveUpAfter, 5*24*time.Hour)
	setDefault(&c.InFlight, 1024)
	setDefault(&c.Unrecorded, 4096)
	setDefault(&c.PerEndpoint, 64)
	setDefault(&c.BreakAfter, 100)
	setDefault(&c.Window, 256)
	setDefault(&c.WindowBytes, 2<<20)
	setDefault(&c.DrawBytes, 32<<20)
	if c.Cancelled == nil {
		c.Cancelled = func(string) bool { return false }
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) validate() error {
	switch {
	case c.Group == "":
		return errors.New("sender: Group is not set")
	case c.Subscriptions == nil || c.Open == nil || c.Claims == nil || c.Standing == nil || c.Client == nil || c.Log == nil:
		return errors.New("sender: Subscriptions, Open, Claims, Standing, Client and Log are required")
	case c.RetryAfterCap < 0 || c.Timeout < 0 || c.MarkLife < 0 || c.Drain < 0 || c.LaneWait < 0 || c.GiveUpAfter < 0:
		return errors.New("sender: durations must be positive")
	case c.InFlight < 1 || c.Unrecorded < 1 || c.PerEndpoint < 1 || c.BreakAfter < 1 || c.Window < 1 || c.WindowBytes < 1 || c.DrawBytes < 1:
		return errors.New("sender: bounds must be positive")
	}
	return c.Schedule.Validate()
}

// Sender delivers the partitions that are assigned to it.
type Sender struct {
	cfg      Config
	topics   []string
	client   *kgo.Client              // set by Run
	delays   map[string]time.Duration // by retry topic
	keeper   *keeper
	pool     *pool
	log      *attemptLog
	slots    slots
	drawer   *drawer
	recorder *recorder
	held     atomic.Int64 // bytes of the records that all partitions hold
	metrics  *metrics

	// committing is held from looking at what is settled to the answer to its
	// commit: a commit that began before a partition was taken away must not
	// arrive after its last one, or even after its next owner's.
	committing sync.Mutex

	// work is where deliveries run. It outlives the polling by the drain time.
	work     context.Context // the second of two contexts, set by Run
	workers  sync.WaitGroup
	mu       sync.Mutex
	parts    map[topicPartition]*partition
	shards   map[int32]*shard
	clocks   sync.WaitGroup // of shards
	company  company
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
		shards: map[int32]*shard{}, slots: slots{size: cfg.InFlight},
		topics: []string{cfg.Topics.Deliveries(), cfg.Topics.Backfill(), cfg.Topics.Parked()},
		pool:   newPool(cfg.InFlight), log: newAttemptLog(cfg.Log),
	}
	s.drawer, s.recorder = newDrawer(s), newRecorder(s)
	s.company.subscriptions = cfg.Subscriptions
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
	s.metrics = newMetrics(cfg.Metrics, func() int64 { return s.held.Load() + s.drawer.bytes.Load() }, func() int { return len(s.recorder.room) })
	return s, nil
}

func (s *Sender) options() []kgo.Opt {
	return append(append(slices.Clone(s.cfg.Kafka), member.Options(s.cfg.Group, s.cfg.Member)...),
		kgo.ConsumeTopics(s.topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // committed offsets pass markers too
		kgo.DisableAutoCommit(),
		// Polled records reach their partition before it can be taken away.
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(shardBalancer()),
		kgo.RebalanceTimeout(60*time.Second), // longer than Drain
		// A partition that was paused because enough of it was read is not fetched
		// again before the fetch under way, which waits for records of the others, has
		// been answered: in that time what was read ahead has to last.
		kgo.FetchMaxWait(50*time.Millisecond),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.assigned(m) }),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { s.revoked(ctx, m, true) }),
		kgo.OnPartitionsLost(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { s.revoked(ctx, m, false) }),
		// Outcomes of requests that end at about the same time share a request to
		// the broker, and their marks one to Redis. Nobody waits for them but the next
		// commit; but what is answered and not recorded is sent again after a crash.
		kgo.ProducerLinger(5*time.Millisecond),
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
	if err := s.company.look(ctx, kadm.NewClient(s.client), s.cfg.Topics.Deliveries()); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("more may be parked than needs to be", "error", err)
	}
	// Outcomes of requests under way are still marked while the sender stops.
	var working, serving sync.WaitGroup
	working.Go(func() { s.keeper.run(work) })
	working.Go(func() { s.recorder.run(work) })
	working.Go(func() { s.drawer.run(work) })
	serving.Go(func() { s.commits(ctx) })
	serving.Go(func() { s.poll(ctx) })
	serving.Go(func() { s.watchExpired(ctx) })
	serving.Wait()
	s.drain()
	stop()
	s.pool.close()
	working.Wait()
	s.clocks.Wait()
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
	if err := member.Leave(ctx, s.client, s.cfg.Group, s.cfg.Member); err != nil {
		s.cfg.Log.Warn("the group will notice when the session ends", "error", err)
	}
	s.client.CloseAllowingRebalance()
}

func (s *Sender) poll(ctx context.Context) {
	for {
		fetches := s.client.PollRecords(ctx, ahead*s.cfg.Window)
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
			p := newPartition(s, s.shard(n), tp)
			s.parts[tp] = p
			p.shard.join(p)
			s.workers.Go(p.run)
		}
	}
}

// shard returns the shard of a number; s.mu is held.
func (s *Sender) shard(n int32) *shard {
	sh := s.shards[n]
	if sh == nil {
		sh = newShard(s, n)
		s.shards[n] = sh
		s.clocks.Go(func() { sh.run(s.work) })
	}
	return sh
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
	if len(gone) > 0 { // the sender does not stop in the middle of this
		s.workers.Add(1)
		defer s.workers.Done()
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
	for _, p := range gone {
		p.shard.forget(p)
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
			p.committed(o.Offset)
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
