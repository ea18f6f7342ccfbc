// Package follow reads a whole topic, keeps up with it, and says when a
// position has been reached. It is what every table and view that is folded
// from a topic stands on: the calendars, the registry of subscriptions.
package follow

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// Config says what to follow.
type Config struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	Topic string
	// Apply takes the committed records of one partition, in order. It is
	// called for several partitions at once, never twice at once for one.
	Apply func(partition int32, records []*kgo.Record)
	// Progress, if set, is called about every second until the topic has been
	// read to where its end was at the start, and once then. The numbers are of
	// offsets.
	Progress func(done, total int64)
}

// ErrStopped is what waits end with when Run has ended.
var ErrStopped = errors.New("the topic is not followed any more")

// Follower reads one topic. Its methods may be called from any goroutine.
type Follower struct {
	cfg    Config
	client *kgo.Client
	// wake tells Run's look-up loop that somebody wants the ends.
	wake     chan struct{}
	stable   chan struct{}
	restored chan struct{}
	stopped  chan struct{} // closed when Run has ended

	mu        sync.Mutex
	positions []int64       // by partition: the next offset to come
	moved     chan struct{} // closed and replaced whenever a position moves
	next      *lookup       // the look-up that has not begun yet
}

// lookup is one request for the ends of all partitions, shared by everyone who
// asked before it began.
type lookup struct {
	done chan struct{}
	ends []int64
	err  error
}

// New makes a follower; Run starts it.
func New(cfg Config) (*Follower, error) {
	client, err := kgo.NewClient(append(slices.Clone(cfg.Kafka),
		kgo.ConsumeTopics(cfg.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Logs end in transaction markers; only one who sees them knows that the
		// end has been reached.
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return nil, fmt.Errorf("follow %s: %w", cfg.Topic, err)
	}
	return &Follower{
		cfg: cfg, client: client,
		wake: make(chan struct{}, 1), stable: make(chan struct{}), restored: make(chan struct{}), stopped: make(chan struct{}), moved: make(chan struct{}),
	}, nil
}

// Stable is closed when the topic has been read to where it was stable when Run
// began: as far as no transaction was open.
func (f *Follower) Stable() <-chan struct{} { return f.stable }

// Restored is closed when the topic has been read to where its end was when
// Run began.
func (f *Follower) Restored() <-chan struct{} { return f.restored }

// Run follows the topic until ctx ends; it then returns nil. It waits for a
// topic that does not exist yet. It is called once.
func (f *Follower) Run(ctx context.Context) error {
	defer f.client.Close()
	defer close(f.stopped)
	starts, err := f.begin(ctx)
	if err != nil {
		return nil // stopped before it began
	}
	f.mu.Lock()
	f.positions = starts
	f.mu.Unlock()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { f.lookups(ctx); return nil })
	g.Go(func() error { return f.restore(ctx) })
	g.Go(func() error { return f.read(ctx) })
	return g.Wait()
}

// begin waits for the topic and returns where its partitions' logs start. What
// is before that, no one will ever read: it counts as read. It fails only if
// ctx ends.
func (f *Follower) begin(ctx context.Context) ([]int64, error) {
	for {
		n, err := f.partitions(ctx)
		if err == nil {
			var starts []int64
			if starts, err = offsets(ctx, f.client, f.cfg.Topic, n, logStart); err == nil {
				return starts, nil
			}
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (f *Follower) partitions(ctx context.Context) (int, error) {
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &f.cfg.Topic
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, f.client)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 {
		return 0, errors.New("the broker said nothing of the topic")
	}
	n := len(resp.Topics[0].Partitions)
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil || n > 0 {
		return n, err
	}
	return 0, errors.New("the topic has no partitions yet")
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// restore reports the way to the end as it was at the start.
func (f *Follower) restore(ctx context.Context) error {
	stable, ends, err := f.targets(ctx)
	for err != nil {
		// Whatever the brokers' trouble is, who waits to be restored waits on.
		if pause(ctx, 100*time.Millisecond) != nil {
			return nil
		}
		stable, ends, err = f.targets(ctx)
	}
	var total int64
	for _, e := range ends {
		total += e
	}
	report := func() {
		if f.cfg.Progress == nil {
			return
		}
		var done int64
		f.mu.Lock()
		for p, at := range f.positions {
			done += min(at, ends[p])
		}
		f.mu.Unlock()
		f.cfg.Progress(done, total)
	}
	for _, to := range []struct {
		offsets []int64
		reached chan struct{}
	}{{stable, f.stable}, {ends, f.restored}} {
		for p, offset := range to.offsets {
			if !f.reach(ctx, int32(p), offset, report) {
				return nil
			}
		}
		if to.reached == f.restored {
			report()
		}
		close(to.reached)
	}
	return nil
}

// targets looks up where the topic is stable, and where it ends.
func (f *Follower) targets(ctx context.Context) (stable, ends []int64, err error) {
	if ends, err = f.Ends(ctx); err != nil {
		return nil, nil, err
	}
	stable, err = offsets(ctx, f.client, f.cfg.Topic, len(ends), lastStable)
	return stable, ends, err
}

// reach waits until a partition has been read up to an offset, and returns false
// if ctx ends first. It calls report each second.
func (f *Follower) reach(ctx context.Context, partition int32, offset int64, report func()) bool {
	for {
		tick, cancel := context.WithTimeout(ctx, time.Second)
		err := f.Await(tick, partition, offset)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		report()
	}
}

func (f *Follower) read(ctx context.Context) error {
	for {
		fetches := f.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var fatal error
		fetches.EachError(func(topic string, partition int32, err error) {
			// The client goes on by itself after anything it can recover from;
			// what it hands over besides is for people to see in its log.
			if _, ok := errors.AsType[*kgo.ErrDataLoss](err); ok {
				fatal = fmt.Errorf("follow %s[%d]: %w", topic, partition, err)
			}
		})
		if fatal != nil {
			return fatal
		}
		f.apply(fetches)
	}
}

func (f *Follower) apply(fetches kgo.Fetches) {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		g.Go(func() error {
			last := p.Records[len(p.Records)-1].Offset
			data := slices.DeleteFunc(p.Records, func(r *kgo.Record) bool { return r.Attrs.IsControl() })
			if len(data) > 0 {
				f.cfg.Apply(p.Partition, data)
			}
			f.advance(p.Partition, last+1)
			return nil
		})
	})
	_ = g.Wait() // its functions return no errors
}

func (f *Follower) advance(partition int32, next int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for int(partition) >= len(f.positions) {
		f.positions = append(f.positions, 0)
	}
	f.positions[partition] = next
	close(f.moved)
	f.moved = make(chan struct{})
}

// Await returns when every committed record of the partition before the offset
// has been applied.
func (f *Follower) Await(ctx context.Context, partition int32, offset int64) error {
	for {
		f.mu.Lock()
		moved := f.moved
		reached := offset <= 0 || int(partition) < len(f.positions) && f.positions[partition] >= offset
		f.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-moved:
		case <-f.stopped:
			return fmt.Errorf("wait for %s[%d] to reach %d: %w", f.cfg.Topic, partition, offset, ErrStopped)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s[%d] to reach %d: %w", f.cfg.Topic, partition, offset, context.Cause(ctx))
		}
	}
}

// Sync returns when everything that was committed before the call has been
// applied.
func (f *Follower) Sync(ctx context.Context) error {
	ends, err := f.Ends(ctx)
	if err != nil {
		return err
	}
	for p, end := range ends {
		if err := f.Await(ctx, int32(p), end); err != nil {
			return err
		}
	}
	return nil
}

// Ends returns the high watermark of each partition as it is during the call.
// Calls that wait at the same time share one request to the brokers.
//
// The high watermark, not the last stable offset: a commit can be acknowledged
// before its markers are written, and then the last stable offset still lies
// before what was acknowledged.
func (f *Follower) Ends(ctx context.Context) ([]int64, error) {
	f.mu.Lock()
	if f.next == nil {
		f.next = &lookup{done: make(chan struct{})}
	}
	l := f.next
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // it is awake
	}
	select {
	case <-l.done:
		return l.ends, l.err
	case <-f.stopped:
		return nil, fmt.Errorf("look up the end of %s: %w", f.cfg.Topic, ErrStopped)
	case <-ctx.Done():
		return nil, fmt.Errorf("look up the end of %s: %w", f.cfg.Topic, context.Cause(ctx))
	}
}

func (f *Follower) lookups(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		l := f.next
		f.next = nil
		n := len(f.positions)
		f.mu.Unlock()
		if l == nil {
			continue
		}
		l.ends, l.err = Ends(ctx, f.client, f.cfg.Topic, n)
		close(l.done)
	}
}

// Ends looks up the high watermarks of a topic of n partitions. It tries again
// while leaders move, until ctx ends.
func Ends(ctx context.Context, client *kgo.Client, topic string, n int) ([]int64, error) {
	for {
		ends, err := offsets(ctx, client, topic, n, highWatermark)
		if err == nil || !kerr.IsRetriable(err) {
			return ends, err
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return nil, err
		}
	}
}

// point is which offset of a partition to look up, as the protocol writes it.
type point struct {
	timestamp int64
	isolation int8
}

var (
	highWatermark = point{-1, 0}
	lastStable    = point{-1, 1}
	logStart      = point{-2, 0}
)

func offsets(ctx context.Context, client *kgo.Client, topic string, n int, which point) ([]int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = which.isolation
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for p := range n {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition = int32(p)
		part.Timestamp = which.timestamp
		t.Partitions = append(t.Partitions, part)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("look up offsets of %s: %w", topic, err)
	}
	found, answered := make([]int64, n), 0
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("look up offsets of %s[%d]: %w", topic, p.Partition, err)
			}
			if int(p.Partition) >= n {
				return nil, fmt.Errorf("look up offsets of %s: the broker answers for partition %d of %d", topic, p.Partition, n)
			}
			found[p.Partition] = p.Offset
			answered++
		}
	}
	if answered != n {
		// A missing end would pass for an empty partition.
		return nil, fmt.Errorf("look up offsets of %s: the brokers answered for %d of %d partitions", topic, answered, n)
	}
	return found, nil
}
