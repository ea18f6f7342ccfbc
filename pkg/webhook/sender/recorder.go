package sender

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// recorder writes outcomes down, many at a time: first the hand-overs, then the
// attempts, then the marks, each acknowledged before the next. Whoever finds an
// attempt's record so knows that the delivery was handed over, also when Redis
// has to be rebuilt from it. While one batch is on its way the next gathers.
//
// Its length is bounded by the partitions' windows.
type recorder struct {
	s    *Sender
	stir chan struct{} // has an element when there may be something to record

	mu      sync.Mutex
	waiting []*note
}

// note is an outcome to be written down. Parts that are nil are done, or not
// needed.
type note struct {
	j        *job
	handOver *kgo.Record
	attempt  *kgo.Record
	mark     *dedupe.Settlement
}

// recorders is how many batches are on their way at once.
const recorders = 3

func newRecorder(s *Sender) *recorder { return &recorder{s: s, stir: make(chan struct{}, recorders)} }

func (rc *recorder) add(notes ...*note) {
	if len(notes) == 0 {
		return
	}
	rc.mu.Lock()
	rc.waiting = append(rc.waiting, notes...)
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
	var workers sync.WaitGroup
	for range recorders {
		workers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-rc.stir:
					rc.record(ctx, rc.take())
				}
			}
		})
	}
	workers.Wait()
}

// record takes a batch as far as it goes.
func (rc *recorder) record(ctx context.Context, notes []*note) {
	notes = rc.append(ctx, notes, func(n *note) **kgo.Record { return &n.handOver })
	notes = rc.append(ctx, notes, func(n *note) **kgo.Record { return &n.attempt })
	rc.mark(ctx, notes)
}

// append appends one part of each note and returns those of which it is done. It
// does not wait longer than ctx lasts, although the client does: it can't take
// back a record whose fate it does not know. If such a record is written after
// all, it is the twin of one that a later owner of the partition writes.
func (rc *recorder) append(ctx context.Context, notes []*note, part func(*note) **kgo.Record) []*note {
	failed := make([]error, len(notes))
	acknowledged := make(chan struct{})
	var pending atomic.Int64
	pending.Store(1)
	answered := func() {
		if pending.Add(-1) == 0 {
			close(acknowledged)
		}
	}
	for i, n := range notes {
		if rec := *part(n); rec != nil {
			pending.Add(1)
			rc.s.client.Produce(ctx, rec, func(_ *kgo.Record, err error) { failed[i] = err; answered() })
		}
	}
	answered()
	select {
	case <-acknowledged:
	case <-ctx.Done():
		return nil
	}
	done := notes[:0:0]
	var again []*note
	for i, n := range notes {
		rec := part(n)
		switch {
		case failed[i] == nil:
			*rec = nil
			done = append(done, n)
		case errors.Is(failed[i], kerr.MessageTooLarge):
			// Can't be with what was parsed; but if it is, it must not block.
			rc.s.cfg.Log.Error("a record is too large for its topic and is left out", "topic", (*rec).Topic,
				"source", n.j.r.Topic, "partition", n.j.r.Partition, "offset", n.j.r.Offset)
			*rec = nil
			done = append(done, n)
		default:
			if len(again) == 0 {
				rc.s.cfg.Log.Error("append failed; trying again", "topic", (*rec).Topic, "error", failed[i])
			}
			*rec = &kgo.Record{Topic: (*rec).Topic, Key: (*rec).Key, Value: (*rec).Value, Headers: (*rec).Headers}
			again = append(again, n)
		}
	}
	if len(again) > 0 {
		time.AfterFunc(time.Second, func() { rc.add(again...) })
	}
	return done
}

// mark marks what is on record, and has done with it.
func (rc *recorder) mark(ctx context.Context, notes []*note) {
	var marks []dedupe.Settlement
	for _, n := range notes {
		if n.mark != nil {
			n.j.ended.Store(n.mark.Outcome != webhook.Failed)
			marks = append(marks, *n.mark)
		}
	}
	for len(marks) > 0 {
		err := rc.s.cfg.Claims.SettleAll(ctx, marks)
		if err == nil {
			break
		}
		rc.s.claimFailed(ctx, err)
		if rc.s.keeper.wait(ctx) != nil {
			return
		}
	}
	for _, n := range notes {
		sh := n.j.p.shard
		sh.mu.Lock()
		sh.end(n.j, true)
		sh.mu.Unlock()
	}
}
