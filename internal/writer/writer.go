// Package writer makes one process at a time the writer of each partition of a
// topic, however many processes run.
//
// A consumer group says who that is; one transactional id per partition makes
// the broker refuse everyone else. A new writer first initialises its producer,
// which fences the old one; only then it looks where the log ends, waits until
// its state has been folded up to there, and serves. In any other order the old
// writer could still commit something that the new one does not know.
//
// Besides, a writer always knows where the log must end. It commits nothing that
// comes to stand elsewhere, and gives no answer, not even a refusal, once
// somebody else has written: then it begins again.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/member"
)

// Errors of Submit that are not the operation's own.
var (
	// ErrNotOwner: another process writes the partition, or nobody does yet.
	// Nothing was done.
	ErrNotOwner = errors.New("this process does not write the partition")
	// ErrUnknown: the operation may or may not have been written.
	ErrUnknown = errors.New("the outcome of the write is unknown")
)

// Batch is the state that operations which share a transaction decide on: what
// is committed, and on top what the batch's earlier operations decided.
type Batch interface {
	// Commit is called once the batch's records are committed; they carry their
	// offsets. A batch that is not committed is dropped without a call.
	Commit(ctx context.Context, records []*kgo.Record) error
}

// Op decides on a batch: it returns the records to write, whose topic and
// partition are set by the writer, or a refusal.
type Op[B Batch] func(ctx context.Context, batch B) ([]*kgo.Record, error)

// Config of a Group.
type Config[B Batch] struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	Topic string
	// Group is the consumer group that shares out the partitions.
	Group string
	// Member is this instance's name in the group, and the same after a restart,
	// see package member; "" for none. Who advertises another address must have
	// another name, for the group keeps the address with it.
	Member string
	// TransactionalID is what the partitions' transactional ids begin with. It
	// must be the same for all processes, for it is what fences.
	TransactionalID string
	// Advertise is told to the other processes as the owner's address.
	Advertise string
	// Intent, if set, is the key of a record without a value that begins each
	// transaction, before its operations are decided. From then on whoever
	// reads to the partition's end waits for what they decide.
	Intent []byte
	// Begin starts a batch of a partition.
	Begin func(partition int32) B
	// Await returns when the partition's state has been folded up to the offset.
	Await func(ctx context.Context, partition int32, offset int64) error
	// End returns the partition's high watermark.
	End func(ctx context.Context, partition int32) (int64, error)
	// While, if set, runs for as long as a partition is assigned to this process:
	// ctx ends when it no longer is. Run waits for it, but the partition's next
	// owner does not.
	While func(ctx context.Context, partition int32)
	Log   *slog.Logger
}

const (
	// maxBatch bounds the operations that share a transaction.
	maxBatch = 256
	// queue bounds the operations that wait for their turn, per partition.
	queue = 1024
	// commitTimeout bounds one transaction; the broker's own time-out is longer,
	// so that it is this process that gives up first.
	commitTimeout      = 10 * time.Second
	transactionTimeout = 15 * time.Second
	// leaveTimeout bounds the giving up of everything, last batches included.
	leaveTimeout = commitTimeout + 5*time.Second
)

// Group is this process's share of the partitions.
type Group[B Batch] struct {
	cfg    Config[B]
	admin  *kadm.Client // not a member: it asks who the members are
	owners sync.WaitGroup

	mu    sync.Mutex
	parts map[int32]*owner[B]

	// looking guards what the last look-up of owners found, and when; it is held
	// during a look-up, so that there is one at a time.
	looking sync.Mutex
	seen    map[int32]string
	seenAt  time.Time
}

// New makes this process's share, without dialling; Run joins the group, and must
// be called.
func New[B Batch](cfg Config[B]) (*Group[B], error) {
	g := &Group[B]{cfg: cfg, parts: map[int32]*owner[B]{}}
	if err := kgo.ValidateOpts(g.options()...); err != nil {
		return nil, fmt.Errorf("write %s: %w", cfg.Topic, err)
	}
	client, err := kgo.NewClient(cfg.Kafka...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	g.admin = kadm.NewClient(client)
	return g, nil
}

func (g *Group[B]) options() []kgo.Opt {
	topic := g.cfg.Topic
	return append(append(slices.Clone(g.cfg.Kafka), member.Options(g.cfg.Group, g.cfg.Member)...),
		kgo.ClientID(g.cfg.Advertise),
		kgo.ConsumeTopics(topic),
		kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.OnPartitionsAssigned(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { g.assigned(ctx, m[topic]) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { g.revoked(m[topic]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { g.revoked(m[topic]) }),
	)
}

// Run joins the group and serves until ctx ends; batches in flight are finished
// first. It is for when the state has been folded up to about the log's end: from
// then on partitions are taken from others.
func (g *Group[B]) Run(ctx context.Context) error {
	defer g.admin.Close()
	if ctx.Err() != nil {
		return nil
	}
	client, err := kgo.NewClient(g.options()...)
	if err != nil {
		return fmt.Errorf("join group %s: %w", g.cfg.Group, err)
	}
	// The group is only asked who owns what; the state is folded elsewhere.
	client.PauseFetchTopics(g.cfg.Topic)
	for ctx.Err() == nil {
		client.PollFetches(ctx) // nothing is fetched; it returns errors and ends with ctx
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := member.Leave(leaving, client, g.cfg.Group, g.cfg.Member); err != nil { // it revokes everything
		g.cfg.Log.Warn("the group will notice when the session ends", "error", err)
	}
	client.CloseAllowingRebalance()
	g.mu.Lock()
	for _, o := range g.parts {
		o.stop()
	}
	g.mu.Unlock()
	g.owners.Wait()
	return nil
}

func (g *Group[B]) assigned(ctx context.Context, partitions []int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range partitions {
		// The writer outlives the callback, not the client: Run stops it.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		o := &owner[B]{cfg: &g.cfg, partition: p, ops: make(chan *pending[B], queue), cancel: cancel, done: make(chan struct{})}
		g.parts[p] = o
		g.owners.Go(func() { o.run(ctx) })
		if g.cfg.While != nil {
			g.owners.Go(func() { g.cfg.While(ctx, p) })
		}
	}
}

// revoked lets the batches in flight end: until then the partition is ours.
func (g *Group[B]) revoked(partitions []int32) {
	var stopped []*owner[B]
	g.mu.Lock()
	for _, p := range partitions {
		if o := g.parts[p]; o != nil {
			delete(g.parts, p)
			stopped = append(stopped, o)
		}
	}
	g.mu.Unlock()
	for _, o := range stopped {
		o.stop()
	}
	for _, o := range stopped {
		<-o.done
	}
}

// Submit has the partition's writer carry out an operation and returns its
// refusal, nil once its records are committed, or ErrNotOwner or ErrUnknown.
func (g *Group[B]) Submit(ctx context.Context, partition int32, op Op[B]) error {
	g.mu.Lock()
	o := g.parts[partition]
	g.mu.Unlock()
	if o == nil {
		return ErrNotOwner
	}
	return o.submit(ctx, op)
}

// Owner returns the address of the process that writes the partition, as it
// advertised it, or "" if none does at the moment. The answer may be as old as
// maxAge.
func (g *Group[B]) Owner(ctx context.Context, partition int32, maxAge time.Duration) (string, error) {
	g.mu.Lock()
	_, mine := g.parts[partition]
	g.mu.Unlock()
	if mine {
		return g.cfg.Advertise, nil
	}
	g.looking.Lock()
	defer g.looking.Unlock()
	if time.Since(g.seenAt) > maxAge {
		groups, err := g.admin.DescribeGroups(ctx, g.cfg.Group)
		if err == nil {
			err = groups.Error()
		}
		if err != nil {
			return "", fmt.Errorf("describe group %s: %w", g.cfg.Group, err)
		}
		seen := map[int32]string{}
		for _, member := range groups[g.cfg.Group].Members {
			assigned, ok := member.Assigned.AsConsumer()
			if !ok {
				continue
			}
			for _, t := range assigned.Topics {
				for _, p := range t.Partitions {
					seen[p] = member.ClientID
				}
			}
		}
		g.seen, g.seenAt = seen, time.Now()
	}
	return g.seen[partition], nil
}
