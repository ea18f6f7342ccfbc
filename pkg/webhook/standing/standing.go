// Package standing holds what all senders know together of an endpoint: how much of its rate limit is used up, and
// since when nothing has succeeded.
//
// [Redis] is the store for production, [Memory] the one for tests; both pass the same tests. What Redis holds of it may
// be lost at any time: a rate limit then begins anew, with a full burst, and so does the time without a success.
package standing

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Config says where the standing lives.
type Config struct {
	// Redis says how to reach the server. Time-outs that are not set become short.
	Redis *redis.Options
	// Prefix begins the name of every key. Default "es:".
	Prefix string
	// Life is how long it is remembered since when an endpoint has failed, counted from its latest failure. It must
	// exceed the time after which an endpoint is given up. Default 30 days.
	Life time.Duration
}

// Redis keeps the standing in a Redis server. It is safe for concurrent use.
type Redis struct {
	cfg    Config
	client *redis.Client
	limits *redis_rate.Limiter
}

// New checks cfg, without dialling. The caller must Close the result.
func New(cfg Config) (*Redis, error) {
	if cfg.Redis == nil {
		return nil, errors.New("standing: Config.Redis is missing")
	}
	setDefault(&cfg.Prefix, "es:")
	setDefault(&cfg.Life, 30*24*time.Hour)
	opts := *cfg.Redis
	setDefault(&opts.DialTimeout, time.Second)
	setDefault(&opts.ReadTimeout, 2*time.Second)
	setDefault(&opts.WriteTimeout, 2*time.Second)
	client := redis.NewClient(&opts)
	return &Redis{cfg: cfg, client: client, limits: redis_rate.NewLimiter(client)}, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Close disconnects.
func (s *Redis) Close() error {
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("standing: close: %w", err)
	}
	return nil
}

// Take asks for n requests, but not more than a burst, of what a subscription's rate limit grants to all senders
// together. It returns how many may be made now: all or none, and then after which time to ask again. The limit is kept
// as the generic cell rate algorithm does (GCRA, of ATM networks), in one script.
func (s *Redis) Take(ctx context.Context, subscriptionID string, limit webhook.RateLimit, n int) (granted int, wait time.Duration, err error) {
	// Not AllowAtMost: that takes fractions of requests and grants none.
	result, err := s.limits.AllowN(ctx, s.cfg.Prefix+subscriptionID,
		redis_rate.Limit{Rate: limit.PerSecond, Period: time.Second, Burst: limit.Burst}, min(n, limit.Burst))
	if err != nil {
		return 0, 0, fmt.Errorf("standing: ask for requests of %s: %w", subscriptionID, err)
	}
	return result.Allowed, max(result.RetryAfter, 0), nil
}

func (s *Redis) failing(subscriptionID string) string { return s.cfg.Prefix + "f:" + subscriptionID }

// Failed tells that an attempt has failed at a time. It returns since when nothing has succeeded: that time, or an
// earlier one that it was told of.
func (s *Redis) Failed(ctx context.Context, subscriptionID string, at time.Time) (since time.Time, err error) {
	key := s.failing(subscriptionID)
	pipe := s.client.Pipeline()
	pipe.SetNX(ctx, key, at.UnixMilli(), s.cfg.Life)
	pipe.PExpire(ctx, key, s.cfg.Life)
	first := pipe.Get(ctx, key)
	if _, err := pipe.Exec(ctx); err != nil {
		return time.Time{}, fmt.Errorf("standing: note the failure of %s: %w", subscriptionID, err)
	}
	ms, err := strconv.ParseInt(first.Val(), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("standing: since when %s has failed: %w", subscriptionID, err)
	}
	return time.UnixMilli(ms), nil
}

// Succeeded tells that an attempt has succeeded.
func (s *Redis) Succeeded(ctx context.Context, subscriptionID string) error {
	if err := s.client.Del(ctx, s.failing(subscriptionID)).Err(); err != nil {
		return fmt.Errorf("standing: note the success of %s: %w", subscriptionID, err)
	}
	return nil
}
