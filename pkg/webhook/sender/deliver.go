package sender

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

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

// lesson is what an attempt says of its endpoint.
type lesson struct {
	kind    kind
	began   time.Time
	latency time.Duration
	wait    time.Duration // pausing and refused: how long
}

type kind int

const (
	none       kind = iota // nothing
	good                   // it takes requests
	bad                    // it does not take this one
	overloaded             // it may be given too many
	pausing                // no request may be made for a while; the delivery is back in hand
	refused                // somebody else may be at this delivery, which waits
)

// deliver makes an attempt: the claim, the request, the outcome. It begins
// nothing after the intake has ended; what it has begun it ends.
func (s *Sender) deliver(j *job) lesson {
	intake, d := j.p.intake, j.d
	for {
		if s.keeper.wait(intake) != nil {
			return s.giveUp(j)
		}
		// The record that the delivery was made from must have been read before the
		// subscription can be called unknown.
		if s.cfg.Subscriptions.Await(intake, d.Subscription.Partition, d.Subscription.Offset+1) != nil {
			return s.giveUp(j)
		}
		reg, known := s.cfg.Subscriptions.Get(d.SubscriptionID)
		why := s.unwanted(d, reg, known)
		var signer *webhook.Signer
		var limit *webhook.RateLimit
		if why == "" {
			var err error
			if signer, err = s.signer(j.lane, reg.Subscription); err != nil {
				// A setting is wrong, not the endpoint: keep the delivery until it is mended.
				s.cfg.Log.Error("secret can't be opened; its deliveries wait", "subscription_id", d.SubscriptionID, "error", err)
				return lesson{kind: pausing, wait: 5 * time.Second}
			}
			limit = reg.Subscription.RateLimit
			wait, err := s.ration(intake, j.lane, reg.Subscription)
			if err != nil {
				s.claimFailed(intake, err)
				continue
			}
			if wait > 0 {
				return lesson{kind: pausing, wait: wait}
			}
		}
		claim, err := s.cfg.Claims.Claim(intake, d.ID, d.Attempt)
		if limit != nil && (err != nil || claim.Verdict != dedupe.Granted) {
			j.lane.addTokens(1) // no request is made
		}
		if err != nil {
			s.claimFailed(intake, err)
			continue
		}
		s.metrics.claims.WithLabelValues(claim.Verdict.String()).Inc()
		switch claim.Verdict {
		case dedupe.Settled:
			s.end(j, true)
			return lesson{}
		case dedupe.Busy, dedupe.Early:
			// Whoever holds it may be dead. It settles nothing; the lease will end.
			return lesson{kind: refused, wait: max(claim.Wait, time.Millisecond)}
		}
		if why != "" {
			s.record(j, claim, outcome{kind: webhook.Discarded, err: why, at: time.Now()})
			return lesson{}
		}
		// A stall may have eaten the lease: another sender may be at it already.
		if time.Until(claim.Deadline) < s.cfg.Timeout+margin {
			// If it fails, the claim ends with its lease.
			_ = s.cfg.Claims.Release(context.WithoutCancel(intake), d.ID, d.Attempt, claim.Token)
			if limit != nil {
				j.lane.addTokens(1)
			}
			continue
		}
		return s.attempt(j, reg.Subscription, signer, claim)
	}
}

// giveUp leaves a delivery to whoever gets its partition next.
func (s *Sender) giveUp(j *job) lesson {
	s.end(j, false)
	return lesson{}
}

func (s *Sender) end(j *job, settled bool) {
	sh := j.p.shard
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.end(j, settled)
}

// signer returns what signs with a subscription's secret; a lane remembers its own.
func (s *Sender) signer(ln *lane, sub *webhook.Subscription) (*webhook.Signer, error) {
	if o := ln.opened.Load(); o != nil && o.sealed == sub.Secret {
		return o.signer, nil
	}
	secret, err := s.cfg.Open(sub.ID, sub.Secret)
	if err != nil {
		return nil, err
	}
	signer := webhook.NewSigner(secret)
	ln.opened.Store(&opened{sub.Secret, signer})
	return signer, nil
}

// rations is how many parts of a second's requests are asked for at a time: few
// round trips, and not more granted than is soon used.
const rations = 20

// ration takes one of the requests that a subscription's rate limit grants to
// all senders together, and returns how long to wait if there is none.
func (s *Sender) ration(ctx context.Context, ln *lane, sub *webhook.Subscription) (wait time.Duration, err error) {
	limit := sub.RateLimit
	if limit == nil {
		return 0, nil
	}
	if ln.takeToken() {
		return 0, nil
	}
	granted, wait, err := s.cfg.Standing.Take(ctx, sub.ID, *limit, max(limit.PerSecond/rations, 1))
	if err != nil || granted == 0 {
		return max(wait, time.Millisecond), err
	}
	ln.addTokens(granted - 1)
	return 0, nil
}

func (s *Sender) claimFailed(ctx context.Context, err error) {
	if ctx.Err() == nil && !errors.Is(err, dedupe.ErrClosed) {
		s.keeper.report(err)
	}
}

// margin is what must be left of a lease beyond the request's own time-out, for
// the answer's body to be read and the outcome to be written down.
const margin = 3 * time.Second

// attempt makes the claimed attempt.
func (s *Sender) attempt(j *job, sub *webhook.Subscription, signer *webhook.Signer, claim dedupe.Claim) lesson {
	at := time.Now()
	if j.d.Attempt > 1 {
		s.metrics.lateness.Observe(at.Sub(j.d.NotBefore).Seconds())
	}
	header := make(endpoint.Header, 0, 10)
	signer.Sign(header.Add, j.d, at)
	j.lane.wire.asked()
	result := s.cfg.Client.Post(j.p.hard, endpoint.Request{URL: sub.TargetURL, Header: header, Body: j.d.Body})
	j.lane.wire.ended(time.Now())
	if j.p.hard.Err() != nil && result.Status == 0 {
		// Stopped in the middle: nobody knows whether it arrived. The claim stays,
		// so that it is not tried again before this request is surely over.
		return s.giveUp(j)
	}
	o := s.judge(j.d, at, result)
	o.disable = s.hopeless(j, sub, o)
	s.record(j, claim, o)
	return o.lesson()
}

// hopeless says why the subscription should be disabled, or nil.
func (s *Sender) hopeless(j *job, sub *webhook.Subscription, o outcome) *webhook.Disable {
	since, err := s.failingSince(j, o)
	if err != nil {
		s.cfg.Log.Debug("how long an endpoint has failed is not known", "subscription_id", sub.ID, "error", err)
	}
	switch {
	case o.kind == webhook.Dead && o.status == http.StatusGone:
		return &webhook.Disable{Reason: webhook.DisabledGone, Version: sub.Version}
	case o.kind != webhook.Delivered && !since.IsZero() && o.at.Sub(since) > s.cfg.GiveUpAfter:
		return &webhook.Disable{Reason: webhook.DisabledNoSuccess, Version: sub.Version}
	}
	return nil
}

// failingSince tells all senders of an endpoint's success or failure, if that is
// news to this one, and returns since when nothing has succeeded.
func (s *Sender) failingSince(j *job, o outcome) (time.Time, error) {
	known := j.lane.failingSince()
	if known.known && known.since.IsZero() == (o.kind == webhook.Delivered) {
		return known.since, nil
	}
	var since time.Time
	var err error
	if o.kind == webhook.Delivered {
		err = s.cfg.Standing.Succeeded(j.p.hard, j.d.SubscriptionID)
	} else {
		since, err = s.cfg.Standing.Failed(j.p.hard, j.d.SubscriptionID, o.at)
	}
	if err == nil {
		j.lane.setFailing(failing{true, since})
	}
	return since, err
}

// unwanted says why a delivery is not to be sent, or "".
func (s *Sender) unwanted(d *webhook.Delivery, reg webhook.Registered, known bool) string {
	switch {
	case !known || reg.Subscription.Deleted:
		return "subscription_deleted"
	case !reg.Subscription.Enabled:
		return "subscription_disabled"
	case d.Replay() != "" && s.cfg.Cancelled(d.Replay()):
		return "replay_cancelled"
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
	// disable asks for the subscription to be disabled; nil does not
	disable *webhook.Disable
}

// lesson is what the outcome says of the endpoint.
func (o outcome) lesson() lesson {
	l := lesson{kind: bad, began: o.at, latency: o.latency}
	switch {
	case o.kind == webhook.Delivered:
		l.kind = good
	case o.err != "status", o.status == http.StatusTooManyRequests,
		o.status >= http.StatusBadGateway && o.status <= http.StatusGatewayTimeout:
		l.kind = overloaded
	}
	return l
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

// record has an outcome written down.
func (s *Sender) record(j *job, claim dedupe.Claim, o outcome) {
	handOver, attempt, err := s.encode(j.r, j.d, o)
	if err != nil {
		// Can't be with what was parsed; but if it is, it must not block.
		s.bury(j, err)
		return
	}
	if !s.recorder.admit(j.p.hard) {
		s.end(j, false) // as if it had been stopped in the middle
		return
	}
	s.observe(j.d, o)
	s.recorder.add(&note{j, handOver, attempt, &dedupe.Settlement{ID: j.d.ID, Attempt: j.d.Attempt, Token: claim.Token, Outcome: o.kind}})
}

// bury makes a dead letter of a record that is no delivery.
func (s *Sender) bury(j *job, cause error) {
	dead, err := webhook.Unreadable(s.cfg.Topics.DeadLetters(), j.r, cause, time.Now())
	s.cfg.Log.Error("unreadable delivery becomes a dead letter",
		"topic", j.r.Topic, "partition", j.r.Partition, "offset", j.r.Offset, "cause", cause, "error", err)
	s.metrics.unreadable.Inc()
	if err != nil {
		s.end(j, false) // it stays uncommitted
		return
	}
	s.recorder.add(&note{j: j, handOver: dead})
}

// goRound puts a delivery that its endpoint asked to wait longer back into a
// retry topic: into the one with the longest delay that fits. It costs no
// attempt.
func (s *Sender) goRound(j *job) {
	left := time.Until(j.d.NotBefore)
	delay := slices.Min(s.cfg.Schedule)
	for _, fits := range s.cfg.Schedule {
		if fits <= left {
			delay = max(delay, fits)
		}
	}
	rec := &kgo.Record{Topic: s.cfg.Topics.Retry(delay), Key: j.r.Key, Value: j.r.Value, Headers: j.r.Headers}
	s.recorder.add(&note{j: j, handOver: rec})
}
