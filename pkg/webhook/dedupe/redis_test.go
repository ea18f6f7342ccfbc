package dedupe_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe/dedupetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newStore makes a store that is not open yet. Whoever is the only sender need not wait for leases.
func newStore(t testing.TB, opts *redis.Options, change ...func(*dedupe.Config)) *dedupe.Redis {
	t.Helper()
	cfg := dedupe.Config{
		Redis:  opts,
		Lease:  dedupetest.Lease,
		Sole:   true,
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := dedupe.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openStore makes a store that is open, with marks restored from nothing.
func openStore(t testing.TB, opts *redis.Options, change ...func(*dedupe.Config)) *dedupe.Redis {
	t.Helper()
	s := newStore(t, opts, change...)
	if err := s.Restore(t.Context(), nothing); err != nil {
		t.Fatal(err)
	}
	return s
}

func nothing(context.Context, func(string, int, string) error) error { return nil }

func options(m *miniredis.Miniredis) *redis.Options { return &redis.Options{Addr: m.Addr()} }

func TestMiniredis(t *testing.T) {
	dedupetest.Run(t, func(t *testing.T) dedupetest.Subject {
		m := miniredis.RunT(t)
		return dedupetest.Subject{
			Store:     openStore(t, options(m)),
			EndLeases: func() { m.FastForward(dedupetest.Lease) },
			Lose:      m.FlushAll,
		}
	})
}

// TestRedis runs the suite on the server named by REDIS_URL. It touches only keys with a prefix of its own.
func TestRedis(t *testing.T) {
	dedupetest.Run(t, func(t *testing.T) dedupetest.Subject {
		opts, prefix := sharedRedis(t)
		client := redis.NewClient(opts)
		deleteAll := func(pattern string) {
			ctx := context.Background()
			keys, err := scan(ctx, client, prefix+pattern)
			if err == nil && len(keys) > 0 {
				err = client.Del(ctx, keys...).Err()
			}
			if err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(func() {
			deleteAll("*")
			_ = client.Close()
		})
		return dedupetest.Subject{
			Store:     openStore(t, opts, func(c *dedupe.Config) { c.Prefix = prefix }),
			EndLeases: func() { deleteAll("c:*") },
			Lose:      func() { deleteAll("epoch") },
		}
	})
}

// sharedRedis returns how to reach the server named by REDIS_URL, and a prefix for the test's own keys.
func sharedRedis(t testing.TB) (opts *redis.Options, prefix string) {
	t.Helper()
	url := os.Getenv("REDIS_URL")
	if url == "" {
		t.Skip("REDIS_URL is not set")
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return opts, "wh-test-" + uuid.NewString() + ":"
}

func scan(ctx context.Context, client *redis.Client, pattern string) (keys []string, err error) {
	all := client.Scan(ctx, 0, pattern, 1000).Iterator()
	for all.Next(ctx) {
		keys = append(keys, all.Val())
	}
	return keys, all.Err()
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]dedupe.Config{
		"no redis":       {},
		"negative lease": {Redis: &redis.Options{}, Lease: -1},
		"short life":     {Redis: &redis.Options{}, MarkLife: time.Second},
		"empty batches":  {Redis: &redis.Options{}, MaxBatch: -1},
	} {
		if _, err := dedupe.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDeadlineIsCountedFromBeforeTheRequest(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, options(m))
	var asked time.Time
	m.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
		if cmd == "SET" {
			asked = time.Now()
		}
		return false
	})
	before := time.Now()
	c, err := s.Claim(t.Context(), "a", 1)
	if err != nil {
		t.Fatal(err)
	}
	if c.Deadline.Before(before.Add(dedupetest.Lease)) || c.Deadline.After(asked.Add(dedupetest.Lease)) {
		t.Errorf("deadline %v is not a lease after a moment between %v and %v", c.Deadline, before, asked)
	}
	if ttl := m.TTL("wh:c:1:a"); ttl != dedupetest.Lease {
		t.Errorf("the server lets the claim live %v", ttl)
	}
}

func TestLifeOfAMark(t *testing.T) {
	const life = time.Hour
	m := miniredis.RunT(t)
	s := openStore(t, options(m), func(c *dedupe.Config) { c.MarkLife = life })
	for _, attempt := range []int{1, 1, 2} { // a new mark, one settled twice, one that grows
		if err := s.SettleAll(t.Context(), dedupetest.One("a", attempt, "", dedupe.Failed)); err != nil {
			t.Fatal(err)
		}
		if ttl := m.TTL("wh:m:a"); ttl != life {
			t.Errorf("after attempt %d the mark lives %v, want %v", attempt, ttl, life)
		}
		m.FastForward(life / 2)
	}
	m.FastForward(life / 2)
	if keys := m.Keys(); !slices.Equal(keys, []string{"wh:epoch"}) {
		t.Errorf("in the end there are keys %v", keys)
	}
}

// Refused claims must not stand in the way of others.
func TestRefusedClaimsLeaveNothing(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, options(m))
	if err := s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Failed)); err != nil {
		t.Fatal(err)
	}
	for _, attempt := range []int{1, 3} { // settled, early
		if _, err := s.Claim(t.Context(), "a", attempt); err != nil {
			t.Fatal(err)
		}
	}
	m.Del("wh:epoch")
	if _, err := s.Claim(t.Context(), "a", 2); !errors.Is(err, dedupe.ErrLost) {
		t.Fatalf("got %v, want ErrLost", err)
	}
	if keys := m.Keys(); !slices.Equal(keys, []string{"wh:m:a"}) {
		t.Errorf("there are keys %v, want only the mark", keys)
	}
}

// Two processes share a server; one of them restores it. The other must not trust its own, older epoch.
func TestEpochOfAnother(t *testing.T) {
	m := miniredis.RunT(t)
	ours, theirs := openStore(t, options(m)), openStore(t, options(m))
	m.FlushAll()
	if _, err := theirs.Claim(t.Context(), "a", 1); !errors.Is(err, dedupe.ErrLost) {
		t.Fatalf("got %v, want ErrLost", err)
	}
	if err := theirs.Restore(t.Context(), nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Claim(t.Context(), "a", 1); !errors.Is(err, dedupe.ErrLost) {
		t.Errorf("got %v, want ErrLost", err)
	}
	if err := ours.Open(t.Context()); err != nil {
		t.Errorf("the other's epoch was not adopted: %v", err)
	}
	if c, err := ours.Claim(t.Context(), "a", 1); err != nil || c.Verdict != dedupe.Granted {
		t.Errorf("got %+v, %v; want the claim granted", c, err)
	}
}

// A flush between the commands of one round trip is the narrowest moment there is.
func TestFlushInTheMiddleOfARoundTrip(t *testing.T) {
	for _, command := range []string{"SET", "MGET"} {
		m := miniredis.RunT(t)
		s := openStore(t, options(m))
		if err := s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered)); err != nil {
			t.Fatal(err)
		}
		m.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == command {
				m.FlushAll()
			}
			return false
		})
		if c, err := s.Claim(t.Context(), "a", 1); !errors.Is(err, dedupe.ErrLost) {
			t.Errorf("flushed before %s: got %+v, %v; want ErrLost", command, c, err)
		}
	}
}

// reportRun makes m answer INFO server as a real server does.
func reportRun(m *miniredis.Miniredis, run *atomic.Pointer[string]) {
	m.Server().SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		if cmd != "INFO" || !slices.Equal(args, []string{"server"}) {
			return false
		}
		c.WriteBulk("# Server\r\nredis_version:7.0.0\r\nrun_id:" + *run.Load() + "\r\ntcp_port:6379\r\n")
		return true
	})
}

// A server that restarts from an old snapshot still has the epoch key, but not the latest marks.
func TestRestartFromSnapshot(t *testing.T) {
	m := miniredis.RunT(t)
	var run atomic.Pointer[string]
	setRun := func(id string) { run.Store(&id) }
	setRun("one")
	reportRun(m, &run)
	s := openStore(t, options(m))
	if _, err := s.Claim(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	setRun("two")
	if err := s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered)); !errors.Is(err, dedupe.ErrLost) {
		t.Errorf("settle after the restart: got %v, want ErrLost", err)
	}
	if err := s.Open(t.Context()); !errors.Is(err, dedupe.ErrLost) {
		t.Errorf("open after the restart: got %v, want ErrLost", err)
	}
	if _, err := s.Claim(t.Context(), "b", 1); !errors.Is(err, dedupe.ErrLost) {
		t.Errorf("claim after the restart: got %v, want ErrLost", err)
	}
	if err := s.Restore(t.Context(), nothing); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Claim(t.Context(), "b", 1); err != nil || c.Verdict != dedupe.Granted {
		t.Errorf("got %+v, %v; want the claim granted", c, err)
	}
	// And again while a restore is under way: its epoch would be that of the run before.
	setRun("three")
	loads := 0
	if err := s.Restore(t.Context(), func(context.Context, func(string, int, string) error) error {
		if loads++; loads == 1 {
			setRun("four")
		}
		return nil
	}); err != nil || loads != 2 {
		t.Errorf("restore: %v after %d loads, want 2", err, loads)
	}
}

func TestUnreachable(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, options(m))
	m.Close()
	_, claim := s.Claim(t.Context(), "a", 1)
	for name, err := range map[string]error{
		"claim":   claim,
		"settle":  s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered)),
		"release": s.Release(t.Context(), "a", 1, "token"),
		"open":    s.Open(t.Context()),
		"restore": s.Restore(t.Context(), nothing),
		"check":   s.Check(t.Context()),
	} {
		if !errors.Is(err, dedupe.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
	if err := m.Restart(); err != nil { // with its data
		t.Fatal(err)
	}
	if c, err := s.Claim(t.Context(), "a", 1); err != nil || c.Verdict != dedupe.Granted {
		t.Errorf("after the restart: got %+v, %v; want the claim granted", c, err)
	}
}

// A server that refuses writes must grant nothing.
func TestRefusedWrites(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, options(m))
	m.Server().SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		if (cmd == "SET" || cmd == "SETBIT") && strings.HasSuffix(args[0], "refused") {
			c.WriteError("OOM command not allowed when used memory > 'maxmemory'.")
			return true
		}
		return false
	})
	c, err := s.Claim(t.Context(), "refused", 1)
	if !errors.Is(err, dedupe.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") || c != (dedupe.Claim{}) {
		t.Errorf("claim: got %+v, %v; want ErrUnavailable that names the cause", c, err)
	}
	for attempt := 1; attempt <= 2; attempt++ {
		if err := s.SettleAll(t.Context(), dedupetest.One("refused", attempt, "", dedupe.Failed)); !errors.Is(err, dedupe.ErrUnavailable) {
			t.Errorf("settle attempt %d: got %v, want ErrUnavailable", attempt, err)
		}
	}
	if c, err := s.Claim(t.Context(), "accepted", 1); err != nil || c.Verdict != dedupe.Granted {
		t.Errorf("another claim: got %+v, %v; want it granted", c, err)
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		name, config, info string // answers, "" for an error
		wrong              bool
	}{
		{"told by CONFIG", "noeviction", "", false},
		{"evicting", "allkeys-lru", "", true},
		{"told by INFO", "", "noeviction", false},
		{"evicting, told by INFO", "", "volatile-ttl", true},
		{"not told", "", "", false},
	} {
		m := miniredis.RunT(t)
		m.Server().SetPreHook(func(c *server.Peer, cmd string, _ ...string) bool {
			switch {
			case cmd == "CONFIG" && test.config != "":
				c.WriteMapLen(1)
				c.WriteBulk("maxmemory-policy")
				c.WriteBulk(test.config)
				return true
			case cmd == "INFO" && test.info != "":
				c.WriteBulk("# Memory\r\nused_memory:1\r\nmaxmemory_policy:" + test.info + "\r\n")
				return true
			}
			return false
		})
		var logged strings.Builder
		s := newStore(t, options(m), func(c *dedupe.Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
		err := s.Check(t.Context())
		if test.wrong != (err != nil) || test.wrong && !strings.Contains(err.Error(), "maxmemory-policy noeviction") {
			t.Errorf("%s: got %v", test.name, err)
		}
		if warned := logged.Len() > 0; warned != (test.config+test.info == "") {
			t.Errorf("%s: logged %q", test.name, logged.String())
		}
	}
}
