package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/pkg/webhook/sender"
	"github.com/arsmedicatech/webhooks/pkg/webhook/standing"
)

// Sending is how requests are made, and how long what became of them is known.
type Sending struct {
	Timeout     time.Duration `name:"request-timeout" env:"REQUEST_TIMEOUT" default:"10s" help:"What a request may take, from dialling to the end of the answer's head."`
	RetryAfter  time.Duration `name:"retry-after-cap" env:"RETRY_AFTER_CAP" default:"15m" help:"How far an endpoint's Retry-After can move its next attempt."`
	InFlight    int           `name:"in-flight" env:"IN_FLIGHT" default:"1024" help:"Requests under way at most. If the sender is killed, they may be made twice."`
	Unrecorded  int           `name:"unrecorded" env:"UNRECORDED" default:"4096" help:"Outcomes of requests that wait to be written down in Kafka and Redis at most. If the sender is killed, their requests may be made twice."`
	PerEndpoint int           `name:"per-endpoint" env:"PER_ENDPOINT" default:"64" help:"Requests under way to one subscription at most. How many there are, from 1 up to here, depends on how it answers."`
	BreakAfter  int           `name:"break-after" env:"BREAK_AFTER" default:"100" help:"After how many failures without a success an endpoint is left alone, but for a single request from time to time."`
	GiveUpAfter time.Duration `name:"give-up-after" env:"GIVE_UP_AFTER" default:"120h" help:"How long an endpoint may fail without a single success before its subscription is disabled. Shorter than deliveries are kept, which is DELIVERY_RETENTION of webhooks topics apply."`
	Drain       time.Duration `name:"drain" env:"DRAIN" default:"15s" help:"What requests under way get to end when the process stops."`
	MarkLife    time.Duration `name:"mark-life" env:"MARK_LIFE" default:"192h" help:"How long Redis remembers a delivery. Longer than deliveries are kept, which is DELIVERY_RETENTION of webhooks topics apply."`
}

// Check says which setting can't be.
func (s Sending) Check() error {
	switch {
	case s.Timeout < time.Millisecond || s.Timeout > time.Minute:
		return errors.New("REQUEST_TIMEOUT must be between 1ms and 1m")
	case s.InFlight < 1 || s.Unrecorded < 1 || s.PerEndpoint < 1:
		return errors.New("IN_FLIGHT, UNRECORDED and PER_ENDPOINT must be at least 1")
	case s.BreakAfter < 1:
		return errors.New("BREAK_AFTER must be at least 1")
	case s.Drain < 0 || s.Drain > 50*time.Second:
		return errors.New("DRAIN must be at most 50s: a rebalance does not wait for longer")
	case s.GiveUpAfter < time.Minute:
		return errors.New("GIVE_UP_AFTER must be at least 1m")
	case s.MarkLife < time.Hour:
		return errors.New("MARK_LIFE must be at least 1h")
	}
	return nil
}

// Sender is the webhook-sender service.
type Sender struct {
	run.Settings `embed:""`
	Kafka        kafka.Config `embed:""`
	Redis        Redis        `embed:""`
	Retries      Retries      `embed:""`
	Targets      Targets      `embed:""`
	SealingKeys  string       `name:"sealing-keys" env:"SEALING_KEYS" placeholder:"NAME:KEY" help:"Keys that subscriptions' secrets are sealed with; better set in the environment than on the command line. Make one with: webhooks keys new."`
	Instance     Instance     `embed:""`
	Sending      Sending      `embed:""`
	sole         bool         // no other process uses this Redis: the embedded one
}

// standingLife is how much longer it is remembered since when an endpoint has
// failed: it may get no delivery for that time.
const standingLife = 30 * 24 * time.Hour

// Common implements run.Program.
func (s *Sender) Common() *run.Settings { return &s.Settings }

// Run implements run.Program.
func (s *Sender) Run(ctx context.Context, env *run.Env) error {
	redisOpts, redisErr := s.Redis.options()
	schedule, scheduleErr := s.Retries.Parse()
	networks, networksErr := s.Targets.networks()
	opts, optErr := s.Kafka.Options(env.Log)
	keys, keysErr := sealingKeys(s.SealingKeys)
	if err := invalid(s.Kafka.Check(), redisErr, keysErr, s.Sending.Check(), scheduleErr, networksErr, optErr); err != nil {
		return err
	}
	client, err := endpoint.New(endpoint.Config{
		Timeout: s.Sending.Timeout, AllowNetworks: networks, UserAgent: webhook.UserAgent,
		ConnsPerHost: s.Sending.InFlight, // never waits: that would be part of the time-out
	})
	if err != nil {
		return invalid(err)
	}
	defer client.Close()
	claims, err := dedupe.New(dedupe.Config{
		Redis: redisOpts, Prefix: s.Kafka.TopicPrefix + "wh:", Sole: s.sole, Logger: env.Log,
		Lease: s.Sending.Timeout + 5*time.Second, MarkLife: s.Sending.MarkLife,
	})
	if err != nil {
		return invalid(err)
	}
	defer func() { _ = claims.Close() }() // only reads the last answers
	known, err := standing.New(standing.Config{
		Redis: redisOpts, Prefix: s.Kafka.TopicPrefix + "es:", Life: s.Sending.GiveUpAfter + standingLife,
	})
	if err != nil {
		return invalid(err)
	}
	defer func() { _ = known.Close() }() // only reads the last answers

	topics := s.Kafka.Topics()
	env.Health.Add("sender", func() error { return errors.New("waiting for Kafka and its topics") })
	if err := waitForTopics(ctx, env, opts, topics, schedule); err != nil {
		return quiet(ctx, err)
	}
	if !s.sole { // the embedded one has no memory policy to ask for
		if err := s.checkRedis(ctx, env, claims); err != nil {
			return quiet(ctx, err)
		}
	}
	former, err := s.formerDelays(ctx, opts, topics)
	if err != nil {
		return quiet(ctx, err)
	}
	subscriptions, err := registry.New(registry.Config{Kafka: opts, Topic: topics.Subscriptions(), Log: env.Log, Metrics: env.Metrics})
	if err != nil {
		return err
	}
	replays, err := replay.NewTable(replay.TableConfig{Kafka: opts, Topic: topics.Replays(), Log: env.Log})
	if err != nil {
		return err
	}
	snd, err := sender.New(sender.Config{
		Kafka: opts, Topics: topics, Group: s.Kafka.TopicPrefix + groupSender, Member: s.Instance.member(),
		Schedule: schedule, FormerDelays: former, RetryAfterCap: s.Sending.RetryAfter, Timeout: s.Sending.Timeout, MarkLife: s.Sending.MarkLife,
		InFlight: s.Sending.InFlight, Unrecorded: s.Sending.Unrecorded, PerEndpoint: s.Sending.PerEndpoint, BreakAfter: s.Sending.BreakAfter, GiveUpAfter: s.Sending.GiveUpAfter, Drain: s.Sending.Drain,
		Subscriptions: subscriptions, Open: keys.Open, Claims: claims, Standing: known, Cancelled: replays.Cancelled, Client: client, Log: env.Log, Metrics: env.Metrics,
	})
	if err != nil {
		return err
	}
	env.Health.Add("sender", snd.Ready)
	env.Health.Add("subscriptions", run.Closed(subscriptions.Restored(), "reading the subscriptions"))

	// Requests under way still ask the tables.
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	// Without its tables it must not go on.
	ctx, end := context.WithCancel(ctx)
	defer end()
	g.Go(func() error { defer end(); return subscriptions.Run(reading) })
	g.Go(func() error { defer end(); return replays.Run(reading) })
	g.Go(func() error {
		defer stop()
		select {
		case <-replays.Restored(): // or what has been cancelled would be sent
		case <-ctx.Done():
			return nil
		}
		return snd.Run(ctx)
	})
	return g.Wait()
}

// formerDelays returns the delays of retry topics that exist.
func (s *Sender) formerDelays(ctx context.Context, opts []kgo.Opt, topics webhook.Topics) ([]time.Duration, error) {
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	defer client.Close()
	return kafka.RetryDelays(ctx, kadm.NewClient(client), topics)
}

// checkRedis waits for Redis and refuses one that forgets when it is full.
func (s *Sender) checkRedis(ctx context.Context, env *run.Env, claims *dedupe.Redis) error {
	said := false
	for {
		err := claims.Check(ctx)
		if !errors.Is(err, dedupe.ErrUnavailable) {
			return err
		}
		if !said {
			said = true
			env.Log.Warn("waiting for Redis", "error", err)
			env.Health.Add("sender", func() error { return errors.New("waiting for Redis") })
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}
