package sender

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// maxBody is the largest body that is sure to fit into a dead letter too, where
// it is escaped once more and must not exceed what Kafka takes by default.
const maxBody = 256 << 10

// parse reads a delivery and refuses what could never be settled.
func parse(r *kgo.Record) (*webhook.Delivery, error) {
	d, err := webhook.ParseDelivery(r)
	switch {
	case err != nil:
		return nil, err
	case d.Attempt > dedupe.MaxAttempt:
		return nil, fmt.Errorf("delivery: header attempt: more than %d", dedupe.MaxAttempt)
	case len(d.Body) > maxBody:
		return nil, fmt.Errorf("delivery: the body has %d bytes, more than %d", len(d.Body), maxBody)
	}
	return d, nil
}

// settle does what a record asks for and returns true once the record is
// settled: what became of it is acknowledged by Kafka and marked in Redis. It
// begins nothing after intake has ended, and returns false then; what it has
// begun it ends, for as long as ctx lasts.
func (s *Sender) settle(intake, ctx context.Context, r *kgo.Record, delay time.Duration) bool {
	d, err := parse(r)
	if err != nil {
		return s.unreadable(ctx, r, err)
	}
	if delay > 0 && time.Until(d.NotBefore) > 0 {
		return s.goRound(ctx, r, d)
	}
	for {
		done, wait := s.try(intake, ctx, r, d)
		if done || intake.Err() != nil {
			return done
		}
		if !sleep(intake, wait) {
			return false
		}
	}
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// try takes one turn at a delivery: its place among the requests under way, the
// claim, the request, the outcome. When it is not done it says how long to wait
// before the next turn; the place is given back meanwhile.
func (s *Sender) try(intake, ctx context.Context, r *kgo.Record, d *webhook.Delivery) (done bool, wait time.Duration) {
	place, err := s.enter(intake, d)
	if err != nil {
		return false, 0
	}
	defer place.leave()
	if err := s.keeper.wait(intake); err != nil {
		return false, 0
	}
	claim, err := s.cfg.Claims.Claim(intake, d.ID, d.Attempt)
	if err != nil {
		s.claimFailed(intake, err)
		return false, 0
	}
	s.metrics.claims.WithLabelValues(claim.Verdict.String()).Inc()
	switch claim.Verdict {
	case dedupe.Settled:
		return true, 0
	case dedupe.Busy, dedupe.Early:
		// Whoever holds it may be dead. It settles nothing; the lease will end.
		return false, max(claim.Wait, time.Millisecond)
	}
	return s.attempt(intake, ctx, r, d, claim, place)
}

// place is what a delivery takes until its endpoint has answered: one in the
// endpoint's lane, and one among all requests under way. While its outcome is
// written down it takes only its part of the partition's window, so that a slow
// log gets large batches instead of few requests.
type place struct {
	s     *Sender
	lane  func() // gives the lane back
	bytes int64
	left  bool
}

// enter waits for a place.
func (s *Sender) enter(ctx context.Context, d *webhook.Delivery) (*place, error) {
	lane, err := s.lanes.enter(ctx, d.SubscriptionID)
	if err != nil {
		return nil, err
	}
	p := &place{s: s, lane: lane, bytes: min(int64(len(d.Body)), s.cfg.InFlightBytes)}
	if err := s.slots.Acquire(ctx, 1); err != nil {
		lane()
		return nil, err
	}
	if err := s.bytes.Acquire(ctx, p.bytes); err != nil {
		s.slots.Release(1)
		lane()
		return nil, err
	}
	s.metrics.inFlight.Inc()
	return p, nil
}

// leave gives the place back; once is enough.
func (p *place) leave() {
	if p.left {
		return
	}
	p.left = true
	p.s.metrics.inFlight.Dec()
	p.s.bytes.Release(p.bytes)
	p.s.slots.Release(1)
	p.lane()
}

func (s *Sender) claimFailed(ctx context.Context, err error) {
	if ctx.Err() == nil && !errors.Is(err, dedupe.ErrClosed) {
		s.keeper.report(err)
	}
}

// margin is what must be left of a lease beyond the request's own time-out, for
// the answer's body to be read and the outcome to be written down.
const margin = 3 * time.Second

// attempt makes the claimed attempt, or discards the delivery.
func (s *Sender) attempt(intake, ctx context.Context, r *kgo.Record, d *webhook.Delivery, claim dedupe.Claim, place *place) (done bool, wait time.Duration) {
	release := func() {
		// If it fails, the claim ends with its lease.
		_ = s.cfg.Claims.Release(context.WithoutCancel(ctx), d.ID, d.Attempt, claim.Token)
	}
	// The record that the delivery was made from must have been read before the
	// subscription can be called unknown.
	if err := s.cfg.Subscriptions.Await(intake, d.Subscription.Partition, d.Subscription.Offset+1); err != nil {
		release()
		return false, 0
	}
	reg, known := s.cfg.Subscriptions.Get(d.SubscriptionID)
	if why := unwanted(reg, known); why != "" {
		return s.record(ctx, r, d, claim, outcome{kind: webhook.Discarded, err: why, at: time.Now()})
	}
	secret, err := s.cfg.Open(reg.Subscription.ID, reg.Subscription.Secret)
	if err != nil {
		// A setting is wrong, not the endpoint: keep the delivery until it is mended.
		s.cfg.Log.Error("secret can't be opened; its deliveries wait", "subscription_id", d.SubscriptionID, "error", err)
		release()
		return false, 5 * time.Second
	}
	// A stall may have eaten the lease: another sender may be at it already.
	if time.Until(claim.Deadline) < s.cfg.Timeout+margin {
		release()
		return false, 0
	}
	at := time.Now()
	if d.Attempt > 1 {
		s.metrics.lateness.Observe(at.Sub(d.NotBefore).Seconds())
	}
	header := make(http.Header, 9)
	webhook.Sign(header, secret, d, at)
	result := s.cfg.Client.Post(ctx, endpoint.Request{URL: reg.Subscription.TargetURL, Header: header, Body: d.Body})
	place.leave()
	if ctx.Err() != nil && result.Status == 0 {
		// Stopped in the middle: nobody knows whether it arrived. The claim stays,
		// so that it is not tried again before this request is surely over.
		return false, 0
	}
	return s.record(ctx, r, d, claim, s.judge(d, at, result))
}

// unwanted says why a delivery is not to be sent, or "".
func unwanted(reg webhook.Registered, known bool) string {
	switch {
	case !known || reg.Subscription.Deleted:
		return "subscription_deleted"
	case !reg.Subscription.Enabled:
		return "subscription_disabled"
	}
	return ""
}

// outcome is what became of an attempt.
type outcome struct {
	kind    string // webhook.Delivered, Failed, Dead or Discarded
	at      time.Time
	status  int
	err     string // class of the failure
	answer  []byte
	latency time.Duration
	// of failed attempts: in which retry topic the delivery waits, and till when
	delay time.Duration
	due   time.Time
}

// judge is the verdict on an answer.
func (s *Sender) judge(d *webhook.Delivery, at time.Time, res endpoint.Result) outcome {
	o := outcome{at: at, status: res.Status, err: res.Class, answer: res.Answer, latency: res.Latency}
	if res.Err == nil && res.Status >= 200 && res.Status <= 299 {
		o.kind = webhook.Delivered
		return o
	}
	if o.err == "" {
		o.err = "status"
	}
	now := time.Now()
	var retryAfter time.Duration
	if res.Status == http.StatusTooManyRequests || res.Status == http.StatusServiceUnavailable {
		retryAfter, _ = endpoint.ParseRetryAfter(res.RetryAfter, now)
	}
	delay, due, again := s.cfg.Schedule.Next(d.Attempt, now, retryAfter, s.cfg.RetryAfterCap)
	if !again {
		o.kind = webhook.Dead
		return o
	}
	o.kind, o.delay, o.due = webhook.Failed, delay, due
	return o
}

// record writes an outcome down: first the hand-over, then the attempt, then
// the mark. Whoever finds the attempt's record so knows that the delivery was
// handed over, also when Redis has to be rebuilt from it.
func (s *Sender) record(ctx context.Context, r *kgo.Record, d *webhook.Delivery, claim dedupe.Claim, o outcome) (done bool, wait time.Duration) {
	handOver, attempt, err := s.encode(r, d, o)
	if err != nil {
		// Can't be with what was parsed; but if it is, it must not block.
		return s.unreadable(ctx, r, err), 0
	}
	for _, rec := range []*kgo.Record{handOver, attempt} {
		if rec == nil {
			continue
		}
		if err := s.produce(ctx, rec); err != nil {
			return false, 0
		}
	}
	s.observe(d, o)
	for {
		err := s.cfg.Claims.Settle(ctx, d.ID, d.Attempt, claim.Token, o.kind)
		if err == nil {
			return true, 0
		}
		s.claimFailed(ctx, err)
		if s.keeper.wait(ctx) != nil {
			// Out of time. An end is on record, and nobody will read this delivery
			// again; of a failure the next attempt would wait for its mark.
			return o.kind != webhook.Failed, 0
		}
	}
}

// produce appends a record and returns once it is acknowledged; it tries for as
// long as ctx lasts, unless the record is too large.
func (s *Sender) produce(ctx context.Context, rec *kgo.Record) error {
	for {
		err := s.append(ctx, rec)
		if err == nil || ctx.Err() != nil || errors.Is(err, kerr.MessageTooLarge) {
			return err
		}
		s.cfg.Log.Error("append failed; trying again", "topic", rec.Topic, "error", err)
		if !sleep(ctx, time.Second) {
			return fmt.Errorf("append to %s: %w", rec.Topic, context.Cause(ctx))
		}
		rec = &kgo.Record{Topic: rec.Topic, Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
	}
}

// append appends a record once. It does not wait longer than ctx lasts, although
// the client does: it can't take back a record whose fate it does not know. If
// such a record is written after all, it is the twin of one that a later owner
// of the partition writes.
func (s *Sender) append(ctx context.Context, rec *kgo.Record) error {
	acknowledged := make(chan error, 1)
	s.client.Produce(ctx, rec, func(_ *kgo.Record, err error) { acknowledged <- err })
	select {
	case err := <-acknowledged:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// unreadable makes a dead letter of a record that is no delivery.
func (s *Sender) unreadable(ctx context.Context, r *kgo.Record, cause error) bool {
	err := s.bury(ctx, r, cause)
	if errors.Is(err, kerr.MessageTooLarge) {
		bare := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
		err = s.bury(ctx, bare, fmt.Errorf("%w; its %d bytes are too many for a dead letter", cause, size(r)))
	}
	s.cfg.Log.Error("unreadable delivery is now a dead letter",
		"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "cause", cause, "error", err)
	s.metrics.unreadable.Inc()
	return err == nil
}

func (s *Sender) bury(ctx context.Context, r *kgo.Record, cause error) error {
	dead, err := webhook.Unreadable(s.cfg.Topics.DeadLetters(), r, cause, time.Now())
	if err != nil {
		return err
	}
	return s.produce(ctx, dead)
}

// goRound puts a delivery that its endpoint asked to wait longer back into a
// retry topic: into the one with the longest delay that fits. It costs no
// attempt.
func (s *Sender) goRound(ctx context.Context, r *kgo.Record, d *webhook.Delivery) bool {
	left := time.Until(d.NotBefore)
	delay := slices.Min(s.cfg.Schedule)
	for _, fits := range s.cfg.Schedule {
		if fits <= left {
			delay = max(delay, fits)
		}
	}
	rec, err := d.Encode(s.cfg.Topics.Retry(delay))
	if err != nil {
		return s.unreadable(ctx, r, err)
	}
	return s.produce(ctx, rec) == nil
}
