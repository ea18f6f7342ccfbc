// Package app puts the three services together from their parts. Each is a
// run.Program: its fields are its settings, Run is the service.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Names of the consumer groups, after the prefix.
const (
	groupAppointments  = "appointments"
	groupSubscriptions = "subscriptions"
	groupDisabling     = "disabling"
	groupRouter        = "webhook-router"
	groupReplayer      = "webhook-replayer"
	groupSender        = "webhook-sender"
	groupStatus        = "status"
)

// Groups returns the consumer groups of the deployment with that prefix that
// commit how far they have read, in the order of an event's route. The others
// only share out partitions.
func Groups(prefix string) []string {
	groups := []string{groupRouter, groupSender, groupStatus, groupDisabling}
	for i, group := range groups {
		groups[i] = prefix + group
	}
	return groups
}

// Instance tells processes of one service apart.
type Instance struct {
	InstanceID string `name:"instance-id" env:"INSTANCE_ID" placeholder:"NAME" help:"This process among those of its service: its own, and the same after a restart. If it is set, a process that dies and is started again within 6s has its share again at once; else the others take that over after this time. A router is by default called as its host, but for that."`
}

// member is the process's name in consumer groups, if it was given one: that of
// its host could be shared.
func (i Instance) member() string { return member.Name(i.InstanceID) }

func (i Instance) id() (string, error) {
	if i.InstanceID != "" {
		return i.InstanceID, nil
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "", errors.New("INSTANCE_ID is not set and the host has no name: set INSTANCE_ID")
	}
	return name, nil
}

// Redis is how to reach Redis.
type Redis struct {
	URL string `name:"redis-url" env:"REDIS_URL" placeholder:"redis://HOST:PORT" help:"Redis, as redis://[user:password@]host:port[/db] or rediss:// for TLS."`
}

func (r Redis) options() (*redis.Options, error) {
	logRedis()
	if r.URL == "" {
		return nil, errors.New("REDIS_URL is not set: name a Redis, as in REDIS_URL=redis://localhost:6379")
	}
	opts, err := redis.ParseURL(r.URL)
	if err != nil {
		// Its errors may repeat the URL, and so a password.
		return nil, errors.New("REDIS_URL is not of the form redis://[user:password@]host:port[/db]")
	}
	return opts, nil
}

// redisLog takes what the Redis client says of itself. Each call that fails is
// reported by who made it; this is of interest to who looks for a fault.
type redisLog struct{}

// Printf implements the client's logger.
func (redisLog) Printf(ctx context.Context, format string, v ...any) {
	slog.DebugContext(ctx, fmt.Sprintf(format, v...), "component", "redis")
}

// logRedis is called before any client is made, for the logger is the package's.
var logRedis = sync.OnceFunc(func() { redis.SetLogger(redisLog{}) })

// Targets says where webhooks may be sent to.
type Targets struct {
	AllowNetworks []string `name:"allow-networks" env:"ALLOW_NETWORKS" placeholder:"CIDR" help:"Private or local networks that webhooks may be sent to, such as 10.1.0.0/16; by default none."`
}

func (t Targets) networks() ([]netip.Prefix, error) {
	return networks("ALLOW_NETWORKS", t.AllowNetworks)
}

// networks reads those of a setting.
func networks(setting string, texts []string) ([]netip.Prefix, error) {
	var found []netip.Prefix
	for _, text := range texts {
		n, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a network such as 10.1.0.0/16", setting, text)
		}
		found = append(found, n)
	}
	return found, nil
}

// sealingKeys reads SEALING_KEYS.
func sealingKeys(text string) (*seal.Keyring, error) {
	if text == "" {
		return nil, errors.New("SEALING_KEYS is not set: make a key with webhooks keys new, and give the same to appointments and webhook-sender")
	}
	keys, err := seal.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("SEALING_KEYS: %w", err)
	}
	return keys, nil
}

// Retries is the schedule of retries.
type Retries struct {
	Schedule string `name:"retry-schedule" env:"RETRY_SCHEDULE" default:"1s,2s,4s,8s,16s" help:"Delays after each failed attempt; each has a topic of its own."`
}

// Parse reads the schedule, or says what is wrong with it.
func (r Retries) Parse() (webhook.Schedule, error) {
	s, err := webhook.ParseSchedule(r.Schedule)
	if err != nil {
		return nil, fmt.Errorf("RETRY_SCHEDULE: %w", err)
	}
	return s, nil
}

// invalid marks errors of settings, all that there are: who has set none learns
// of all at once.
func invalid(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return &run.UsageError{Err: err}
	}
	return nil
}

// waitForTopics waits until Kafka is up and has the topics, and refuses those
// whose policy would lose data.
func waitForTopics(ctx context.Context, env *run.Env, opts []kgo.Opt, names webhook.Topics, schedule webhook.Schedule) error {
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("connect to Kafka: %w", err)
	}
	defer client.Close()
	return kafka.WaitFor(ctx, client, env.Log, kafka.DefaultTopicSettings().Topics(names, schedule))
}

// quiet turns the error of a start that was interrupted into none.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// labelled keeps the metrics of services in one process apart.
func labelled(env *run.Env, service string) *run.Env {
	e := *env
	e.Log = env.Log.With("service", service)
	e.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"service": service}, env.Metrics)
	return &e
}
