package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Subscriptions is the table of subscriptions.
type Subscriptions interface {
	// Sync returns when every change acknowledged before the call is in the table.
	Sync(ctx context.Context) error
	// Get returns a subscription, also a deleted one whose record is still kept.
	Get(id string) (webhook.Registered, bool)
}

// Config of a Replayer. Ahead, Keep and Now have defaults.
type Config struct {
	// Kafka are the options of the connection.
	Kafka  []kgo.Opt
	Topics webhook.Topics
	// Group is the consumer group that says which process carries replays out.
	Group string
	// Member is this instance's name in the group, and the same after a restart,
	// see package member; "" for none.
	Member string
	// TransactionalID is what the transactional id begins with. It must be the same
	// for all processes, for it is what fences.
	TransactionalID string
	// Readers is the consumer group of the senders: how far it is behind bounds how
	// far replays go ahead.
	Readers       string
	Replays       *Table
	Subscriptions Subscriptions
	// Ahead bounds the deliveries that wait in a partition of the backfill topic
	// before no more are added, so that a cancellation finds few and none outlives
	// the topic's retention. Default 10,000.
	Ahead int
	// Apart has the deliveries committed before the progress that counts them
	// instead of together, for a broker of which a kill can leave a commit over
	// several partitions half done: the progress might stay, and the deliveries not.
	// A kill between the two has deliveries made again, with the same ids.
	Apart bool
	// Keep is how long replays that have ended are remembered. Default 30 days;
	// longer than any of their deliveries is kept.
	Keep time.Duration
	Log  *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Now is the clock of rates and of what is written down.
	Now func() time.Time

	// step, if set, is told what comes next; a test's replayer dies of its error.
	step func(string) error
}

func (c Config) withDefaults() (Config, error) {
	if c.Ahead == 0 {
		c.Ahead = 10_000
	}
	if c.Keep == 0 {
		c.Keep = 30 * 24 * time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.step == nil {
		c.step = func(string) error { return nil }
	}
	switch {
	case c.Group == "" || c.TransactionalID == "" || c.Readers == "" || c.Replays == nil || c.Subscriptions == nil || c.Log == nil:
		return c, errors.New("replay: Config needs Group, TransactionalID, Readers, Replays, Subscriptions and Log")
	case c.Ahead < 1 || c.Keep < 0:
		return c, fmt.Errorf("replay: %d deliveries ahead or records kept for %v make no sense", c.Ahead, c.Keep)
	}
	return c, nil
}

// Replayer carries replays out while the partition of their topic is assigned to
// it: one process does at a time.
type Replayer struct {
	cfg     Config
	metrics *metrics
}

// New makes a replayer; Run joins the group.
func New(cfg Config) (*Replayer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Replayer{cfg: cfg, metrics: newMetrics(cfg.Metrics)}, nil
}

// Run serves until ctx ends; a transaction under way is finished first. It needs
// the tables of its Config to be followed meanwhile, and waits for them.
func (r *Replayer) Run(ctx context.Context) error {
	o := &ownership{replayer: r}
	topic := r.cfg.Topics.Replays()
	client, err := kgo.NewClient(append(append(slices.Clone(r.cfg.Kafka), member.Options(r.cfg.Group, r.cfg.Member)...),
		kgo.ConsumeTopics(topic),
		kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.OnPartitionsAssigned(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) {
			if len(m[topic]) > 0 {
				// It outlives the callback, not Run.
				o.begin(context.WithoutCancel(ctx))
			}
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { o.end(m[topic]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { o.end(m[topic]) }),
	)...)
	if err != nil {
		return fmt.Errorf("join group %s: %w", r.cfg.Group, err)
	}
	// The group is only asked who is to work; the table is read elsewhere.
	client.PauseFetchTopics(topic)
	for ctx.Err() == nil {
		client.PollFetches(ctx) // nothing is fetched; it returns errors and ends with ctx
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := member.Leave(leaving, client, r.cfg.Group, r.cfg.Member); err != nil { // it revokes
		r.cfg.Log.Warn("the group will notice when the session ends", "error", err)
	}
	client.CloseAllowingRebalance()
	o.end([]int32{0}) // if it did not get round to it
	return nil
}

// ownership is what goes on while the partition is this process's.
type ownership struct {
	replayer *Replayer

	mu     sync.Mutex
	cancel context.CancelFunc // nil while it is not
	done   chan struct{}
}

func (o *ownership) begin(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cancel != nil {
		return
	}
	ctx, o.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	o.done = done
	go func() {
		defer close(done)
		o.replayer.own(ctx)
	}()
}

// end waits for the transaction under way: until then the partition is ours.
func (o *ownership) end(partitions []int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(partitions) == 0 || o.cancel == nil {
		return
	}
	o.cancel()
	<-o.done
	o.cancel = nil
}

// own works until ctx ends. Whatever goes wrong, it begins again: fenced or in
// doubt, the truth is in the log.
func (r *Replayer) own(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		r.cfg.Log.Warn("replayer begins again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// leaveTimeout bounds the giving up of what is under way.
const leaveTimeout = 10 * time.Second

// transactionTimeout is longer than what a transaction may take, so that it is
// this process that gives up first.
const (
	commitTimeout      = 10 * time.Second
	transactionTimeout = 20 * time.Second
)

// serve takes over and works until ctx ends or something fails in a way that
// leaves it in doubt.
func (r *Replayer) serve(ctx context.Context) error {
	id := r.cfg.TransactionalID + "-replay-0"
	client, err := kgo.NewClient(append(slices.Clone(r.cfg.Kafka),
		kgo.TransactionalID(id),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordDeliveryTimeout(commitTimeout),
		kgo.ProducerLinger(0), // the records of a transaction are flushed together
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
	)...)
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	defer client.Close()
	// In this order: the id, which fences whoever worked before, and only then the
	// records of progress, to which nobody else adds any more.
	if err := initialise(ctx, client, id); err != nil {
		return err
	}
	if err := r.cfg.step("initialised"); err != nil {
		return err
	}
	if err := r.cfg.Replays.Sync(ctx); err != nil {
		return err
	}
	if err := r.cfg.step("synced"); err != nil {
		return err
	}
	r.cfg.Log.Debug("replayer took over", "group", r.cfg.Group)
	s := newSession(r, client)
	defer s.close()
	return s.run(ctx)
}

func initialise(ctx context.Context, client *kgo.Client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout+commitTimeout)
	defer cancel()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fmt.Errorf("initialise transactional id %s: %w", id, err)
	}
	return nil
}

type metrics struct {
	deliveries prometheus.Counter
	unreadable prometheus.Counter
	open       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		deliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_replay_deliveries_total", Help: "Deliveries that replays have made."}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_replay_unreadable_total", Help: "Events that replays could not read and passed over."}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_replays_open", Help: "Replays that this process carries out."}),
	}
	if reg != nil {
		reg.MustRegister(m.deliveries, m.unreadable, m.open)
	}
	return m
}
