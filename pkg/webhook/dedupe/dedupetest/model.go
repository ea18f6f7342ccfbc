package dedupetest

import (
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// A delivery is what a store should know of one, in the plainest terms.
type delivery struct {
	last   int            // settled attempt
	end    string         // the outcome that ended it, if any
	holder map[int]string // attempt → token of the live claim
	stale  map[int]string // attempt → token of some earlier claim
}

// rank orders the ends of a delivery; settling never replaces one by a lower one.
var rank = map[string]int{"": 0, dedupe.Discarded: 1, dedupe.Dead: 2, dedupe.Delivered: 3}

func (d *delivery) claim(attempt int) dedupe.Claim {
	switch {
	case d.end != "":
		return dedupe.Claim{Verdict: dedupe.Settled, Outcome: d.end, Final: true}
	case d.last >= attempt:
		return dedupe.Claim{Verdict: dedupe.Settled, Outcome: dedupe.Failed}
	case d.last < attempt-1:
		return dedupe.Claim{Verdict: dedupe.Early}
	case d.holder[attempt] != "":
		return dedupe.Claim{Verdict: dedupe.Busy}
	default:
		return dedupe.Claim{Verdict: dedupe.Granted}
	}
}

func (d *delivery) settle(attempt int, outcome string) {
	d.last = max(d.last, attempt)
	if outcome != dedupe.Failed && rank[outcome] > rank[d.end] {
		d.end = outcome
	}
}

// testModel compares random histories of a few deliveries with the model, step by step.
func testModel(t *testing.T, s Subject) {
	rapid.Check(t, func(t *rapid.T) {
		deliveries := map[string]*delivery{}
		var ids []string
		for range 2 {
			id := uuid.NewString()
			ids = append(ids, id)
			deliveries[id] = &delivery{holder: map[int]string{}, stale: map[int]string{}}
		}
		pick := func(t *rapid.T) (string, *delivery, int) {
			id := ids[rapid.IntRange(0, len(ids)-1).Draw(t, "delivery")]
			return id, deliveries[id], rapid.IntRange(1, 4).Draw(t, "attempt")
		}
		token := func(t *rapid.T, d *delivery, attempt int) string {
			return rapid.SampledFrom([]string{d.holder[attempt], d.stale[attempt]}).Draw(t, "token")
		}
		t.Repeat(map[string]func(*rapid.T){
			"claim": func(t *rapid.T) {
				id, d, attempt := pick(t)
				want := d.claim(attempt)
				if want.Verdict == dedupe.Granted {
					d.holder[attempt] = grant(t, s, id, attempt)
					return
				}
				expect(t, s, id, attempt, want)
			},
			"settle": func(t *rapid.T) {
				id, d, attempt := pick(t)
				outcomes := []string{dedupe.Failed, dedupe.Failed, dedupe.Failed, dedupe.Discarded, dedupe.Dead, dedupe.Delivered}
				outcome := rapid.SampledFrom(outcomes).Draw(t, "outcome")
				settle(t, s, id, attempt, token(t, d, attempt), outcome)
				d.settle(attempt, outcome)
			},
			"release": func(t *rapid.T) {
				id, d, attempt := pick(t)
				used := token(t, d, attempt)
				release(t, s, id, attempt, used)
				if used == d.holder[attempt] {
					d.stale[attempt], d.holder[attempt] = used, ""
				}
			},
			"lease ends": func(*rapid.T) {
				s.EndLeases()
				for _, d := range deliveries {
					for attempt, token := range d.holder {
						d.stale[attempt], d.holder[attempt] = token, ""
					}
				}
			},
		})
	})
}
