// Package subscription takes commands on subscriptions and writes them to the
// compacted topic, which it alone writes.
package subscription

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
)

// partition is where the whole table is: its topic has one.
const partition = 0

// keyLife is how long an Idempotency-Key is remembered.
const keyLife = 24 * time.Hour

// maxRules bounds the rules of a record while routers are behind.
const maxRules = 1000

// Config of a Service.
type Config struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	// Topic is the compacted topic.
	Topic           string
	Group           string
	TransactionalID string
	Advertise       string
	// Member is this process's name in the group, see writer.Config.
	Member string
	// Attempts is the topic of what became of deliveries, where senders ask for
	// subscriptions to be disabled, and DisablingGroup the consumer group that
	// knows which of them were granted. If they are empty, nothing is granted.
	Attempts, DisablingGroup string
	// Ends returns the high watermarks of the event log.
	Ends func(context.Context) ([]int64, error)
	// Routed returns, by partition of the event log, the first offset that the
	// routers have not committed.
	Routed func(context.Context) ([]int64, error)
	// CheckURL refuses targets that may not be sent to.
	CheckURL func(string) error
	// Seal seals a secret for a subscription.
	Seal func(id, secret string) string
	Log  *slog.Logger
}

// Service takes commands on subscriptions and answers questions about them.
type Service struct {
	cfg   Config
	reg   *registry.Registry
	group *writer.Group[*batch]
	// maxRules is as the constant, but in tests.
	maxRules int
}

// New makes the service on a registry, which the caller runs.
func New(cfg Config, reg *registry.Registry) (*Service, error) {
	s := &Service{cfg: cfg, reg: reg, maxRules: maxRules}
	var while func(context.Context, int32)
	if cfg.Attempts != "" {
		if err := kgo.ValidateOpts(s.grantOptions()...); err != nil {
			return nil, fmt.Errorf("consume %s: %w", cfg.Attempts, err)
		}
		while = s.grant
	}
	var err error
	s.group, err = writer.New(writer.Config[*batch]{
		Kafka: cfg.Kafka, Topic: cfg.Topic, Group: cfg.Group,
		TransactionalID: cfg.TransactionalID, Advertise: cfg.Advertise, Member: cfg.Member, Log: cfg.Log,
		Begin: func(int32) *batch { return &batch{reg: reg, pending: map[string]*webhook.Subscription{}} },
		Await: reg.Await, End: reg.End, Intent: []byte("intent"), While: while,
	})
	return s, err
}

// Records are looked through for what routers have passed every sweepEvery, and
// for no longer than sweepTimeout.
const (
	sweepEvery   = time.Minute
	sweepTimeout = 10 * time.Second
)

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-s.reg.Stable():
		case <-ctx.Done():
		}
		return s.group.Run(ctx)
	})
	g.Go(func() error { s.sweep(ctx); return nil })
	return g.Wait()
}

// batch is the table, and on top what the batch's earlier commands decided.
type batch struct {
	reg     *registry.Registry
	pending map[string]*webhook.Subscription
}

func (b *batch) get(id string) *webhook.Subscription {
	if s := b.pending[id]; s != nil {
		return s
	}
	e, _ := b.reg.Get(id)
	return e.Subscription
}

// Commit implements writer.Batch: the next batch finds this one in the table.
func (b *batch) Commit(ctx context.Context, records []*kgo.Record) error {
	return b.reg.Await(ctx, partition, records[len(records)-1].Offset+1)
}

// Create asks for a new subscription.
type Create struct {
	EventName, TargetURL, Secret string
	Enabled                      bool
	RateLimit                    *webhook.RateLimit // nil for none
}

// Change asks for a subscription to be changed; a nil field stays as it is.
type Change struct {
	EventName, TargetURL, Secret *string
	Enabled                      *bool
	RateLimit                    **webhook.RateLimit // to nil for none
	// IfVersion refuses the change of any other version; 0 takes any.
	IfVersion int
}

// Create carries out the command and returns the new subscription.
func (s *Service) Create(ctx context.Context, m appointment.Meta, c Create) (*webhook.Subscription, error) {
	if err := s.validate(&c.EventName, &c.TargetURL, &c.Secret, c.RateLimit); err != nil {
		return nil, err
	}
	var made *webhook.Subscription
	err := s.submit(ctx, func(ctx context.Context, b *batch) ([]*kgo.Record, error) {
		now := time.Now().UTC().Truncate(time.Millisecond)
		sub := &webhook.Subscription{
			ID: "webhook_subscription:" + uuid.NewString(), EventName: c.EventName, TargetURL: c.TargetURL,
			Enabled: c.Enabled, RateLimit: c.RateLimit, CreatedAt: now, UpdatedAt: now, CreatedBy: m.Actor, UpdatedBy: m.Actor, Version: 1,
		}
		sub.Secret = s.cfg.Seal(sub.ID, c.Secret)
		if m.Idempotency != "" {
			done, err := b.repeated(m.Idempotency)
			if done != nil || err != nil {
				made = done
				return nil, err
			}
			sub.Key = &webhook.Key{
				Fingerprint: m.Idempotency, At: now,
				EventName: c.EventName, TargetURL: c.TargetURL, Enabled: c.Enabled, RateLimit: c.RateLimit,
			}
		}
		made = sub
		return s.put(ctx, b, sub)
	})
	if err != nil {
		// The writer may still be at it: made is its until Submit returns nil.
		return nil, err
	}
	return made, nil
}

// repeated returns what a command with the same Idempotency-Key made, as it was
// then.
func (b *batch) repeated(fingerprint string) (*webhook.Subscription, error) {
	key, _, _ := strings.Cut(fingerprint, ".")
	all := slices.Collect(maps.Values(b.pending))
	for _, e := range b.reg.All() {
		all = append(all, e.Subscription)
	}
	for _, sub := range all {
		if sub.Key == nil || time.Since(sub.Key.At) > keyLife || !strings.HasPrefix(sub.Key.Fingerprint, key+".") {
			continue
		}
		if sub.Key.Fingerprint != fingerprint {
			return nil, refusal(appointment.Conflict, "idempotency_key_reused", "This Idempotency-Key was used for another request: choose a new one")
		}
		first := *sub
		first.EventName, first.TargetURL, first.Enabled = sub.Key.EventName, sub.Key.TargetURL, sub.Key.Enabled
		first.RateLimit, first.Disabled = sub.Key.RateLimit, nil
		first.Version, first.UpdatedAt = 1, sub.CreatedAt
		return &first, nil
	}
	return nil, nil
}

// Change carries out the command and returns the subscription after it.
func (s *Service) Change(ctx context.Context, m appointment.Meta, id string, c Change) (*webhook.Subscription, error) {
	var limit *webhook.RateLimit
	set(&limit, c.RateLimit)
	if err := s.validate(c.EventName, c.TargetURL, c.Secret, limit); err != nil {
		return nil, err
	}
	return s.change(ctx, m, id, c.IfVersion, func(sub *webhook.Subscription) bool {
		before := *sub
		set(&sub.EventName, c.EventName)
		set(&sub.TargetURL, c.TargetURL)
		set(&sub.Enabled, c.Enabled)
		set(&sub.RateLimit, c.RateLimit)
		if sub.Enabled {
			sub.Disabled = nil
		}
		if c.Secret != nil {
			sub.Secret = s.cfg.Seal(sub.ID, *c.Secret)
		}
		return c.Secret != nil || before.EventName != sub.EventName || before.TargetURL != sub.TargetURL ||
			before.Enabled != sub.Enabled || !same(before.RateLimit, sub.RateLimit)
	})
}

// system is the actor of what no user asked for.
const system = "system"

// Disable disables a subscription for one of webhook's reasons. It is meant for
// the version that who asks for it has seen: if the subscription was changed,
// disabled or deleted since, nothing happens.
func (s *Service) Disable(ctx context.Context, id string, version int, reason string) error {
	// Many ask for the same, and this costs no transaction. The table may not be
	// restored yet, but what it says of this version or a later one stays so.
	if e, ok := s.reg.Get(id); ok && (e.Subscription.Version > version || e.Subscription.Version == version && !e.Subscription.Enabled) {
		return nil
	}
	var disabled *webhook.Disabled
	_, err := s.change(ctx, appointment.Meta{Actor: system}, id, version, func(sub *webhook.Subscription) bool {
		if !sub.Enabled {
			return false
		}
		disabled = &webhook.Disabled{Reason: reason, At: time.Now().UTC().Truncate(time.Millisecond)}
		sub.Enabled, sub.Disabled = false, disabled
		return true
	})
	if r, ok := errors.AsType[*appointment.Refusal](err); ok && (r.Kind == appointment.Stale || r.Kind == appointment.NotFound) {
		return nil
	}
	if err == nil && disabled != nil {
		s.cfg.Log.Warn("subscription disabled", "subscription_id", id, "reason", reason)
	}
	return err
}

// Delete ends a subscription. Its record stays, marked as deleted, until every
// event before the deletion has been routed.
func (s *Service) Delete(ctx context.Context, m appointment.Meta, id string, ifVersion int) error {
	_, err := s.change(ctx, m, id, ifVersion, func(sub *webhook.Subscription) bool {
		sub.Deleted, sub.Enabled = true, false
		return true
	})
	return err
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func (s *Service) change(ctx context.Context, m appointment.Meta, id string, ifVersion int, edit func(*webhook.Subscription) bool) (*webhook.Subscription, error) {
	var after *webhook.Subscription
	err := s.submit(ctx, func(ctx context.Context, b *batch) ([]*kgo.Record, error) {
		before := b.get(id)
		if before == nil || before.Deleted {
			return nil, notFound()
		}
		if ifVersion != 0 && ifVersion != before.Version {
			return nil, refusal(appointment.Stale, "version_mismatch", fmt.Sprintf(
				"The subscription is at version %d, not %d: read it again and repeat the change", before.Version, ifVersion))
		}
		sub := *before
		after = &sub
		if !edit(&sub) {
			return nil, nil
		}
		sub.Version++
		sub.UpdatedAt, sub.UpdatedBy = time.Now().UTC().Truncate(time.Millisecond), m.Actor
		return s.put(ctx, b, &sub)
	})
	if err != nil {
		return nil, err
	}
	return after, nil
}

// put gives the subscription the rule that begins now and encodes it.
func (s *Service) put(ctx context.Context, b *batch, sub *webhook.Subscription) ([]*kgo.Record, error) {
	// Sampled before the record is appended: an event after the answer stands at
	// or behind these positions, one acknowledged before the command before them.
	// And sampled after the transaction's intent: a router that finds an event at
	// or behind them finds the intent too, and waits for this record.
	ends, err := s.cfg.Ends(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", appointment.ErrUnavailable, err)
	}
	rule := webhook.Rule{From: ends, EventName: sub.EventName, Active: sub.Enabled && !sub.Deleted}
	if n := len(sub.Rules); n == 0 || sub.Rules[n-1].EventName != rule.EventName || sub.Rules[n-1].Active != rule.Active {
		sub.Rules = append(slices.Clone(sub.Rules), rule)
	}
	if len(sub.Rules) > 1 {
		if routed, err := s.cfg.Routed(ctx); err == nil {
			sub.Prune(routed)
		}
	}
	if len(sub.Rules) > s.maxRules {
		return nil, refusal(appointment.Conflict, "too_many_changes",
			"This subscription was changed too often while the router is behind: wait until it has caught up")
	}
	if sub.Key != nil && time.Since(sub.Key.At) > keyLife {
		sub.Key = nil
	}
	value, err := json.Marshal(sub)
	if err != nil {
		return nil, fmt.Errorf("encode subscription %s: %w", sub.ID, err)
	}
	b.pending[sub.ID] = sub
	return []*kgo.Record{{Key: []byte(sub.ID), Value: value}}, nil
}

func (s *Service) submit(ctx context.Context, op writer.Op[*batch]) error {
	err := s.group.Submit(ctx, partition, op)
	switch {
	case errors.Is(err, writer.ErrNotOwner):
		url, lookErr := s.group.Owner(ctx, partition, time.Second)
		if lookErr != nil { // nothing was done all the same: the caller can look again
			return fmt.Errorf("%w: %w: %w", appointment.ErrUnavailable, err, lookErr)
		}
		if url == "" || url == s.cfg.Advertise {
			return fmt.Errorf("%w: %w", appointment.ErrUnavailable, err)
		}
		return &appointment.ElsewhereError{URL: url}
	case errors.Is(err, writer.ErrUnknown):
		return fmt.Errorf("%w: %w", appointment.ErrUnavailable, err)
	}
	return err
}

// sweep writes tombstones for deleted subscriptions that every router has
// passed, and drops earlier rules.
func (s *Service) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.sweepOnce(ctx); err != nil && !errors.Is(err, writer.ErrNotOwner) && ctx.Err() == nil {
			s.cfg.Log.Warn("subscriptions were not swept; the next sweep will", "error", err)
		}
	}
}

func (s *Service) sweepOnce(ctx context.Context) error {
	if !slices.ContainsFunc(s.reg.All(), func(e webhook.Registered) bool {
		return e.Subscription.Deleted || len(e.Subscription.Rules) > 1
	}) {
		return nil // there is nothing to look at
	}
	// The writer waits for it, and commands wait for the writer.
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	return s.group.Submit(ctx, partition, func(ctx context.Context, b *batch) ([]*kgo.Record, error) {
		routed, err := s.cfg.Routed(ctx)
		if err != nil {
			return nil, err
		}
		var records []*kgo.Record
		for _, e := range b.reg.All() {
			sub := *e.Subscription
			if b.pending[sub.ID] != nil {
				continue
			}
			rules := len(sub.Rules)
			remembered := sub.Key != nil && time.Since(sub.Key.At) <= keyLife
			if sub.Gone(routed) && !remembered {
				records = append(records, &kgo.Record{Key: []byte(sub.ID)})
				continue
			}
			if sub.Prune(routed); len(sub.Rules) < rules {
				value, err := json.Marshal(sub)
				if err != nil {
					return nil, fmt.Errorf("encode subscription %s: %w", sub.ID, err)
				}
				records = append(records, &kgo.Record{Key: []byte(sub.ID), Value: value})
			}
		}
		return records, nil
	})
}

// Get returns a subscription.
func (s *Service) Get(ctx context.Context, id string) (*webhook.Subscription, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	e, ok := s.reg.Get(id)
	if !ok || e.Subscription.Deleted {
		return nil, notFound()
	}
	return e.Subscription, nil
}

// List returns the subscriptions of the filter, the newest first. An empty
// event name and a nil enabled take all.
func (s *Service) List(ctx context.Context, eventName string, enabled *bool) ([]*webhook.Subscription, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	found := []*webhook.Subscription{}
	for _, e := range s.reg.All() {
		sub := e.Subscription
		if !sub.Deleted && (eventName == "" || sub.EventName == eventName) && (enabled == nil || sub.Enabled == *enabled) {
			found = append(found, sub)
		}
	}
	slices.SortFunc(found, func(a, b *webhook.Subscription) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	return found, nil
}

func (s *Service) sync(ctx context.Context) error {
	if err := s.reg.Sync(ctx); err != nil {
		return fmt.Errorf("%w: %w", appointment.ErrUnavailable, err)
	}
	return nil
}

const (
	maxSecret = 512
	wildcard  = "appointment.*"
)

// validate checks the fields that are set.
func (s *Service) validate(eventName, targetURL, secret *string, limit *webhook.RateLimit) error {
	var problems []appointment.Problem
	if eventName != nil && !validName(*eventName) {
		problems = append(problems, appointment.Problem{Field: "event_name", Problem: "must be one of " + names()})
	}
	if targetURL != nil {
		if err := s.cfg.CheckURL(*targetURL); err != nil {
			problems = append(problems, appointment.Problem{Field: "target_url", Problem: err.Error()})
		}
	}
	if secret != nil && (*secret == "" || len(*secret) > maxSecret) {
		problems = append(problems, appointment.Problem{Field: "secret", Problem: fmt.Sprintf("must have between 1 and %d bytes", maxSecret)})
	}
	if limit != nil {
		wrong := func(n int) bool { return n < 1 || n > webhook.MaxRate }
		problem := fmt.Sprintf("must be between 1 and %d", webhook.MaxRate)
		if wrong(limit.PerSecond) {
			problems = append(problems, appointment.Problem{Field: "rate_limit.per_second", Problem: problem})
		}
		// One that is wrong in the same way may not have been said at all.
		if wrong(limit.Burst) && limit.Burst != limit.PerSecond {
			problems = append(problems, appointment.Problem{Field: "rate_limit.burst", Problem: problem})
		}
	}
	if len(problems) > 0 {
		return appointment.InvalidFields(problems)
	}
	return nil
}

func validName(name string) bool {
	return name == wildcard || slices.ContainsFunc(events.Catalogue(), func(k events.Kind) bool { return k.Value == name })
}

func names() string {
	var all []string
	for _, k := range events.Catalogue() {
		all = append(all, k.Value)
	}
	return strings.Join(append(all, wildcard), ", ")
}

func refusal(kind appointment.Kind, code, message string) error {
	return &appointment.Refusal{Kind: kind, Code: code, Message: message}
}

func notFound() error {
	return refusal(appointment.NotFound, "subscription_not_found", "Webhook subscription not found")
}
