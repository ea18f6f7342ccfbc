package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/api"
	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/console"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// Appointments is the appointment service.
type Appointments struct {
	run.Settings    `embed:""`
	Kafka           kafka.Config  `embed:""`
	Redis           Redis         `embed:""`
	Targets         Targets       `embed:""`
	SealingKeys     string        `name:"sealing-keys" env:"SEALING_KEYS" placeholder:"NAME:KEY" help:"Keys that subscriptions' secrets are sealed with; better set in the environment than on the command line. Make one with: webhooks keys new."`
	UsersFile       string        `name:"users-file" env:"USERS_FILE" type:"path" placeholder:"FILE" help:"JSON file of the users who may sign in; hash passwords with: webhooks users hash."`
	Listen          string        `name:"listen" env:"LISTEN" default:":5000" help:"Address of the API."`
	AdvertiseURL    string        `name:"advertise-url" env:"ADVERTISE_URL" placeholder:"URL" help:"Where the other instances reach this one's API. Default: the host's name and the port of LISTEN."`
	Origins         []string      `name:"cors-origins" env:"CORS_ORIGINS" placeholder:"ORIGIN" help:"Origins of web pages that may use the API with cookies, such as https://app.example.org; by default none."`
	Proxies         []string      `name:"trusted-proxies" env:"TRUSTED_PROXIES" placeholder:"CIDR" help:"Networks of the proxies before the API, whose X-Forwarded-For says where a sign-in comes from; by default none."`
	TransactionalID string        `name:"transactional-id" env:"TRANSACTIONAL_ID" default:"appointments" help:"What the transactional ids of the log's writers begin with. The same for all instances: it keeps two from writing one calendar."`
	HandoverWait    time.Duration `name:"handover-wait" env:"HANDOVER_WAIT" default:"5s" help:"How long a command waits while its calendar changes hands, before it is answered with 503."`

	StatusRetention       time.Duration `name:"status-retention" env:"STATUS_RETENTION" default:"168h" help:"How long the status of a delivery is shown. The topics of deliveries and attempts must keep as much: see DELIVERY_RETENTION of webhooks topics apply."`
	StatusPerSubscription int           `name:"status-per-subscription" env:"STATUS_PER_SUBSCRIPTION" default:"100000" help:"How many deliveries of a subscription are shown at most of each status: the latest. Redis takes about 350 bytes for each, and 50 for each attempt but the first."`

	// Listener, if set, is served instead of Listen.
	Listener net.Listener `kong:"-"`

	sole bool // no other process, also none of an earlier start, is a member of its groups
}

// maxHandover leaves a command that is forwarded, and waits at both ends, time to
// be answered before the server cuts it off, see run.ListenAndServe.
const maxHandover = 20 * time.Second

// Common implements run.Program.
func (a *Appointments) Common() *run.Settings { return &a.Settings }

func (a *Appointments) validate() error {
	switch {
	case a.HandoverWait <= 0 || a.HandoverWait > maxHandover:
		return fmt.Errorf("HANDOVER_WAIT must be more than 0s and at most %v", maxHandover)
	case a.TransactionalID == "":
		return errors.New("TRANSACTIONAL_ID must not be empty")
	case a.StatusRetention < time.Hour:
		return errors.New("STATUS_RETENTION must be at least 1h")
	case a.StatusPerSubscription < 1:
		return errors.New("STATUS_PER_SUBSCRIPTION must be at least 1")
	}
	return nil
}

// users reads USERS_FILE.
func (a *Appointments) users() (*session.Users, error) {
	if a.UsersFile == "" {
		return nil, errors.New("USERS_FILE is not set: name a JSON file of users, see the README")
	}
	users, err := session.LoadUsers(a.UsersFile)
	if err != nil {
		return nil, fmt.Errorf("USERS_FILE: %w", err)
	}
	return users, nil
}

// advertise returns where other instances reach this one.
func (a *Appointments) advertise(l net.Listener) (string, error) {
	if a.AdvertiseURL != "" {
		u, err := url.Parse(a.AdvertiseURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return "", errors.New("ADVERTISE_URL must be of the form http://HOST:PORT")
		}
		return strings.TrimSuffix(a.AdvertiseURL, "/"), nil
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return "", errors.New("ADVERTISE_URL is not set and LISTEN is not a TCP address")
	}
	if !addr.IP.IsUnspecified() {
		return "http://" + addr.String(), nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", errors.New("ADVERTISE_URL is not set and the host has no name: set ADVERTISE_URL")
	}
	return fmt.Sprintf("http://%s", net.JoinHostPort(host, fmt.Sprint(addr.Port))), nil
}

// Run implements run.Program.
func (a *Appointments) Run(ctx context.Context, env *run.Env) error {
	redisOpts, redisErr := a.Redis.options()
	allowed, networksErr := a.Targets.networks()
	proxies, proxiesErr := networks("TRUSTED_PROXIES", a.Proxies)
	opts, optErr := a.Kafka.Options(env.Log)
	keys, keysErr := sealingKeys(a.SealingKeys)
	users, usersErr := a.users()
	if err := invalid(a.Kafka.Check(), redisErr, keysErr, usersErr, a.validate(), networksErr, proxiesErr, optErr); err != nil {
		return err
	}
	targets, err := endpoint.New(endpoint.Config{AllowNetworks: allowed})
	if err != nil {
		return invalid(err)
	}
	defer targets.Close()
	sessions, err := session.NewStore(session.StoreConfig{Redis: redisOpts, Prefix: a.Kafka.TopicPrefix + "session:"})
	if err != nil {
		return invalid(err)
	}
	defer func() { _ = sessions.Close() }() // only reads the last answers
	l := a.Listener
	if l == nil {
		if l, err = net.Listen("tcp", a.Listen); err != nil {
			return invalid(run.PortError(err, a.Listen, "--listen"))
		}
	}
	own, err := a.advertise(l)
	if err != nil {
		return errors.Join(invalid(err), l.Close())
	}

	// The port is served from the start, with 503 until the log is folded. When
	// ctx ends, requests in flight are answered before the services stop.
	handler := &gate{}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(serving)
	g.Go(func() error {
		defer stop()
		until, cancel := mergeDone(ctx, gctx)
		defer cancel()
		return run.ListenAndServe(until, l, handler, env.Log)
	})
	g.Go(func() error {
		parts := parts{
			opts: opts, redis: redisOpts, keys: keys, users: users, sessions: sessions, targets: targets, proxies: proxies, own: own, ready: handler,
		}
		return quiet(ctx, a.serve(gctx, ctx, env, parts))
	})
	return g.Wait()
}

// mergeDone returns a context that ends with either.
func mergeDone(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(a)
	release := context.AfterFunc(b, cancel)
	return ctx, func() { release(); cancel() }
}

// parts is what serve stands on.
type parts struct {
	opts     []kgo.Opt
	redis    *redis.Options
	keys     *seal.Keyring
	users    *session.Users
	sessions *session.Store
	targets  *endpoint.Client
	proxies  []netip.Prefix
	own      string
	ready    *gate
}

// serve runs the services until ctx ends; waiting for them to come up is given
// up when starting ends.
func (a *Appointments) serve(ctx, starting context.Context, env *run.Env, p parts) error {
	topics, prefix := a.Kafka.Topics(), a.Kafka.TopicPrefix
	env.Health.Add("appointments", func() error { return errors.New("waiting for Kafka and its topics") })
	if err := waitForTopics(starting, env, p.opts, topics, nil); err != nil {
		return err
	}
	name := member.Name(p.own)
	if a.sole {
		name = ""
	}
	client, err := kgo.NewClient(p.opts...)
	if err != nil {
		return fmt.Errorf("connect to Kafka: %w", err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	partitions, err := partitionsOf(starting, adm, topics.Events())
	if err != nil {
		return err
	}
	appointments, err := appointment.New(appointment.Config{
		Kafka: p.opts, Topic: topics.Events(), Group: prefix + groupAppointments,
		TransactionalID: prefix + a.TransactionalID, Advertise: p.own, Member: name, Log: env.Log,
	}, partitions)
	if err != nil {
		return err
	}
	reg, err := registry.New(registry.Config{Kafka: p.opts, Topic: topics.Subscriptions(), Log: env.Log, Metrics: env.Metrics})
	if err != nil {
		return err
	}
	subscriptions, err := subscription.New(subscription.Config{
		Kafka: p.opts, Topic: topics.Subscriptions(), Group: prefix + groupSubscriptions,
		TransactionalID: prefix + a.TransactionalID, Advertise: p.own, Member: name,
		Attempts: topics.Attempts(), DisablingGroup: prefix + groupDisabling,
		Ends: appointments.Ends,
		Routed: func(ctx context.Context) ([]int64, error) {
			return routed(ctx, adm, prefix+groupRouter, topics.Events(), partitions)
		},
		CheckURL: p.targets.CheckURL, Seal: p.keys.Seal, Log: env.Log,
	}, reg)
	if err != nil {
		return err
	}
	replays, err := replay.NewTable(replay.TableConfig{Kafka: p.opts, Topic: topics.Replays(), Log: env.Log})
	if err != nil {
		return err
	}
	deliveries, err := status.New(status.Config{
		Kafka: p.opts, Topics: topics, Group: prefix + groupStatus, Redis: p.redis, Prefix: prefix + "st:",
		Retention: a.StatusRetention, PerSubscription: a.StatusPerSubscription, Log: env.Log, Metrics: env.Metrics,
	})
	if err != nil {
		return err
	}
	defer func() { _ = deliveries.Close() }() // only reads the last answers
	again, err := redelivery.New(redelivery.Config{Kafka: p.opts, Topics: topics, Replays: replays, Subscriptions: reg, Deliveries: deliveries})
	if err != nil {
		return err
	}
	defer again.Close()
	handler, err := api.New(api.Config{
		Appointments: appointments, Subscriptions: subscriptions, Redelivery: again, Deliveries: deliveries, Users: p.users, Sessions: p.sessions, Peers: p.keys,
		Origins: a.Origins, Proxies: p.proxies, HandoverWait: a.HandoverWait, Log: env.Log, Metrics: env.Metrics,
	})
	if err != nil {
		return invalid(fmt.Errorf("CORS_ORIGINS: %w", err))
	}
	page, err := console.Handler(handler)
	if err != nil {
		return err
	}
	env.Health.Add("appointments", p.ready.check)

	// The tables are followed until the last command has been answered.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return reg.Run(following) })
	g.Go(func() error { return replays.Run(following) })
	g.Go(func() error { return appointments.Run(gctx) })
	g.Go(func() error { return deliveries.Run(gctx) })
	g.Go(func() error { defer stop(); return subscriptions.Run(gctx) })
	g.Go(func() error {
		for _, restored := range []<-chan struct{}{appointments.Restored(), reg.Restored(), replays.Restored()} {
			select {
			case <-restored:
			case <-gctx.Done():
				return nil
			}
		}
		p.ready.open(page)
		env.Log.Info("API is served", "url", p.own)
		return nil
	})
	return g.Wait()
}

// partitionsOf returns how many partitions a topic has.
func partitionsOf(ctx context.Context, adm *kadm.Client, topic string) (int, error) {
	topics, err := adm.ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("look at topic %s: %w", topic, err)
	}
	return len(topics[topic].Partitions), nil
}

// routed returns, by partition of the log, the first offset that the routers
// have not committed.
func routed(ctx context.Context, adm *kadm.Client, group, topic string, partitions int) ([]int64, error) {
	committed, err := adm.FetchOffsets(ctx, group)
	if err == nil {
		err = committed.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // nothing is routed yet
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	passed := make([]int64, partitions)
	for p := range passed {
		if o, ok := committed.Lookup(topic, int32(p)); ok {
			passed[p] = max(o.At, 0)
		}
	}
	return passed, nil
}

// gate answers 503 until it is opened with the handler that then answers.
type gate struct{ handler atomic.Pointer[http.Handler] }

func (g *gate) open(h http.Handler) { g.handler.Store(&h) }

// check is the gate's part in the process's readiness.
func (g *gate) check() error {
	if g.handler.Load() == nil {
		return errors.New("restoring appointments and subscriptions from their logs")
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := g.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(`{"error":"The service is starting: try again in a moment","code":"starting"}` + "\n"))
}
