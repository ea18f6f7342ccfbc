package dedupe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Config says where the marks live and for how long. Only Redis has no default.
type Config struct {
	// Redis says how to reach the server, as redis.ParseURL returns it: one primary, not a cluster. Retries are
	// switched off, and time-outs that are not set become short, so that callers hear of trouble soon.
	Redis *redis.Options
	// Prefix begins the name of every key. Default "wh:".
	Prefix string
	// Lease is how long a claim lasts unless it is settled or released. It must exceed the time-out of a POST and
	// leave time to record the outcome. Default 15 s.
	Lease time.Duration
	// MarkLife is how long a mark is kept after the delivery's latest attempt. It must exceed the time for which Kafka
	// can hand the delivery out again. Default 8 days.
	MarkLife time.Duration
	// Sole promises that no other process sends with these marks, nor did when they were lost: Restore then need not
	// wait until the claims that were lost with them have ended. For an embedded Redis that dies with its only process.
	Sole bool
	// MaxBatch is the most calls that share a round trip. Default 256.
	MaxBatch int
	// Logger hears of a restore's progress. Default slog.Default().
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Prefix == "" {
		c.Prefix = "wh:"
	}
	if c.Lease == 0 {
		c.Lease = defaultLease
	}
	if c.MarkLife == 0 {
		c.MarkLife = defaultMarkLife
	}
	if c.MaxBatch == 0 {
		c.MaxBatch = 256
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.Redis == nil:
		return c, errors.New("dedupe: Config.Redis is missing")
	case c.Lease < time.Millisecond || c.MarkLife < c.Lease:
		return c, fmt.Errorf("dedupe: a lease of %v and a mark life of %v make no sense", c.Lease, c.MarkLife)
	case c.MaxBatch < 1:
		return c, fmt.Errorf("dedupe: a batch of %d calls makes no sense", c.MaxBatch)
	}
	return c, nil
}

// Redis keeps marks and claims in a Redis server. It is safe for concurrent use; calls made at the same time share
// round trips. Create it with New, then Open it, and Restore it when that says ErrLost.
type Redis struct {
	cfg     Config
	client  *redis.Client
	keys    keys
	queue   *queue
	workers sync.WaitGroup

	// epoch is the epoch this process trusts, nil while it trusts none.
	epoch atomic.Pointer[string]

	process string // begins every token of this Redis; a number ends it
	tokens  atomic.Uint64

	pause func(context.Context, time.Duration) error // tests do not wait for leases
}

// roundTrips is how many batches are on their way at once: while the server works on one, the next is being read or
// written. More would only make batches smaller.
const roundTrips = 2

// New checks cfg and starts the goroutines that carry batches, without dialling. The caller must Close the result.
func New(cfg Config) (*Redis, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	opts := *cfg.Redis
	// A retried batch would meet its own claims and take them for somebody else's.
	opts.MaxRetries = -1
	opts.DialerRetries = 1
	setDefault(&opts.DialTimeout, time.Second)
	setDefault(&opts.ReadTimeout, 2*time.Second)
	setDefault(&opts.WriteTimeout, 2*time.Second)

	s := &Redis{
		cfg:     cfg,
		client:  redis.NewClient(&opts),
		keys:    keys{prefix: cfg.Prefix},
		queue:   newQueue(cfg.MaxBatch),
		process: rand.Text()[:13] + "-",
		pause:   pause,
	}
	for range roundTrips {
		s.workers.Go(s.work)
	}
	return s, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Close answers waiting calls with ErrClosed, lets the round trips under way finish, and disconnects.
func (s *Redis) Close() error {
	answerAll(s.queue.close(), ErrClosed)
	s.workers.Wait()
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("dedupe: close: %w", err)
	}
	return nil
}

// Claim asks for attempt (1, 2, 3 …) of the delivery id; the sender calls it right before it POSTs. Errors: ErrLost,
// ErrUnavailable, ErrClosed, or that of ctx. A claim that comes in after ctx has ended is given back.
func (s *Redis) Claim(ctx context.Context, id string, attempt int) (Claim, error) {
	if s.epoch.Load() == nil {
		return Claim{}, ErrLost // without a claim that would have to be given back
	}
	return s.ask(ctx, &request{op: opClaim, id: id, attempt: attempt, token: s.newToken()})
}

// Settlement is how an attempt ended: Delivered, Failed, Dead or Discarded. Token is that of its claim, or "" for an
// attempt that ended without one.
type Settlement struct {
	ID      string
	Attempt int
	Token   string
	Outcome string
}

// SettleAll writes down how attempts ended, in few round trips. The sender calls it after Kafka has acknowledged the
// attempts' records. It may be repeated, and must be after an error, when some may be settled; also after ErrLost once
// the marks are restored. Errors are those of Claim.
func (s *Redis) SettleAll(ctx context.Context, all []Settlement) error {
	if len(all) == 0 {
		return nil
	}
	together, requests := make([]request, len(all)), make([]*request, len(all))
	for i, one := range all {
		o, err := parseOutcome(one.Outcome)
		if err == nil {
			err = check(ctx, one.ID, one.Attempt)
		}
		if err != nil {
			return err
		}
		requests[i] = &together[i]
		*requests[i] = request{op: opSettle, id: one.ID, attempt: one.Attempt, token: one.Token, outcome: o}
	}
	s.call(ctx, requests)
	var failed error
	for _, r := range requests {
		if r.err != nil {
			failed = r.err
		}
	}
	return failed
}

// Release gives back the claim of an attempt that was not made, so that nobody waits for its lease. It does nothing
// when the claim is no longer the token's. An error can be ignored: the claim ends with its lease.
func (s *Redis) Release(ctx context.Context, id string, attempt int, token string) error {
	_, err := s.ask(ctx, &request{op: opRelease, id: id, attempt: attempt, token: token})
	return err
}

// ask makes a call of one request.
func (s *Redis) ask(ctx context.Context, r *request) (Claim, error) {
	if err := check(ctx, r.id, r.attempt); err != nil {
		return Claim{}, err
	}
	s.call(ctx, []*request{r})
	return r.claim, r.err
}

// call queues requests for the next batches and waits until all have their answers. At the end of ctx that is its error.
func (s *Redis) call(ctx context.Context, requests []*request) {
	c := &call{done: make(chan struct{})}
	c.open.Store(int32(len(requests)))
	for _, r := range requests {
		r.call, r.markKey, r.claimKey = c, s.keys.mark(r.id), s.keys.claim(r.id, r.attempt)
	}
	if !s.queue.put(requests...) {
		answerAll(requests, ErrClosed)
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		answerAll(requests, ctx.Err())
		<-c.done // some may just be given theirs
	}
}

func answerAll(requests []*request, err error) {
	for _, r := range requests {
		r.answer(Claim{}, err)
	}
}

// newToken returns what no other claim or lock was ever taken with.
func (s *Redis) newToken() string { return s.process + strconv.FormatUint(s.tokens.Add(1), 36) }

// Open looks whether the marks in Redis are complete and trusts them if so. The caller does so at its start.
// Errors: ErrLost (call Restore), ErrUnavailable, ErrClosed, or that of ctx.
func (s *Redis) Open(ctx context.Context) error {
	epoch, run, err := s.look(ctx)
	if err != nil {
		return err
	}
	if epoch == "" || runOf(epoch) != run {
		return ErrLost
	}
	s.epoch.Store(&epoch)
	return nil
}

// look reads the epoch, "" if there is none, and the run_id of the server, "" if it reports none.
func (s *Redis) look(ctx context.Context) (epoch, run string, err error) {
	pipe := s.client.Pipeline()
	get, info := pipe.Get(ctx, s.keys.epoch()), pipe.Info(ctx, "server")
	_, _ = pipe.Exec(ctx) // each command keeps its own error
	if get.Err() != nil && !errors.Is(get.Err(), redis.Nil) {
		return "", "", unavailable(get.Err())
	}
	run, err = runID(info)
	return get.Val(), run, err
}

// An epoch is the run_id of the server in which the marks are complete, a colon, and something random.
func newEpoch(run string) string { return run + ":" + rand.Text() }

func runOf(epoch string) string {
	run, _, _ := strings.Cut(epoch, ":")
	return run
}

// runID takes the run_id out of the answer to INFO server. A server that refuses INFO counts as one without run_id.
func runID(info *redis.StringCmd) (string, error) {
	if err := info.Err(); err != nil {
		if refused(err) {
			return "", nil
		}
		return "", unavailable(err)
	}
	for line := range strings.Lines(info.Val()) {
		if id, ok := strings.CutPrefix(line, "run_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", nil
}

// Check makes sure that Redis refuses writes when its memory is full rather than forget deliveries. The caller does
// so at its start. Where the server does not tell its policy it logs a warning and returns nil.
func (s *Redis) Check(ctx context.Context) error {
	const setting = "maxmemory-policy"
	config, err := s.client.ConfigGet(ctx, setting).Result()
	if err != nil && !refused(err) {
		return unavailable(err)
	}
	policy := config[setting]
	if policy == "" {
		// Managed servers forbid CONFIG, and some tell the policy elsewhere.
		info, err := s.client.Info(ctx, "memory").Result()
		if err != nil && !refused(err) {
			return unavailable(err)
		}
		for line := range strings.Lines(info) {
			if value, ok := strings.CutPrefix(line, "maxmemory_policy:"); ok {
				policy = strings.TrimSpace(value)
			}
		}
	}
	switch policy {
	case "noeviction":
		return nil
	case "":
		s.cfg.Logger.WarnContext(ctx, "redis does not tell its maxmemory-policy; make sure that it is noeviction")
		return nil
	default:
		return fmt.Errorf("dedupe: redis would forget deliveries when its memory is full, because its maxmemory-policy is %q: "+
			"set it to noeviction (in redis.conf, with CONFIG SET maxmemory-policy noeviction, or in your provider's settings)", policy)
	}
}

// unavailable says whose fault an error of the client is.
func unavailable(err error) error {
	switch {
	case errors.Is(err, redis.ErrClosed):
		return ErrClosed
	case errors.Is(err, context.Canceled):
		return err // only callers cancel; the client's own time-outs are deadlines
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// refused tells an error that the server answered from one of the connection.
func refused(err error) bool {
	var answer redis.Error
	return errors.As(err, &answer)
}

// keys names the keys, shortly, for the server keeps millions.
type keys struct{ prefix string }

func (k keys) epoch() string         { return k.prefix + "epoch" }
func (k keys) lock() string          { return k.prefix + "restore" }
func (k keys) mark(id string) string { return k.prefix + "m:" + id }

// A claim's key contains the attempt: once that is settled nobody looks at the key again, which is why claims of
// settled attempts can be deleted without asking whose they are.
func (k keys) claim(id string, attempt int) string {
	return k.prefix + "c:" + strconv.Itoa(attempt) + ":" + id
}
