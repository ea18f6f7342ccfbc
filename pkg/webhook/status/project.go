package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmetrics "github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

const (
	// maxBatch is how many records are written in one script, which nobody else is
	// served beside: 2 ms of a real Redis.
	maxBatch = 256
	// drain is what a batch gets to be written when its partition is taken away.
	drain = 2 * time.Second
	// tryAgain is how long the projection waits after trouble.
	tryAgain = 500 * time.Millisecond
	// lookEvery is how often it looks whether Redis still has what was written.
	lookEvery = time.Second
)

// errLost ends a session when Redis has lost what was written in it.
var errLost = errors.New("redis has lost what was projected")

// Run projects the partitions that the group assigns to this process, until ctx
// ends. Whatever fails meanwhile is tried again: only ctx ends it.
func (p *Projection) Run(ctx context.Context) error {
	for {
		err := p.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errLost) {
			p.metrics.rebuilds.Inc()
		}
		p.cfg.Log.Warn("the status of deliveries is projected again from where Redis stands", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tryAgain):
		}
	}
}

// session is one membership in the group, during which Redis loses nothing.
type session struct {
	p   *Projection
	ctx context.Context // ended with errLost when Redis has lost something
	end context.CancelCauseFunc

	mu sync.Mutex
	// written is what Redis has at least: by key, positions.
	written map[string]int64

	away atomic.Bool // Redis is, and that was logged
}

// session projects until ctx ends or Redis loses something.
func (p *Projection) session(ctx context.Context) error {
	s := &session{p: p, written: map[string]int64{}}
	s.ctx, s.end = context.WithCancelCause(ctx)
	defer s.end(nil)
	logger := watermill.NewSlogLoggerWithLevelMapping(p.cfg.Log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
	subscriber, err := watermillkgo.NewSubscriber(watermillkgo.SubscriberConfig{
		ClientOptions: append(slices.Clone(p.cfg.Kafka),
			// Logs end in markers: positions pass them too, so that what is not
			// projected yet can be counted.
			kgo.KeepControlRecords(),
			kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(time.Second),
		),
		ConsumerGroup: p.cfg.Group, ReadCommitted: true, BatchRecords: maxBatch, DrainTimeout: drain,
		StartAt: s.startAt, CommitInterval: time.Second, // who looks at the group sees how far it is
	}, logger)
	if err != nil {
		return fmt.Errorf("follow the deliveries: %w", err)
	}
	defer func() { _ = subscriber.Close() }() // says nothing
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 2 * drain}, logger)
	if err != nil {
		return fmt.Errorf("make the router of the projection: %w", err)
	}
	wmetrics.NewPrometheusMetricsBuilder(p.cfg.Metrics, "webhooks", "status").AddPrometheusRouterMetrics(router)
	singly, err := s.singly()
	if err != nil {
		return err
	}
	router.AddMiddleware(singly, middleware.Recoverer)
	for _, topic := range p.topics() {
		read := readDelivery
		if topic == p.cfg.Topics.Attempts() {
			read = readAttempt
		}
		router.AddConsumerHandler(strings.TrimPrefix(topic, p.cfg.Topics.Prefix), topic, subscriber, func(m *message.Message) error { return s.project(m, read) })
	}
	var looking sync.WaitGroup
	looking.Go(s.watch)
	err = router.Run(s.ctx)
	s.end(nil)
	looking.Wait()
	if cause := context.Cause(s.ctx); errors.Is(cause, errLost) {
		return cause
	}
	return err
}

// startAt says where assigned partitions begin: where Redis stands, or with what
// is young enough to be kept.
func (s *session) startAt(ctx context.Context, topic string, partitions []int32) (map[int32]kgo.Offset, error) {
	keys := make([]string, len(partitions))
	for i, n := range partitions {
		keys[i] = s.p.positionKey(topic, n)
	}
	positions, err := s.p.positions(ctx, keys)
	if err != nil {
		return nil, err
	}
	// Asked for after the positions: those that were known before may be behind.
	known, err := s.p.findEnds(ctx)
	if err != nil {
		return nil, err
	}
	ends := map[string]end{}
	for _, e := range known {
		ends[e.key] = e
		if at, ok := positions[e.key]; ok && at > e.stop {
			if err := s.p.startAnew(ctx, e, at); err != nil {
				return nil, err
			}
			delete(positions, e.key)
		}
	}
	starts, anew := map[int32]kgo.Offset{}, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, n := range partitions {
		at, ok := positions[keys[i]]
		s.written[keys[i]] = at
		if !ok {
			at = ends[keys[i]].begin
			anew++
		}
		starts[n] = kgo.NewOffset().At(at)
	}
	if anew > 0 {
		s.p.cfg.Log.Info("projecting the status of deliveries from the log", "topic", topic, "partitions", anew)
	}
	return starts, nil
}

// startAnew forgets a position behind the end of its log. The log has been made anew, or has lost its end: whatever
// comes up to that position would be taken for projected already.
func (p *Projection) startAnew(ctx context.Context, e end, at int64) error {
	p.cfg.Log.Error("a log ends before what was projected of it: it is projected anew", "position_key", e.key, "projected", at, "end", e.stop)
	if err := p.redis.Del(ctx, e.key).Err(); err != nil {
		return unavailable("forget a position of the status", err)
	}
	return nil
}

// positions returns those that Redis has.
func (p *Projection) positions(ctx context.Context, keys []string) (map[string]int64, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	values, err := p.redis.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, unavailable("read positions of the status", err)
	}
	return parsePositions(keys, values), nil
}

// parsePositions pairs keys with what MGET answered for them.
func parsePositions(keys []string, values []any) map[string]int64 {
	found := map[string]int64{}
	for i, v := range values {
		text, _ := v.(string)
		var at int64
		if _, err := fmt.Sscan(text, &at); err == nil {
			found[keys[i]] = at
		}
	}
	return found
}

// project writes a batch, and returns when it is written; or when the session
// or the message's time ends: then it comes again. Redis away is waited for; any
// other error is that of a record.
func (s *session) project(m *message.Message, read func(*kgo.Record) (entry, error)) error {
	records, _ := watermillkgo.MessageRecordsFromCtx(m.Context())
	b, err := s.p.read(records, read)
	if err != nil {
		return err
	}
	began := time.Now()
	last := records[len(records)-1]
	if err := s.write(m.Context(), last, last.Offset+1, b.entries); err != nil {
		return err
	}
	s.p.metrics.batch.Observe(time.Since(began).Seconds())
	s.p.metrics.read(b)
	s.p.trimmer.wrote(m.Context(), b.entries)
	return nil
}

// write writes entries of the partition that a record is of, and the position
// behind them.
func (s *session) write(ctx context.Context, of *kgo.Record, to int64, entries []entry) error {
	key := s.p.positionKey(of.Topic, of.Partition)
	s.mu.Lock()
	from := s.written[key]
	s.mu.Unlock()
	for {
		ok, err := s.p.write(ctx, key, from, to, entries)
		if err == nil && !ok {
			s.end(errLost)
			return s.ctx.Err()
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		s.trouble(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(tryAgain):
		}
	}
	s.recovered()
	s.mu.Lock()
	s.written[key] = max(s.written[key], to)
	s.mu.Unlock()
	return nil
}

// batch is what records of one partition say.
type batch struct {
	entries         []entry
	old, unreadable int // passed over
}

// read returns what the records say. Deliveries that can't be read are passed
// over, because the sender makes dead letters of them; of an attempt nobody else
// does. What is too old to be shown is passed over too.
func (p *Projection) read(records []*kgo.Record, read func(*kgo.Record) (entry, error)) (batch, error) {
	b := batch{entries: make([]entry, 0, len(records))}
	oldest := p.cfg.Now().Add(-p.cfg.Retention)
	for _, r := range records {
		if r.Attrs.IsControl() {
			continue
		}
		if r.Timestamp.Before(oldest) {
			b.old++
			continue
		}
		e, err := read(r)
		if err != nil && r.Topic == p.cfg.Topics.Attempts() {
			return batch{}, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if err != nil {
			b.unreadable++
			p.cfg.Log.Warn("a record has no status", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
			continue
		}
		b.entries = append(b.entries, e)
	}
	return b, nil
}

// trouble logs the first error of an outage.
func (s *session) trouble(err error) {
	if !s.away.Swap(true) {
		s.p.cfg.Log.Warn("the status of deliveries can't be written; trying again", "error", err)
	}
}

func (s *session) recovered() {
	if s.away.Load() && s.away.Swap(false) {
		s.p.cfg.Log.Info("the status of deliveries is written again")
	}
}

// watch looks whether Redis still has what was written, for partitions of which
// nothing comes, and tells how far behind the projection is.
func (s *session) watch() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if behind, err := s.p.Behind(s.ctx); err == nil {
			s.p.metrics.behind.Set(float64(behind))
		}
		// Before Redis is asked: what is written meanwhile only makes it have more.
		s.mu.Lock()
		written := maps.Clone(s.written)
		s.mu.Unlock()
		has, err := s.p.positions(s.ctx, slices.Collect(maps.Keys(written)))
		if err != nil {
			continue // whoever writes tells
		}
		for key, at := range written {
			if has[key] < at {
				s.end(errLost)
				return
			}
		}
	}
}
