package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/pkg/webhook/router"
)

// Router is the webhook-router service.
type Router struct {
	run.Settings `embed:""`
	Kafka        kafka.Config `embed:""`
	Instance     `embed:""`
	From         string `name:"from" env:"FROM" placeholder:"WHERE" help:"Where to begin if the committed offsets are gone: earliest, latest or a time (RFC 3339)."`
	Ahead        int    `name:"replay-ahead" env:"REPLAY_AHEAD" default:"10000" help:"Deliveries of replays that may wait for the senders, by partition. A replay that is cancelled discards them one by one."`
	sole         bool   // no other process routes; transactional ids are new at each start, and commits not atomic: the embedded one
}

// Common implements run.Program.
func (r *Router) Common() *run.Settings { return &r.Settings }

func (r *Router) validate() error {
	if r.Ahead < 1 {
		return errors.New("REPLAY_AHEAD must be at least 1")
	}
	return nil
}

// Run implements run.Program.
func (r *Router) Run(ctx context.Context, env *run.Env) error {
	id, err := r.Instance.id()
	opts, optErr := r.Kafka.Options(env.Log)
	if err := invalid(r.Kafka.Check(), r.validate(), router.CheckFrom(r.From), err, optErr); err != nil {
		return err
	}
	topics := r.Kafka.Topics()
	env.Health.Add("router", func() error { return fmt.Errorf("waiting for Kafka and its topics") })
	if err := waitForTopics(ctx, env, opts, topics, nil); err != nil {
		return quiet(ctx, err)
	}
	client, err := kgo.NewClient(append(slices.Clone(opts), kgo.ProducerLinger(0))...)
	if err != nil {
		return fmt.Errorf("connect to Kafka: %w", err)
	}
	defer client.Close()
	group := r.Kafka.TopicPrefix + groupRouter
	if err := router.Begin(ctx, kadm.NewClient(client), topics, group, r.From); err != nil {
		return quiet(ctx, err)
	}
	subscriptions, err := registry.New(registry.Config{
		Kafka: opts, Topic: topics.Subscriptions(), Log: env.Log, Metrics: env.Metrics,
		Unreadable: func(rec *kgo.Record, cause error) { bury(ctx, env, client, topics, rec, cause) },
	})
	if err != nil {
		return err
	}
	name, fencing := r.Instance.member(), group
	if r.sole { // nobody else, also not from an earlier start, is a member of its groups
		name, fencing = "", group+"-"+id
	}
	rt := router.New(router.Config{
		Kafka: opts, Topics: topics, Group: group, Member: name, TransactionalID: group + "-" + id,
		Subscriptions: subscriptions, Log: env.Log, Metrics: env.Metrics,
	})
	replays, err := replay.NewTable(replay.TableConfig{Kafka: opts, Topic: topics.Replays(), Log: env.Log})
	if err != nil {
		return err
	}
	replayer, err := replay.New(replay.Config{
		Kafka: opts, Topics: topics, Group: r.Kafka.TopicPrefix + groupReplayer, Member: name, TransactionalID: fencing,
		Readers: r.Kafka.TopicPrefix + groupSender, Ahead: r.Ahead, Apart: r.sole,
		Replays: replays, Subscriptions: subscriptions, Log: env.Log, Metrics: env.Metrics,
	})
	if err != nil {
		return err
	}
	env.Health.Add("router", run.Closed(subscriptions.Restored(), "reading the subscriptions"))

	// The last batches still ask the tables.
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
		case <-subscriptions.Restored():
		case <-ctx.Done():
			return nil
		}
		env.Log.Info("routing", "group", group)
		work, ctx := errgroup.WithContext(ctx)
		work.Go(func() error { return rt.Run(ctx) })
		work.Go(func() error { return replayer.Run(ctx) })
		return work.Wait()
	})
	return g.Wait()
}

// bury makes a dead letter of an unreadable record of the subscriptions.
func bury(ctx context.Context, env *run.Env, client *kgo.Client, topics webhook.Topics, rec *kgo.Record, cause error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dead, err := webhook.Unreadable(topics.DeadLetters(), rec, cause, time.Now())
	if err == nil {
		err = client.ProduceSync(ctx, dead).FirstErr()
	}
	if err != nil {
		env.Log.Error("the dead letter of an unreadable subscription could not be written", "offset", rec.Offset, "error", err)
	}
}
