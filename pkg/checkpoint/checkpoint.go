// Package checkpoint knows which offset of a partition can be committed although
// its records are settled in any order.
//
// The shape is that of github.com/Jeffail/checkpoint: begin in order, settle in
// any.
package checkpoint

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Tracker keeps the offsets of one partition, from when it is assigned until it
// is revoked. What can be committed is the lowest that is not settled. Its
// methods may be called from any goroutine.
type Tracker struct {
	mu      sync.Mutex
	open    []int64            // begun offsets, ascending, from the lowest not settled
	settled map[int64]struct{} // the settled among them
	next    kgo.EpochOffset    // after the last begun
	done    int64              // the last committed
}

// New returns a tracker of a partition of which nothing has been begun.
func New() *Tracker { return &Tracker{settled: map[int64]struct{}{}} }

// Begin tells of a record that is not settled yet. Offsets ascend.
func (t *Tracker) Begin(r *kgo.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next.Offset == 0 {
		t.done = r.Offset // where the partition was begun is no news
	}
	t.open = append(t.open, r.Offset)
	t.next = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
}

// Settle tells that a record that was begun is settled.
func (t *Tracker) Settle(offset int64) {
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

// Committable returns the offset to commit, and false if there is nothing new.
func (t *Tracker) Committable() (kgo.EpochOffset, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.next
	if len(t.open) > 0 {
		o.Offset = t.open[0]
	}
	return o, o.Offset > t.done
}

// Lowest returns the lowest offset that was begun and is not settled, and false
// if there is none.
func (t *Tracker) Lowest() (int64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) == 0 {
		return 0, false
	}
	return t.open[0], true
}

// Committed tells that an offset has been committed.
func (t *Tracker) Committed(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = max(t.done, offset)
}
