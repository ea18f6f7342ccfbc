package sender

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// recorder writes outcomes down, many at a time: first the hand-overs, then the
// attempts, then the marks, each acknowledged before the next. Whoever finds an
// attempt's record so knows that the delivery was handed over, also when Redis
// has to be rebuilt from it. While a batch is on its way the next one gathers; two at
// a time would be half as large, and a batch costs Kafka more than a record does.
// What does not come to its end soon is not waited for: without Redis attempts go on
// record all the same.
//
// The outcomes in hand are bounded: if the process is killed their requests may be
// made twice. While Kafka or Redis is slow to take them, whoever has one more waits,
// and makes no request meanwhile. What is only handed on is bounded by the
// partitions' windows.
type recorder struct {
	s       *Sender
	stir    chan struct{} // has an element when there may be something to record
	room    chan struct{} // has an element for each outcome in hand
	marking sync.WaitGroup

	mu      sync.Mutex
	waiting []*note
	marked  time.Time // when outcomes were marked last
}

// note is an outcome to be written down. Parts that are nil are done, or not
// needed.
type note struct {
	j        *job
	handOver *kgo.Record
	attempt  *kgo.Record
	mark     *dedupe.Settlement // of an outcome, which has a place in room; others have none
}

func newRecorder(s *Sender) *recorder {
	return &recorder{s: s, stir: make(chan struct{}, 1), room: make(chan struct{}, s.cfg.Unrecorded)}
}

// admit waits for room for an outcome, or returns false if ctx ends first.
func (rc *recorder) admit(ctx context.Context) bool {
	select { // there nearly always is room, and this costs less
	case rc.room <- struct{}{}:
		return true
	default:
	}
	select {
	case rc.room <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// stuck says whether there is no room, and nothing has been marked since a shard
// looked last.
func (rc *recorder) stuck() bool {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return len(rc.room) == cap(rc.room) && time.Since(rc.marked) >= lookEvery
}

// add has a note written down.
func (rc *recorder) add(n *note) {
	rc.mu.Lock()
	rc.waiting = append(rc.waiting, n)
	rc.mu.Unlock()
	select {
	case rc.stir <- struct{}{}:
	default:
	}
}

func (rc *recorder) take() []*note {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	notes := rc.waiting
	rc.waiting = nil
	return notes
}

// run records until ctx ends.
func (rc *recorder) run(ctx context.Context) {
	defer rc.marking.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rc.stir:
			rc.record(ctx, rc.take())
		}
	}
}

// record has Kafka take a batch, and then Redis, but does not wait for that for long.
func (rc *recorder) record(ctx context.Context, notes []*note) {
	notes = rc.append(ctx, notes, func(n *note) **kgo.Record { return &n.handOver })
	notes = rc.append(ctx, notes, func(n *note) **kgo.Record { return &n.attempt })
	outcomes := notes[:0]
	for _, n := range notes {
		if n.mark == nil {
			rc.s.end(n.j, true)
			continue
		}
		n.j.ended.Store(n.mark.Outcome != webhook.Failed)
		outcomes = append(outcomes, n)
	}
	if len(outcomes) == 0 {
		return
	}
	marked := make(chan struct{})
	rc.marking.Go(func() { defer close(marked); rc.mark(ctx, outcomes) })
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-marked:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// append appends one part of each note and returns those of which that is done in
// time. One that takes longer, because its partition has no leader for example,
// does not hold up the others: it comes back by itself when it is answered. append
// does not wait longer than ctx lasts, although the client does: it can't take
// back a record whose fate it does not know. If such a record is written after
// all, it is the twin of one that a later owner of the partition writes.
func (rc *recorder) append(ctx context.Context, notes []*note, part func(*note) **kgo.Record) []*note {
	var mu sync.Mutex
	var done []*note
	open, late := 1, false // the first is append itself
	all := make(chan struct{})
	answered := func(n *note, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case n == nil || !ok:
		case late:
			rc.add(n)
		default:
			done = append(done, n)
		}
		if open--; open == 0 {
			close(all)
		}
	}
	for _, n := range notes {
		rec := *part(n)
		if rec == nil {
			done = append(done, n)
		}
	}
	for _, n := range notes {
		if rec := *part(n); rec != nil {
			mu.Lock()
			open++
			mu.Unlock()
			rc.s.client.Produce(ctx, rec, func(_ *kgo.Record, err error) { answered(n, rc.settle(n, part(n), err)) })
		}
	}
	answered(nil, false)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
	case <-ctx.Done():
		return nil
	}
	mu.Lock()
	defer mu.Unlock()
	late = true
	return done
}

// patience is how long a batch waits for all its records, and then for its marks. What
// takes longer does not hold up the next batch.
const patience = 250 * time.Millisecond

// settle takes the answer to a record, and says whether that part of its note is
// done. If it is not, the note comes back in a while.
func (rc *recorder) settle(n *note, rec **kgo.Record, err error) bool {
	switch {
	case errors.Is(err, kerr.MessageTooLarge):
		// Can't be with what was parsed; but if it is, it must not block.
		rc.s.cfg.Log.Error("a record is too large for its topic and is left out", "topic", (*rec).Topic,
			"source", n.j.r.Topic, "partition", n.j.r.Partition, "offset", n.j.r.Offset)
	case err != nil:
		rc.s.cfg.Log.Error("append failed; trying again", "topic", (*rec).Topic, "error", err)
		*rec = &kgo.Record{Topic: (*rec).Topic, Key: (*rec).Key, Value: (*rec).Value, Headers: (*rec).Headers}
		time.AfterFunc(time.Second, func() { rc.add(n) })
		return false
	}
	*rec = nil
	return true
}

// mark marks outcomes that are on record, and has done with them.
func (rc *recorder) mark(ctx context.Context, notes []*note) {
	marks := make([]dedupe.Settlement, len(notes))
	for i, n := range notes {
		marks[i] = *n.mark
	}
	for {
		err := rc.s.cfg.Claims.SettleAll(ctx, marks)
		if err == nil {
			break
		}
		rc.s.claimFailed(ctx, err)
		if rc.s.keeper.wait(ctx) != nil {
			return
		}
	}
	rc.mu.Lock()
	rc.marked = time.Now()
	rc.mu.Unlock()
	for _, n := range notes {
		rc.s.end(n.j, true)
		<-rc.room
	}
}
