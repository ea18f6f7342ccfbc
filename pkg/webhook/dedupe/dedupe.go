// Package dedupe remembers which attempts of a delivery are settled and who may make the next one. The webhook
// sender asks it before and after each POST, so that a delivery known as delivered is never POSTed again, however
// often Kafka hands its record out.
//
// A delivery is attempted 1, 2, 3 … times. Of each delivery a store keeps
//
//   - its mark: which attempts are settled, and how. Marks only ever grow: settling twice, late or out of order
//     lowers nothing.
//   - the claim of its next attempt: a lease with a token. Attempt n is granted only when the last settled attempt is
//     exactly n-1 and nobody else holds the claim.
//
// [Redis] is the store for production, [Memory] the one for tests. Both pass the suite in dedupetest.
//
// # What can be lost
//
// Redis holds nothing that cannot be rebuilt, but nobody may act on an empty Redis as if it knew. An epoch key says
// that the marks are complete. It is read behind the marks in the very round trip that reads them, so a FLUSHALL at
// any moment is noticed. Its value names the run of the server (run_id) that the marks were complete in, and that is
// compared in the same round trip too: a server that restarted, perhaps from an old snapshot, or a replica that was
// promoted, has another one. Either way every call returns [ErrLost] until [Redis.Restore] has written the marks again.
//
// Two things are not noticed: single marks deleted or evicted behind our back (hence [Redis.Check]), and a restart
// from an old snapshot of a server that does not report its run_id.
//
// # Memory
//
// A mark with a delivery id of 36 characters and the default prefix takes 136 bytes of Redis (MEMORY USAGE, plus 24 for the
// entry of its expiry), a claim 160 bytes for at most its lease. So
//
//	bytes = 160 × deliveries per second × MarkLife in seconds
//
// which is 1.1 GB for 10 deliveries a second and eight days.
package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors of a store, to be tested with errors.Is.
var (
	// ErrLost says that the marks are gone or may be too old: nothing may be sent until Restore has succeeded.
	ErrLost = errors.New("dedupe: the marks were lost and must be restored")

	// ErrUnavailable says that Redis could not be reached in time or refused the request (out of memory, loading,
	// read-only): pause and try again. A claim may have been written all the same; it ends with its lease.
	ErrUnavailable = errors.New("dedupe: redis is unavailable")

	// ErrClosed is the answer to every call after Close.
	ErrClosed = errors.New("dedupe: closed")
)

// MaxAttempt is the highest attempt a delivery can have. A mark takes one byte per attempt.
const MaxAttempt = 255

// EarlyWait is how long an Early attempt is advised to wait. Usually the attempt before it is being settled right
// now; if its sender died instead, it takes the rest of that sender's lease.
const EarlyWait = 500 * time.Millisecond

const (
	defaultLease    = 15 * time.Second
	defaultMarkLife = 8 * 24 * time.Hour
)

// Verdict is the answer to a claim.
type Verdict int

const (
	// Granted means: make this attempt, but only while Claim.Deadline lies far enough ahead for it.
	Granted Verdict = iota + 1
	// Settled means that this attempt or a later one is settled, or that the delivery is finished: nothing to do.
	Settled
	// Busy means that somebody holds the claim. It settles nothing: the holder may be dead, so ask again.
	Busy
	// Early means that the attempt before this one is not settled yet: ask again.
	Early
)

// String returns the name of the verdict in lower case, for logs and metrics.
func (v Verdict) String() string {
	switch v {
	case Granted:
		return "granted"
	case Settled:
		return "settled"
	case Busy:
		return "busy"
	case Early:
		return "early"
	default:
		return fmt.Sprintf("verdict(%d)", int(v))
	}
}

// Claim is what a store answers when asked for an attempt.
type Claim struct {
	Verdict Verdict

	// Granted: Token proves the claim to SettleAll and Release. Deadline is the end of the lease on the caller's own
	// clock, counted from before the request left, so it never lies behind the end that the store enforces.
	Token    string
	Deadline time.Time

	// Settled: Outcome is how the delivery stands, and Final whether that is its end.
	Outcome string
	Final   bool

	// Busy and Early: how long to wait before asking again. For Busy this is what remains of the other's lease.
	Wait time.Duration
}

// check refuses what no caller should ever send, before it can reach a shared batch, and calls that come too late.
func check(ctx context.Context, id string, attempt int) error {
	if id == "" {
		return errors.New("dedupe: empty delivery id")
	}
	if attempt < 1 || attempt > MaxAttempt {
		return fmt.Errorf("dedupe: attempt %d of delivery %s is not within 1 to %d", attempt, id, MaxAttempt)
	}
	return ctx.Err()
}
