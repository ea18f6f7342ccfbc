// Package router joins events with subscriptions: for each event and each
// subscription that matches it there, it makes one delivery record.
//
// Consuming the events, producing the deliveries and committing the offsets are
// one Kafka transaction, so that whoever reads committed records sees each
// delivery once, whatever crashes in between. Which subscriptions match depends
// on the event's position in the log alone, so that routing a range again makes
// the same deliveries, with the same ids.
package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Subscriptions is the table that events are joined with.
type Subscriptions interface {
	// Sync returns when every change acknowledged before the call is in the table.
	Sync(ctx context.Context) error
	// Match returns the subscriptions that an event of the type at the position
	// of the log is for.
	Match(eventType string, at webhook.Position) []webhook.Registered
}

// Config of a Router.
type Config struct {
	// Kafka are the options of the connection.
	Kafka  []kgo.Opt
	Topics webhook.Topics
	// Group is the consumer group that shares out the partitions of the log.
	Group string
	// TransactionalID must be this instance's own, and the same after a restart:
	// that ends at once what a predecessor left open.
	TransactionalID string
	// Member is this instance's name in the group, and the same after a restart,
	// see package member; "" for none.
	Member        string
	Subscriptions Subscriptions
	Log           *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Router routes the partitions that are assigned to it.
type Router struct {
	cfg     Config
	metrics *metrics
	// most is how many events the next batch may have; only Run's goroutine
	// touches it.
	most int
}

// errFatal is wrapped by errors after which going on would lose or repeat
// events, or only fight another process.
var errFatal = errors.New("the router can't go on")

const (
	// maxPoll bounds the events of one transaction, and so what is routed again
	// after a crash.
	maxPoll = 1000
	// maxBuffered bounds the bytes of deliveries that the broker has not
	// acknowledged yet.
	maxBuffered = 32 << 20
	// routeTimeout bounds the routing of a batch, endTimeout the transaction's end
	// after it. The broker's own time-out is longer than both together.
	routeTimeout       = 15 * time.Second
	endTimeout         = 10 * time.Second
	transactionTimeout = 30 * time.Second
	// initTimeout bounds the beginning of a session.
	initTimeout = 20 * time.Second
	// leaveTimeout bounds its end.
	leaveTimeout = 5 * time.Second
)

// New makes a router; Run joins the group.
func New(cfg Config) *Router {
	return &Router{cfg: cfg, metrics: newMetrics(cfg.Metrics), most: maxPoll}
}

func (r *Router) join() (*kgo.GroupTransactSession, error) {
	return kgo.NewGroupTransactSession(append(append(slices.Clone(r.cfg.Kafka), member.Options(r.cfg.Group, r.cfg.Member)...),
		kgo.TransactionalID(r.cfg.TransactionalID),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.ConsumeTopics(r.cfg.Topics.Events()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The log's transactions end in markers. Committed offsets pass them too, so
		// that who compares them with the log's end sees that all is routed.
		kgo.KeepControlRecords(),
		// Where to begin is decided before (see Begin); never by surprise.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		// Deliveries of a batch are flushed together at its end; lingering would
		// only add to every event's way.
		kgo.ProducerLinger(0),
		kgo.MaxBufferedBytes(maxBuffered),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
	)...)
}

// Run routes until ctx ends, finishing the batch in hand, or until going on
// would lose or repeat events. After any other trouble it joins again: what was
// committed is in Kafka, and nothing else matters.
func (r *Router) Run(ctx context.Context) error {
	for {
		err := r.session(ctx)
		if ctx.Err() != nil || errors.Is(err, errFatal) {
			return err
		}
		r.cfg.Log.Warn("router joins again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// session is one membership in the group, from joining to leaving.
func (r *Router) session(ctx context.Context) error {
	s, err := r.join()
	if err != nil {
		return fmt.Errorf("join group %s: %w", r.cfg.Group, err)
	}
	defer r.leave(ctx, s)
	// At once, not with the first batch: it ends the transaction that a
	// predecessor left open, and until then nobody is told the offsets of its
	// partitions, so that there would be no first batch before that times out.
	if err := initialise(ctx, s.Client()); err != nil {
		return err
	}
	for {
		fetches := s.PollRecords(ctx, r.most)
		if ctx.Err() != nil {
			return nil
		}
		if err := r.fatal(fetches); err != nil {
			return err
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := r.batch(context.WithoutCancel(ctx), s, fetches); err != nil {
			return err
		}
	}
}

// leave gives the partitions up, which nobody needs to wait for.
func (r *Router) leave(ctx context.Context, s *kgo.GroupTransactSession) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := member.Leave(ctx, s.Client(), r.cfg.Group, r.cfg.Member); err != nil {
		r.cfg.Log.Warn("the group will notice when the session ends", "error", err)
	}
	s.Close()
}

func initialise(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fmt.Errorf("initialise the transactional id: %w", err)
	}
	return nil
}

// fatal returns the error after which routing must stop.
func (r *Router) fatal(fetches kgo.Fetches) error {
	var fatal error
	fetches.EachError(func(topic string, partition int32, err error) {
		var lost *kgo.ErrDataLoss
		switch {
		case errors.Is(err, kerr.OffsetOutOfRange), errors.As(err, &lost):
			fatal = fmt.Errorf("%w: the committed offset of %s[%d] is not in the log any more, so events would be skipped or repeated; "+
				"choose where to go on with --from: %w", errFatal, topic, partition, err)
		default:
			r.cfg.Log.Warn("fetch", "topic", topic, "partition", partition, "error", err)
		}
	})
	return fatal
}

// batch routes what was fetched, in one transaction.
func (r *Router) batch(ctx context.Context, s *kgo.GroupTransactSession, fetches kgo.Fetches) error {
	began := time.Now()
	if err := s.Begin(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	failed := r.attempt(ctx, s, fetches)
	if failed != nil {
		r.cfg.Log.Warn("batch is routed again", "events", fetches.NumRecords(), "error", failed)
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	// Not committed without an error means that the group rebalanced: the session
	// has gone back, and the batch comes again, here or elsewhere.
	committed, err := s.End(ctx, kgo.TransactionEndTry(failed == nil))
	if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
		return fmt.Errorf("%w: another router uses the transactional id %s; give each its own INSTANCE_ID: %w", errFatal, r.cfg.TransactionalID, err)
	}
	if err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	if failed != nil {
		select { // it comes again at once
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
	if committed {
		r.metrics.batch.Observe(time.Since(began).Seconds())
	}
	return nil
}

// attempt routes a batch in the time that there is, or not at all.
func (r *Router) attempt(ctx context.Context, s *kgo.GroupTransactSession, fetches kgo.Fetches) error {
	ctx, cancel := context.WithTimeout(ctx, routeTimeout)
	defer cancel()
	// After the fetch: a change that was acknowledged before one of these events
	// was even asked for is before this end.
	if err := r.cfg.Subscriptions.Sync(ctx); err != nil {
		return err
	}
	began, events := time.Now(), fetches.NumRecords()
	err := r.route(ctx, s, fetches)
	switch {
	case err != nil && ctx.Err() != nil:
		// Events that match so many subscriptions would take as long each time.
		r.most = max(1, events/2)
	case err == nil && events >= r.most && time.Since(began) < routeTimeout/4: // twice as many have time too
		r.most = min(maxPoll, 2*r.most)
	}
	return err
}

// route produces what the events lead to while it goes through them: what is
// not on its way to the broker yet is bounded by the client's buffer, not by how
// many subscriptions match.
func (r *Router) route(ctx context.Context, s *kgo.GroupTransactSession, fetches kgo.Fetches) error {
	var (
		sent kgo.FirstErrPromise
		err  error
	)
	fetches.EachRecord(func(rec *kgo.Record) {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil && !rec.Attrs.IsControl() {
			err = r.routeOne(rec, func(out *kgo.Record) { s.Produce(ctx, out, sent.Promise()) })
		}
	})
	if produceErr := sent.Err(); produceErr != nil { // waits for all
		return fmt.Errorf("produce deliveries: %w", produceErr)
	}
	return err
}

// routeOne emits the records that an event's record leads to.
func (r *Router) routeOne(rec *kgo.Record, emit func(*kgo.Record)) error {
	e, err := events.Decode(rec)
	switch {
	case err != nil:
		r.metrics.events.WithLabelValues("unreadable").Inc()
		dead, encErr := webhook.Unreadable(r.cfg.Topics.DeadLetters(), rec, err, time.Now())
		if encErr != nil {
			return encErr
		}
		r.cfg.Log.Error("unreadable event is now a dead letter",
			"topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "error", err)
		emit(dead)
		return nil
	case !events.Known(e.Type):
		// A newer version's; it will be that version's routers' to send.
		r.metrics.events.WithLabelValues("unknown_type").Inc()
		return nil
	case e.Type == events.NoShow:
		r.metrics.events.WithLabelValues("no_webhook").Inc()
		return nil
	}
	at := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
	matches := r.cfg.Subscriptions.Match(e.Type, at)
	r.metrics.events.WithLabelValues("routed").Inc()
	r.metrics.deliveries.Add(float64(len(matches)))
	r.cfg.Log.Debug("event routed", "event", e.Type, "event_id", e.ID, "position", at.String(), "deliveries", len(matches))
	if len(matches) == 0 {
		return nil
	}
	payload, err := webhook.Render(e)
	if err != nil {
		return err
	}
	for _, m := range matches {
		id := webhook.DeliveryID(e.ID, m.Subscription.ID, "")
		d := webhook.Delivery{
			ID: id, SubscriptionID: m.Subscription.ID, EventType: e.Type,
			Event: at, Subscription: m.At, Attempt: 1, Body: payload.Body(id),
		}
		record, err := d.Encode(r.cfg.Topics.Deliveries())
		if err != nil {
			return err
		}
		emit(record)
	}
	return nil
}

type metrics struct {
	events     *prometheus.CounterVec
	deliveries prometheus.Counter
	batch      prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhooks_router_events_total", Help: "Events read, by what became of them."}, []string{"result"}),
		deliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_router_deliveries_total", Help: "Delivery records made; those of a batch that is routed again count again."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_router_batch_seconds", Help: "Time from a fetched batch to its commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	if reg != nil {
		reg.MustRegister(m.events, m.deliveries, m.batch)
	}
	return m
}
