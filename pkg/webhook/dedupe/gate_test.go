package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe/dedupetest"
)

// patient returns options of a client that waits as long as a gate is closed,
// however slow the machine is.
func patient(m *miniredis.Miniredis) *redis.Options {
	opts := options(m)
	opts.ReadTimeout = time.Minute
	return opts
}

// gate stops every SET and MGET of m until it is opened.
func gate(m *miniredis.Miniredis) (entered <-chan string, open func()) {
	in, out := make(chan string, 1000), make(chan struct{})
	m.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
		if cmd == "SET" || cmd == "MGET" {
			in <- cmd
			<-out
		}
		return false
	})
	return in, sync.OnceFunc(func() { close(out) })
}

func TestCallsShareRoundTrips(t *testing.T) {
	const calls = 200
	m := miniredis.RunT(t)
	s := openStore(t, patient(m))
	entered, open := gate(m)
	defer open()
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() {
			if c, err := s.Claim(context.Background(), fmt.Sprint(i), 1); err != nil || c.Verdict != dedupe.Granted {
				t.Errorf("got %+v, %v; want the claim granted", c, err)
			}
		})
		if i < 2 {
			<-entered // both round trips are under way, and the rest must wait
		}
	}
	for s.Waiting() < calls-2 {
		time.Sleep(time.Millisecond)
	}
	open()
	all.Wait()
	reads := 0
	for range len(entered) {
		if <-entered == "MGET" {
			reads++
		}
	}
	if reads > 4 {
		t.Errorf("%d claims took %d round trips", calls, reads)
	}
}

// leave ends the context of a call during its round trip, which then ends, and the store is closed.
func leave(t *testing.T, m *miniredis.Miniredis, s *dedupe.Redis, call func(context.Context) error) {
	t.Helper()
	entered, open := gate(m)
	defer open()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- call(ctx) }()
	<-entered
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's error", err)
	}
	open()
	if err := s.Close(); err != nil { // ends the round trip
		t.Fatal(err)
	}
}

func TestAbandonedClaimIsGivenBack(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, patient(m))
	leave(t, m, s, func(ctx context.Context) error {
		_, err := s.Claim(ctx, "a", 1)
		return err
	})
	if keys := m.Keys(); !slices.Equal(keys, []string{"wh:epoch"}) {
		t.Errorf("there are keys %v, want no claim", keys)
	}
}

// Settling leaves the marks, and nothing of the claims.
func TestSettleAll(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, patient(m))
	if err := s.SettleAll(t.Context(), nil); err != nil {
		t.Errorf("none: %v", err)
	}
	all := []dedupe.Settlement{{ID: "a", Attempt: 1, Outcome: dedupe.Delivered}, {ID: "b", Attempt: 1, Outcome: dedupe.Failed}}
	for i, one := range all {
		c, err := s.Claim(t.Context(), one.ID, 1)
		if err != nil || c.Verdict != dedupe.Granted {
			t.Fatalf("%s: got %+v, %v; want it granted", one.ID, c, err)
		}
		all[i].Token = c.Token
	}
	if err := s.SettleAll(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if keys := m.Keys(); !slices.Equal(keys, []string{"wh:epoch", "wh:m:a", "wh:m:b"}) {
		t.Errorf("there are keys %v, want both marks and no claim", keys)
	}
	for _, one := range all {
		if c, err := s.Claim(t.Context(), one.ID, 1); err != nil || c.Verdict != dedupe.Settled {
			t.Errorf("%s: got %+v, %v; want it settled", one.ID, c, err)
		}
	}
}

// Whoever leaves before all of many are settled hears so, although they may be.
func TestSettleAllIsLeft(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, patient(m))
	leave(t, m, s, func(ctx context.Context) error {
		return s.SettleAll(ctx, []dedupe.Settlement{
			{ID: "a", Attempt: 1, Outcome: dedupe.Delivered}, {ID: "b", Attempt: 1, Outcome: dedupe.Delivered},
		})
	})
	if keys := m.Keys(); !slices.Equal(keys, []string{"wh:epoch", "wh:m:a", "wh:m:b"}) {
		t.Errorf("there are keys %v, want both marks", keys)
	}
	if err := s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered)); !errors.Is(err, dedupe.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

func TestClose(t *testing.T) {
	m := miniredis.RunT(t)
	s := openStore(t, patient(m))
	entered, open := gate(m)
	defer open()
	errs := make(chan error)
	for i := range 3 {
		go func() {
			_, err := s.Claim(context.Background(), uuid.NewString(), 1)
			errs <- err
		}()
		if i < 2 {
			<-entered // one in each round trip, and the third must wait
		}
	}
	for s.Waiting() < 1 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if err := <-errs; !errors.Is(err, dedupe.ErrClosed) {
		t.Errorf("a waiting call got %v, want ErrClosed", err)
	}
	open()
	for range 2 {
		if err := <-errs; err != nil {
			t.Errorf("a call under way got %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	_, claim := s.Claim(t.Context(), "a", 1)
	for name, err := range map[string]error{
		"claim":   claim,
		"settle":  s.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered)),
		"open":    s.Open(t.Context()),
		"restore": s.Restore(t.Context(), nothing),
		"check":   s.Check(t.Context()),
	} {
		if !errors.Is(err, dedupe.ErrClosed) {
			t.Errorf("%s after close: got %v, want ErrClosed", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
}
