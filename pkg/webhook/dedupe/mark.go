package dedupe

import "fmt"

// The outcomes that SettleAll accepts. All but Failed end the delivery.
const (
	Delivered = "delivered"
	Failed    = "failed"
	Dead      = "dead"
	Discarded = "discarded"
)

// An outcome is one bit in a mark's byte for an attempt.
type outcome byte

const (
	bitFailed outcome = 1 << iota
	bitDiscarded
	bitDead
	bitDelivered
)

func parseOutcome(s string) (outcome, error) {
	switch s {
	case Delivered:
		return bitDelivered, nil
	case Dead:
		return bitDead, nil
	case Discarded:
		return bitDiscarded, nil
	case Failed:
		return bitFailed, nil
	default:
		return 0, fmt.Errorf("dedupe: unknown outcome %q", s)
	}
}

// A mark is the memory of one delivery: byte n-1 holds a bit for every outcome that attempt n was settled with.
// Settling sets a bit, and bits are never cleared. That makes settling commutative and idempotent: a sender that comes
// back after its lease, with an outcome that differs from its successor's, takes nothing away. Redis can do it with
// plain commands, without a script.
type mark []byte

// with returns the mark after attempt has been settled with o.
func (m mark) with(attempt int, o outcome) mark {
	for len(m) < attempt {
		m = append(m, 0)
	}
	m[attempt-1] |= byte(o)
	return m
}

// settled returns the last settled attempt, or 0.
func (m mark) settled() int { return len(m) }

// outcome tells how the delivery stands. Of several ends (only a stalled sender makes two) delivered wins: the
// receiver has it.
func (m mark) outcome() (name string, final bool) {
	var all outcome
	for _, b := range m {
		all |= outcome(b)
	}
	switch {
	case all&bitDelivered != 0:
		return Delivered, true
	case all&bitDead != 0:
		return Dead, true
	case all&bitDiscarded != 0:
		return Discarded, true
	default:
		return Failed, false
	}
}

// judge gives the verdict on attempt; free says whether nobody else holds the claim. Token, Deadline and the Wait
// of Busy are the store's to fill in.
func (m mark) judge(attempt int, free bool) Claim {
	name, final := m.outcome()
	switch {
	case final || m.settled() >= attempt:
		return Claim{Verdict: Settled, Outcome: name, Final: final}
	case m.settled() < attempt-1:
		return Claim{Verdict: Early, Wait: EarlyWait}
	case !free:
		return Claim{Verdict: Busy}
	default:
		return Claim{Verdict: Granted}
	}
}
