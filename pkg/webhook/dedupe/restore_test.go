package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe/dedupetest"
)

func TestOneProcessRestores(t *testing.T) {
	m := miniredis.RunT(t)
	var loads atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		s := newStore(t, options(m))
		all.Go(func() {
			if err := s.Restore(context.Background(), func(_ context.Context, yield func(string, int, string) error) error {
				loads.Add(1)
				return yield("a", 1, dedupe.Delivered)
			}); err != nil {
				t.Error(err)
			}
			if c, err := s.Claim(context.Background(), "a", 1); err != nil || c.Verdict != dedupe.Settled {
				t.Errorf("got %+v, %v; want it settled", c, err)
			}
		})
	}
	all.Wait()
	if n := loads.Load(); n != 1 {
		t.Errorf("%d processes loaded the marks", n)
	}
}

// The others take over when the process that restores dies without giving its lock back.
func TestRestorerDies(t *testing.T) {
	m := miniredis.RunT(t)
	if err := m.Set("wh:restore", "the token of a process that died"); err != nil {
		t.Fatal(err)
	}
	m.SetTTL("wh:restore", 10*time.Second)
	s := newStore(t, options(m))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Restore(ctx, nothing); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("while the lock is held: got %v, want it to wait", err)
	}
	m.FastForward(10 * time.Second)
	if err := s.Restore(t.Context(), nothing); err != nil {
		t.Error(err)
	}
}

// Whoever lost the lock, or Redis once more, must not open an epoch over marks that may be incomplete.
func TestRestoreLosesItsLock(t *testing.T) {
	m := miniredis.RunT(t)
	s := newStore(t, options(m))
	loads := 0
	if err := s.Restore(t.Context(), func(_ context.Context, yield func(string, int, string) error) error {
		loads++
		if loads == 1 {
			err := yield("a", 1, dedupe.Delivered)
			m.FlushAll()
			return err
		}
		return yield("a", 1, dedupe.Delivered)
	}); err != nil || loads != 2 {
		t.Fatalf("restore: %v after %d loads, want 2", err, loads)
	}
	if c, err := s.Claim(t.Context(), "a", 1); err != nil || c.Verdict != dedupe.Settled {
		t.Errorf("got %+v, %v; want it settled", c, err)
	}
}

// A lock that is lost during a long load cancels the load.
func TestLoadIsCancelledWithoutLock(t *testing.T) {
	m := miniredis.RunT(t)
	s := newStore(t, options(m))
	loads := 0
	if err := s.Restore(t.Context(), func(ctx context.Context, _ func(string, int, string) error) error {
		if loads++; loads > 1 {
			return nil
		}
		m.Del("wh:restore")
		<-ctx.Done()
		return ctx.Err()
	}); err != nil || loads != 2 {
		t.Errorf("restore: %v after %d loads, want 2", err, loads)
	}
}

// A shutdown in the middle of a restore lets the others go on at once.
func TestCancelledRestoreGivesItsLockBack(t *testing.T) {
	m := miniredis.RunT(t)
	s := newStore(t, options(m))
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Restore(ctx, func(ctx context.Context, _ func(string, int, string) error) error {
		cancel()
		return ctx.Err()
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	if keys := m.Keys(); len(keys) != 0 {
		t.Errorf("there are keys %v, want none", keys)
	}
}

// Claims were lost too, and their holders may still be sending: one lease must pass, counted from the loss.
func TestRestoreWaitsForLostClaims(t *testing.T) {
	m := miniredis.RunT(t)
	for _, sole := range []bool{false, true} {
		m.FlushAll()
		s := newStore(t, options(m), func(c *dedupe.Config) { c.Sole = sole })
		var waited time.Duration
		s.SetPause(func(_ context.Context, d time.Duration) error {
			waited += d
			if m.Exists("wh:epoch") {
				t.Error("the epoch was opened before the wait")
			}
			return nil
		})
		var load time.Duration
		if err := s.Restore(t.Context(), func(context.Context, func(string, int, string) error) error {
			begin := time.Now()
			for time.Since(begin) < 10*time.Millisecond {
				load = time.Since(begin)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		switch {
		case sole && waited != 0:
			t.Errorf("the only sender waited %v", waited)
		case !sole && (waited > dedupetest.Lease-load || waited < dedupetest.Lease/2):
			t.Errorf("waited %v, want what the load left of %v", waited, dedupetest.Lease)
		}
	}
}

func TestRestoreManyOverExistingMarks(t *testing.T) {
	const deliveries = 2500
	m := miniredis.RunT(t)
	s := openStore(t, options(m))
	id := func(i int) string { return fmt.Sprint("delivery-", i) }
	for i := range deliveries {
		if i%2 == 0 { // half of the marks survived, and know more than the log
			if err := s.SettleAll(t.Context(), dedupetest.One(id(i), 3, "", dedupe.Failed)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.Del("wh:epoch")
	fresh := newStore(t, options(m))
	if err := fresh.Restore(t.Context(), func(_ context.Context, yield func(string, int, string) error) error {
		for attempt := 1; attempt <= 2; attempt++ {
			for i := range deliveries {
				outcome := dedupe.Failed
				if attempt == 2 && i%5 == 0 {
					outcome = dedupe.Dead
				}
				if err := yield(id(i), attempt, outcome); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := range deliveries {
		c, err := fresh.Claim(t.Context(), id(i), 3)
		want := dedupe.Granted
		if i%2 == 0 || i%5 == 0 {
			want = dedupe.Settled
		}
		if err != nil || c.Verdict != want || c.Final != (i%5 == 0) {
			t.Fatalf("delivery %d: got %+v, %v; want %v", i, c, err, want)
		}
		if m.TTL("wh:m:"+id(i)) == 0 {
			t.Fatalf("the mark of delivery %d never ends", i)
		}
	}
}
