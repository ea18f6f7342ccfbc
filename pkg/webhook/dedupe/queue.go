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

// A request is one call on its way through a batch. Its caller waits for done.
type request struct {
	op                op
	id                string
	attempt           int
	token             string
	outcome           outcome
	markKey, claimKey string

	claim   Claim
	err     error
	decided atomic.Bool // answered or abandoned, whichever came first
	done    chan struct{}
}

// answer hands the caller its answer, and reports false when the caller has left.
func (r *request) answer(c Claim, err error) bool {
	if !r.decided.CompareAndSwap(false, true) {
		return false
	}
	r.claim, r.err = c, err
	close(r.done)
	return true
}

// abandon lets the caller leave, unless the answer has already been given.
func (r *request) abandon() bool { return r.decided.CompareAndSwap(false, true) }

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
