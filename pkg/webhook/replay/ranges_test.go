package replay_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// mixed is a log of events among transactions that were aborted.
func mixed(t *testing.T) *world {
	w := newWorld(t)
	w.aborted(2)
	for range 5 {
		w.events(20)
		w.aborted(3)
		w.event("appointment.created", "provider:1")
	}
	w.aborted(2)
	return w
}

// Any range gives the committed records that stand in it, each once and in the
// order of its partition; and a range that is split gives the same as its parts.
func TestAnyRange(t *testing.T) {
	w := mixed(t)
	ends := w.ends(w.topics.Events())
	rapid.Check(t, func(t *rapid.T) {
		from, middle, to := make([]int64, len(ends)), make([]int64, len(ends)), make([]int64, len(ends))
		for p, end := range ends {
			from[p] = rapid.Int64Range(0, end).Draw(t, "from")
			to[p] = rapid.Int64Range(0, end).Draw(t, "to")
			middle[p] = rapid.Int64Range(min(from[p], to[p]), max(from[p], to[p])).Draw(t, "middle")
			if rapid.Bool().Draw(t, "in order") {
				from[p], to[p] = min(from[p], to[p]), max(from[p], to[p])
			}
		}
		want := map[webhook.Position]bool{}
		for _, e := range w.log {
			if p := e.at.Partition; e.at.Offset >= from[p] && e.at.Offset < to[p] {
				want[e.at] = true
			}
		}
		ranges := [][2][]int64{{from, to}}
		if rapid.Bool().Draw(t, "split") {
			ranges = [][2][]int64{{from, middle}, {middle, to}}
			for p := range from {
				if from[p] > to[p] {
					middle[p] = from[p]
				}
			}
		}
		got, last := map[webhook.Position]bool{}, map[int32]int64{}
		for _, r := range ranges {
			err := replay.Scan(w.context(), w.opts(), func(rec *kgo.Record) bool {
				at := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
				if before, ok := last[at.Partition]; got[at] || ok && before >= at.Offset {
					t.Errorf("%s comes twice or too late", at)
				}
				got[at], last[at.Partition] = true, at.Offset
				return true
			}, replay.Range{Topic: w.topics.Events(), From: r[0], To: r[1]})
			if err != nil {
				t.Fatal(err)
			}
		}
		for at := range want {
			if !got[at] {
				t.Errorf("%s is missing from %v to %v", at, from, to)
			}
		}
		for at := range got {
			if !want[at] {
				t.Errorf("%s is not from %v to %v", at, from, to)
			}
		}
	})
}

// Records are found where they stand, and nothing where none was committed.
func TestLookup(t *testing.T) {
	w := mixed(t)
	ends := w.ends(w.topics.Events())
	there := map[webhook.Position]string{}
	for _, e := range w.log {
		there[e.at] = e.ID
	}
	var asked []webhook.Position
	for p, end := range ends {
		for o := range end + 3 { // also what is not there yet
			asked = append(asked, webhook.Position{Partition: int32(p), Offset: o})
		}
	}
	asked = append(asked, webhook.Position{Partition: 1000, Offset: 1})
	found, err := replay.Lookup(w.context(), w.opts(), w.topics.Events(), append(asked, asked...))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != len(there) {
		t.Errorf("%d records, want %d", len(found), len(there))
	}
	for at, rec := range found {
		if rec.Partition != at.Partition || rec.Offset != at.Offset || there[at] == "" {
			t.Errorf("at %s it finds %d/%d", at, rec.Partition, rec.Offset)
		}
	}
	if found, err := replay.Lookup(w.context(), w.opts(), w.topics.Events(), nil); err != nil || len(found) > 0 {
		t.Errorf("nothing is %v, %v", found, err)
	}
	if _, err := replay.Lookup(t.Context(), w.opts(), w.topics.Events(), []webhook.Position{w.log[0].at, w.log[len(w.log)-1].at}); err != nil {
		t.Error(err)
	}
}
