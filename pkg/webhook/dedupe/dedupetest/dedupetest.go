// Package dedupetest is the conformance suite of the stores in package dedupe.
package dedupetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// Store is what the suite tries: the calls of the sender, and Restore.
type Store interface {
	Claim(ctx context.Context, id string, attempt int) (dedupe.Claim, error)
	SettleAll(ctx context.Context, all []dedupe.Settlement) error
	Release(ctx context.Context, id string, attempt int, token string) error
	Restore(ctx context.Context, load dedupe.Load) error
}

// One returns a single settlement for SettleAll.
func One(id string, attempt int, token, outcome string) []dedupe.Settlement {
	return []dedupe.Settlement{{ID: id, Attempt: attempt, Token: token, Outcome: outcome}}
}

// Subject is a store, open and empty, with a lease of [Lease], and what the suite does to it from outside.
type Subject struct {
	Store
	EndLeases func() // ends the lease of every claim
	Lose      func() // loses the marks, as a FLUSHALL would; with or without those of this test
}

// Lease is the lease of a Subject. No test takes as long.
const Lease = 30 * time.Second

// Run runs the suite. It calls open for each test; open cleans up with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"Ladder", testLadder},
		{"FinalOutcomes", testFinalOutcomes},
		{"Busy", testBusy},
		{"Release", testRelease},
		{"LeaseEnds", testLeaseEnds},
		{"MarksNeverGoDown", testMarksNeverGoDown},
		{"SettleWithoutClaim", testSettleWithoutClaim},
		{"BadCalls", testBadCalls},
		{"OneGrantPerRace", testOneGrantPerRace},
		{"Storm", testStorm},
		{"Loss", testLoss},
		{"LoadFails", testLoadFails},
		{"Model", testModel},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func testLadder(t *testing.T, s Subject) {
	id := uuid.NewString()
	for attempt := 1; attempt <= 5; attempt++ {
		expect(t, s, id, attempt+1, dedupe.Claim{Verdict: dedupe.Early})
		token := grant(t, s, id, attempt)
		settle(t, s, id, attempt, token, dedupe.Failed)
		for earlier := 1; earlier <= attempt; earlier++ {
			expect(t, s, id, earlier, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Failed})
		}
	}
	settle(t, s, id, 6, grant(t, s, id, 6), dedupe.Delivered)
	expect(t, s, id, 6, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})
}

func testFinalOutcomes(t *testing.T, s Subject) {
	for _, outcome := range []string{dedupe.Delivered, dedupe.Dead, dedupe.Discarded} {
		id := uuid.NewString()
		settle(t, s, id, 1, grant(t, s, id, 1), dedupe.Failed)
		settle(t, s, id, 2, grant(t, s, id, 2), outcome)
		for _, attempt := range []int{1, 2, 3, 4, dedupe.MaxAttempt} {
			expect(t, s, id, attempt, dedupe.Claim{Verdict: dedupe.Settled, Outcome: outcome, Final: true})
		}
	}
}

func testBusy(t *testing.T, s Subject) {
	id := uuid.NewString()
	grant(t, s, id, 1)
	c := claim(t, s, id, 1)
	if c.Verdict != dedupe.Busy || c.Wait <= 0 || c.Wait > Lease {
		t.Errorf("a second claim got %+v, want busy for at most the lease", c)
	}
	expect(t, s, id, 2, dedupe.Claim{Verdict: dedupe.Early})
	grant(t, s, uuid.NewString(), 1) // other deliveries are free
}

func testRelease(t *testing.T, s Subject) {
	id := uuid.NewString()
	token := grant(t, s, id, 1)
	release(t, s, id, 1, "somebody else's")
	expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Busy})
	release(t, s, id, 1, token)
	release(t, s, id, 1, token)
	second := grant(t, s, id, 1)
	if second == token {
		t.Errorf("two claims have the token %q", token)
	}
	release(t, s, id, 1, token)
	expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Busy})
	settle(t, s, id, 1, second, dedupe.Failed)
	release(t, s, id, 1, second)
	expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Failed})
}

func testLeaseEnds(t *testing.T, s Subject) {
	id := uuid.NewString()
	first := grant(t, s, id, 1)
	s.EndLeases()
	second := grant(t, s, id, 1)
	// The first sender stalled past its lease, comes back, and must not disturb the second.
	release(t, s, id, 1, first)
	expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Busy})
	settle(t, s, id, 1, first, dedupe.Failed)
	settle(t, s, id, 1, second, dedupe.Delivered)
	expect(t, s, id, 2, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})
}

func testMarksNeverGoDown(t *testing.T, s Subject) {
	// A late failure takes away neither a delivery nor a later attempt.
	id := uuid.NewString()
	settle(t, s, id, 1, "", dedupe.Delivered)
	settle(t, s, id, 1, "", dedupe.Failed)
	settle(t, s, id, 2, "", dedupe.Failed)
	expect(t, s, id, 3, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})

	id = uuid.NewString()
	settle(t, s, id, 3, "", dedupe.Failed)
	settle(t, s, id, 1, "", dedupe.Failed)
	expect(t, s, id, 3, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Failed})
	grant(t, s, id, 4)

	// What a stalled sender delivered long ago is delivered.
	settle(t, s, id, 2, "", dedupe.Delivered)
	expect(t, s, id, 4, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})
}

func testSettleWithoutClaim(t *testing.T, s Subject) {
	id := uuid.NewString()
	grant(t, s, id, 1)
	settle(t, s, id, 1, "", dedupe.Discarded)
	expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Discarded, Final: true})
}

func testBadCalls(t *testing.T, s Subject) {
	ctx, id := t.Context(), uuid.NewString()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, noID := s.Claim(ctx, "", 1)
	_, zero := s.Claim(ctx, id, 0)
	_, huge := s.Claim(ctx, id, dedupe.MaxAttempt+1)
	_, late := s.Claim(cancelled, id, 1)
	for name, err := range map[string]error{
		"claim without id":            noID,
		"claim of attempt 0":          zero,
		"claim of a huge attempt":     huge,
		"claim after the end":         late,
		"settle of a huge attempt":    s.SettleAll(ctx, One(id, 1<<30, "", dedupe.Failed)),
		"settle with unknown outcome": s.SettleAll(ctx, One(id, 1, "", "lost")),
		"settle after the end":        s.SettleAll(cancelled, One(id, 1, "", dedupe.Failed)),
		"release of attempt -1":       s.Release(ctx, id, -1, "token"),
	} {
		if err == nil || errors.Is(err, dedupe.ErrUnavailable) || errors.Is(err, dedupe.ErrLost) {
			t.Errorf("%s: got error %v, want one of its own", name, err)
		}
	}
	grant(t, s, id, 1) // nothing of that left a trace
}

func testOneGrantPerRace(t *testing.T, s Subject) {
	for range 20 {
		id := uuid.NewString()
		var granted, busy atomic.Int32
		var racers sync.WaitGroup
		for range 16 {
			racers.Go(func() {
				switch c, err := s.Claim(context.Background(), id, 1); {
				case err != nil:
					t.Error(err)
				case c.Verdict == dedupe.Granted:
					granted.Add(1)
				case c.Verdict == dedupe.Busy:
					busy.Add(1)
				}
			})
		}
		racers.Wait()
		if granted.Load() != 1 || busy.Load() != 15 {
			t.Fatalf("of 16 claims %d were granted and %d busy, want 1 and 15", granted.Load(), busy.Load())
		}
	}
}

// testStorm lets many senders climb the same ladders at once. As long as no lease ends, an attempt has one holder at
// a time and none once it is settled.
func testStorm(t *testing.T, s Subject) {
	const senders, deliveries, attempts = 12, 6, 4
	type state struct{ holders, settled atomic.Int32 }
	var states [deliveries][attempts + 1]state
	var ids [deliveries]string
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	climb := func(ctx context.Context, d, attempt, luck int) error {
		st := &states[d][attempt]
		wasSettled := st.settled.Load() > 0
		c, err := s.Claim(ctx, ids[d], attempt)
		if err != nil || c.Verdict != dedupe.Granted {
			return err
		}
		if wasSettled {
			return fmt.Errorf("attempt %d was granted after it had been settled", attempt)
		}
		if n := st.holders.Add(1); n != 1 {
			return fmt.Errorf("attempt %d has %d holders", attempt, n)
		}
		if luck%3 == 0 {
			st.holders.Add(-1)
			return s.Release(ctx, ids[d], attempt, c.Token)
		}
		st.holders.Add(-1)
		if err := s.SettleAll(ctx, One(ids[d], attempt, c.Token, dedupe.Failed)); err != nil {
			return err
		}
		if n := st.settled.Add(1); n != 1 {
			return fmt.Errorf("attempt %d was settled %d times", attempt, n)
		}
		return nil
	}
	var all sync.WaitGroup
	for sender := range senders {
		all.Go(func() {
			for i := range 150 {
				luck := i*7 + sender*13
				if err := climb(context.Background(), luck%deliveries, 1+i%attempts, luck); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func testLoss(t *testing.T, s Subject) {
	ctx := t.Context()
	delivered, failed, flying, fresh := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
	settle(t, s, delivered, 1, grant(t, s, delivered, 1), dedupe.Delivered)
	settle(t, s, failed, 1, grant(t, s, failed, 1), dedupe.Failed)
	token := grant(t, s, flying, 1)

	s.Lose()
	if _, err := s.Claim(ctx, fresh, 1); !errors.Is(err, dedupe.ErrLost) {
		t.Fatalf("a claim after the loss: error %v, want ErrLost", err)
	}
	// Settling says so too, but what it settles stays settled.
	if err := s.SettleAll(ctx, One(flying, 1, token, dedupe.Delivered)); !errors.Is(err, dedupe.ErrLost) {
		t.Fatalf("settling after the loss: error %v, want ErrLost", err)
	}
	if err := s.Restore(ctx, func(_ context.Context, yield func(string, int, string) error) error {
		return errors.Join(
			yield(failed, 2, dedupe.Failed), // in any order
			yield(failed, 1, dedupe.Failed),
			yield(delivered, 1, dedupe.Delivered),
		)
	}); err != nil {
		t.Fatalf("restore: %v", err)
	}
	for _, id := range []string{delivered, flying} {
		expect(t, s, id, 1, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})
	}
	expect(t, s, failed, 2, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Failed})
	grant(t, s, failed, 3)
	grant(t, s, fresh, 1)

	if err := s.Restore(ctx, func(context.Context, func(string, int, string) error) error {
		return errors.New("load was called although nothing is lost")
	}); err != nil {
		t.Error(err)
	}
}

func testLoadFails(t *testing.T, s Subject) {
	ctx, id, broken := t.Context(), uuid.NewString(), errors.New("broken log")
	s.Lose()
	if err := s.Restore(ctx, func(_ context.Context, yield func(string, int, string) error) error {
		if err := yield(id, 1, dedupe.Delivered); err != nil {
			return err
		}
		return broken
	}); !errors.Is(err, broken) {
		t.Fatalf("restore: error %v, want that of load", err)
	}
	if _, err := s.Claim(ctx, id, 1); !errors.Is(err, dedupe.ErrLost) {
		t.Fatalf("a claim after half a restore: error %v, want ErrLost", err)
	}
	if err := s.Restore(ctx, func(_ context.Context, yield func(string, int, string) error) error {
		return yield(id, 2, "nonsense")
	}); err == nil {
		t.Fatal("an unknown outcome was restored")
	}
	if err := s.Restore(ctx, func(_ context.Context, yield func(string, int, string) error) error {
		return errors.Join(yield(id, 1, dedupe.Delivered), yield(id, 2, dedupe.Failed))
	}); err != nil {
		t.Fatal(err)
	}
	expect(t, s, id, 2, dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Delivered, Final: true})
}

// claim, grant, settle, release and expect fail the test at the first surprise.

func claim(t rapid.TB, s Subject, id string, attempt int) dedupe.Claim {
	t.Helper()
	c, err := s.Claim(context.Background(), id, attempt)
	if err != nil {
		t.Fatalf("claim of attempt %d: %v", attempt, err)
	}
	return c
}

func grant(t rapid.TB, s Subject, id string, attempt int) (token string) {
	t.Helper()
	c := claim(t, s, id, attempt)
	if c.Verdict != dedupe.Granted || c.Token == "" || c.Deadline.IsZero() || c.Wait != 0 {
		t.Fatalf("claim of attempt %d: got %+v, want it granted", attempt, c)
	}
	return c.Token
}

// expect claims in vain. The waits of Busy and Early are the store's own choice, but there must be one.
func expect(t rapid.TB, s Subject, id string, attempt int, want dedupe.Claim) {
	t.Helper()
	got := claim(t, s, id, attempt)
	if waits := got.Verdict == dedupe.Busy || got.Verdict == dedupe.Early; waits != (got.Wait > 0) {
		t.Fatalf("claim of attempt %d: wait %v with verdict %v", attempt, got.Wait, got.Verdict)
	}
	got.Wait = 0
	if got != want {
		t.Fatalf("claim of attempt %d: got %+v, want %+v", attempt, got, want)
	}
}

func settle(t rapid.TB, s Subject, id string, attempt int, token, outcome string) {
	t.Helper()
	if err := s.SettleAll(context.Background(), One(id, attempt, token, outcome)); err != nil {
		t.Fatalf("settle attempt %d as %s: %v", attempt, outcome, err)
	}
}

func release(t rapid.TB, s Subject, id string, attempt int, token string) {
	t.Helper()
	if err := s.Release(context.Background(), id, attempt, token); err != nil {
		t.Fatalf("release attempt %d: %v", attempt, err)
	}
}
