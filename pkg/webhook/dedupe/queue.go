package dedupe

import (
	"sync"
	"sync/atomic"
)

type op int

const (
	opClaim op = iota
	opSettle
	opRelease
)

// A call is what its caller waits for: all requests that it has queued together.
type call struct {
	open atomic.Int32 // requests without an answer
	done chan struct{}
}

// A request is part of a call, on its way through a batch.
type request struct {
	call              *call
	op                op
	id                string
	attempt           int
	token             string
	outcome           outcome
	markKey, claimKey string

	claim   Claim
	err     error
	decided atomic.Bool // has an answer
}

// answer hands the caller its answer, and reports false when there is one already: the caller has left.
func (r *request) answer(c Claim, err error) bool {
	if !r.decided.CompareAndSwap(false, true) {
		return false
	}
	r.claim, r.err = c, err
	if r.call.open.Add(-1) == 0 {
		close(r.call.done)
	}
	return true
}

// A queue collects requests while round trips are under way. Its length is bounded by the number of callers.
type queue struct {
	max     int
	mu      sync.Mutex
	filled  *sync.Cond
	waiting []*request
	closed  bool
}

func newQueue(maxBatch int) *queue {
	q := &queue{max: maxBatch}
	q.filled = sync.NewCond(&q.mu)
	return q
}

// put adds requests, or reports false when the queue is closed.
func (q *queue) put(requests ...*request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.waiting = append(q.waiting, requests...)
	q.filled.Signal()
	return true
}

// take waits for requests and returns all there are, up to the limit; nil when the queue is closed.
func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 {
		if q.closed {
			return nil
		}
		q.filled.Wait()
	}
	n := min(len(q.waiting), q.max)
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return batch
}

// drain returns the requests that wait right now.
func (q *queue) drain() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	rest := q.waiting
	q.waiting = nil
	return rest
}

// close refuses new requests and returns those that waited.
func (q *queue) close() []*request {
	q.mu.Lock()
	q.closed = true
	q.filled.Broadcast()
	q.mu.Unlock()
	return q.drain()
}
