package sender

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// tracker knows which offset of a partition can be committed although its
// records are settled in any order: the lowest that is not settled.
//
// The shape is that of Jeffail/checkpoint's: begin in order, settle in any.
type tracker struct {
	mu      sync.Mutex
	open    []int64            // begun offsets, ascending, from the lowest not settled
	settled map[int64]struct{} // the settled among them
	next    kgo.EpochOffset    // after the last begun
	done    int64              // the last committed, or -1
}

func newTracker() *tracker { return &tracker{settled: map[int64]struct{}{}, done: -1} }

// begin tells of a record that is not settled yet. Offsets ascend.
func (t *tracker) begin(r *kgo.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = append(t.open, r.Offset)
	t.next = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
}

// settle tells that a record is settled.
func (t *tracker) settle(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled[offset] = struct{}{}
	for len(t.open) > 0 {
		if _, ok := t.settled[t.open[0]]; !ok {
			return
		}
		delete(t.settled, t.open[0])
		t.open = t.open[1:]
	}
	t.open = nil // lets go of the array that was sliced along
}

// committable returns the offset to commit, and false if there is nothing new.
func (t *tracker) committable() (kgo.EpochOffset, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.next
	if len(t.open) > 0 {
		o.Offset = t.open[0]
	}
	return o, o.Offset > t.done && t.next.Offset > 0
}

// committed tells that an offset has been committed.
func (t *tracker) committed(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = max(t.done, offset)
}
