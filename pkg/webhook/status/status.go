// Package status knows how each delivery stands. It projects the topics of
// deliveries, of backfill and of attempts into Redis, and answers from there
// what the API and the console show: a subscription's deliveries, one delivery
// with its attempts, and figures of the last minutes, hour and day.
//
// # What is kept
//
// Redis holds nothing here that the log does not have. What a record says is
// merged into what is known: the earliest time of creation, the furthest state,
// and of two records of one attempt the same one in whatever order they come.
// Merging is commutative and idempotent, so records can come late, twice and in
// any order.
//
// The position of each partition is written in the same script as what was made
// of its records, so that the two cannot disagree. Before it writes, and once a
// second, the projection compares: if Redis is behind what was written to it, it
// was emptied, or restarted from an older state, and projecting begins again
// from the positions that it has; from the age that is kept, where it has none.
// That is all a rebuild is. An embedded Redis, which is empty at each start,
// needs nothing else.
//
// A record that can't be projected, because it can't be read or Redis can't merge
// it with what it has, becomes a dead letter and costs no other its status.
//
// # Memory
//
// A delivery that was delivered at its first attempt takes about 350 bytes of
// Redis (MEMORY USAGE: 200 for itself and 120 for its entry in the index of its
// subscription and state; and 24 for the entry of its expiry), each further
// attempt about 50, the answers to failed ones 120 and their length, of which
// 256 bytes each are kept. So
//
//	bytes = 350 × deliveries kept
//
// which is 2.1 GB for 10 deliveries a second and a week. Of each subscription and
// state PerSubscription are kept at most. The figures of a subscription take up to
// 200 bytes for each minute of the last day in which something was attempted.
package status

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// How a delivery stands: one of these, or webhook.Delivered, webhook.Dead or
// webhook.Discarded.
const (
	Waiting  = "waiting"  // for its first attempt
	Retrying = "retrying" // its last attempt failed, and another will be made
)

// Errors of questions, to be tested with errors.Is.
var (
	// ErrNotFound says that a delivery is not known: there is none, it is not
	// projected yet, or too old.
	ErrNotFound = errors.New("status: there is no such delivery")
	// ErrCursor says that a cursor is none that an earlier answer gave.
	ErrCursor = errors.New("status: the cursor is of no earlier answer")
	// ErrUnavailable says that Redis or Kafka could not be asked: try again.
	ErrUnavailable = errors.New("status: redis or kafka is unavailable")
)

// Config of a Projection. Kafka, Topics, Group and Redis are required.
type Config struct {
	// Kafka are the options of the connection.
	Kafka  []kgo.Opt
	Topics webhook.Topics
	// Group is the consumer group that shares out the partitions.
	Group string
	// Redis says how to reach the server, as redis.ParseURL returns it: one
	// primary, not a cluster.
	Redis *redis.Options
	// Prefix begins the name of every key. Default "st:".
	Prefix string
	// Retention is how long a delivery is shown after it was made. Default 7 days.
	Retention time.Duration
	// PerSubscription is how many deliveries of a subscription are shown of each
	// state: the latest. Default 100,000.
	PerSubscription int
	// Log defaults to slog.Default().
	Log *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() (Config, error) {
	if c.Prefix == "" {
		c.Prefix = "st:"
	}
	if c.Retention == 0 {
		c.Retention = 7 * 24 * time.Hour
	}
	if c.PerSubscription == 0 {
		c.PerSubscription = 100_000
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	switch {
	case len(c.Kafka) == 0 || c.Redis == nil || c.Group == "":
		return c, errors.New("status: Config needs Kafka, Redis and Group")
	case c.Retention < time.Minute || c.PerSubscription < 1:
		return c, fmt.Errorf("status: to keep %d deliveries for %v makes no sense", c.PerSubscription, c.Retention)
	}
	return c, nil
}

// Projection keeps Redis up to date and answers from it. Its questions may be
// asked from any goroutine, also while Run does not run here: another process
// may project the same topics.
type Projection struct {
	cfg     Config
	redis   *redis.Client
	kafka   *kgo.Client
	adm     *kadm.Client
	metrics *metrics
	poison  *watermillkgo.Publisher // of what can't be projected, to the dead letters
	trimmer *trimmer
	ends    ends
}

// New checks cfg, without dialling. The caller must Close the result.
func New(cfg Config) (*Projection, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(cfg.Kafka...)
	if err != nil {
		return nil, fmt.Errorf("status: connect to Kafka: %w", err)
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		client.Close()
		return nil, err
	}
	poison, err := newPoison(cfg)
	if err != nil {
		client.Close()
		return nil, err
	}
	opts := *cfg.Redis
	opts.MaxRetries = -1 // who projects tries again itself, and who asks is told
	opts.DialerRetries = 1
	setDefault(&opts.DialTimeout, time.Second)
	setDefault(&opts.ReadTimeout, 2*time.Second)
	setDefault(&opts.WriteTimeout, 2*time.Second)
	p := &Projection{
		cfg: cfg, redis: redis.NewClient(&opts), kafka: client, adm: kadm.NewClient(client), metrics: m, poison: poison,
		ends: ends{turn: make(chan struct{}, 1)},
	}
	p.trimmer = newTrimmer(p)
	return p, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Close disconnects, after Run has returned.
func (p *Projection) Close() error {
	p.kafka.Close()
	if err := errors.Join(p.poison.Close(), p.redis.Close()); err != nil {
		return fmt.Errorf("status: close: %w", err)
	}
	return nil
}

func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

// topics are those that are projected.
func (p *Projection) topics() []string {
	return []string{p.cfg.Topics.Deliveries(), p.cfg.Topics.Backfill(), p.cfg.Topics.Attempts()}
}
