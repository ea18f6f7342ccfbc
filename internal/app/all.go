package app

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
)

// EmbeddedConfig is what the three services need in one process.
type EmbeddedConfig struct {
	Kafka       kafka.Config
	RedisURL    string
	InstanceID  string // new at each start
	SealingKeys string
	UsersFile   string
	Listen      string
	Retries     Retries
	Sending     Sending
	// Origins are as in CORS_ORIGINS.
	Origins []string
}

// All is the three services in one process.
type All struct {
	Appointments *Appointments
	Router       *Router
	Sender       *Sender
}

// NewEmbedded sets the three up for an embedded broker and Redis that only they
// use. What the configuration leaves open has its default. Webhooks may be sent
// to this machine.
func NewEmbedded(c EmbeddedConfig) *All {
	instance := Instance{InstanceID: c.InstanceID}
	redis := Redis{URL: c.RedisURL}
	targets := Targets{AllowNetworks: []string{"127.0.0.0/8", "::1/128"}}
	return &All{
		Appointments: &Appointments{
			Kafka: c.Kafka, Redis: redis, Targets: targets, SealingKeys: c.SealingKeys, UsersFile: c.UsersFile,
			Listen: c.Listen, Origins: c.Origins, TransactionalID: c.InstanceID, HandoverWait: defaultHandover, sole: true,
			StatusRetention: defaultStatusLife, StatusPerSubscription: defaultStatusCount,
		},
		Router: &Router{Kafka: c.Kafka, Instance: instance, Ahead: defaultAhead, sole: true},
		Sender: &Sender{
			Kafka: c.Kafka, Redis: redis, Retries: c.Retries, Targets: targets, SealingKeys: c.SealingKeys, Sending: c.Sending, sole: true,
		},
	}
}

// Run runs the three until ctx ends.
func (a *All) Run(ctx context.Context, env *run.Env) error {
	// Before any of them can be ready: the process is only when all are.
	for _, service := range []string{"appointments", "router", "sender"} {
		env.Health.Add(service, func() error { return errors.New("starting") })
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Appointments.Run(ctx, labelled(env, "appointments")) })
	g.Go(func() error { return a.Router.Run(ctx, labelled(env, "router")) })
	g.Go(func() error { return a.Sender.Run(ctx, labelled(env, "sender")) })
	return g.Wait()
}
