package sender

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// class says how urgent a delivery is.
type class int

const (
	live class = iota // what has just happened, and what one person waits for
	bulk              // a replay
	classes
)

func classOf(d *webhook.Delivery) class {
	if d.Replay() != "" {
		return bulk
	}
	return live
}

// job is a delivery in hand, from when its record is taken up until it is
// settled or given up.
type job struct {
	p       *partition
	r       *kgo.Record
	d       *webhook.Delivery
	tracker *checkpoint.Tracker // that of its partition, or of its lane's backlog
	lane    *lane
	drawn   bool      // from what was parked
	counted bool      // among what waits in its lane
	busy    bool      // under way: it can't just be given up
	since   time.Time // it waits in its lane
	// ended is set when how the delivery ended is on record: it may be committed
	// even if Redis never learns of it.
	ended atomic.Bool
}

// lane is one subscription's share of the sender. Its shard's lock guards it.
//
// A lane holds a bounded number of waiting deliveries. What it can't hold, or
// has held for too long, is parked: it leaves its topic for that of parked
// deliveries, and is drawn from there as fast as the endpoint takes it. While
// anything of a class is parked, new deliveries and due retries of it park
// behind.
type lane struct {
	sh *shard
	id string

	fresh, retries, bulk []*job // wait for their turn
	held                 [classes]int
	running              int
	bulkRunning          int
	turn                 uint // counts what was picked
	backlogs             [classes]backlog

	pace   pace
	tokens int       // requests that the rate limit has granted
	paused time.Time // nothing is begun before
	wire   wire
	wakes  bool      // something will start the lane again
	idle   time.Time // since when there is nothing to do

	failing failing
	opened  atomic.Pointer[opened]

	lined bool // the lock of slots guards it
}

// wire is what of a lane is at its endpoint. A delivery that is under way may also
// wait for Redis, or for room for its outcome, for which the endpoint is not to blame.
type wire struct {
	mu       sync.Mutex
	asking   int       // requests without an answer
	answered time.Time // when a request ended last, however it did
}

func (w *wire) asked() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asking++
}

func (w *wire) ended(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asking--
	w.answered = at
}

// state returns how many requests have no answer, and when one ended last.
func (w *wire) state() (asking int, answered time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asking, w.answered
}

// opened signs with a subscription's secret, as long as that stays the same.
type opened struct {
	sealed string
	signer *webhook.Signer
}

// failing is what is known of how long an endpoint has failed.
type failing struct {
	known bool
	since time.Time // zero if it does not fail
}

// backlog is what is parked of a lane's class. Its records' offsets ascend: those
// that were drawn, then those from `from` on, which are still to be drawn.
type backlog struct {
	leaving int                 // on their way to the topic
	written int64               // after the last that is known to be in the topic
	drawn   int                 // in memory, waiting for their turn
	behind  int                 // seen in the topic and not drawn
	from    int64               // where the first of them is, or may be
	tracker *checkpoint.Tracker // of those drawn
}

// parked says whether anything is parked, given how far the topic has been seen.
func (b *backlog) parked(seen int64) bool {
	return b.leaving > 0 || b.drawn > 0 || b.behind > 0 || b.written > seen
}

// takes says whether the record at an offset, fetched with all from at on, may be
// the next that is to be drawn.
func (b *backlog) takes(at, offset int64) bool {
	return b.behind > 0 && b.from >= at && offset >= b.from
}

// idle says whether nothing that was drawn is open: neither waiting nor under way
// nor being recorded.
func (b *backlog) idle() bool {
	if b.tracker == nil {
		return true
	}
	_, open := b.tracker.Lowest()
	return !open
}

// lowest returns the lowest offset that is not settled, and false if all are.
func (b *backlog) lowest() (int64, bool) {
	if b.tracker != nil {
		if at, ok := b.tracker.Lowest(); ok {
			return at, true
		}
	}
	return b.from, b.behind > 0
}

func (ln *lane) queue(j *job) *[]*job {
	switch {
	case classOf(j.d) == bulk:
		return &ln.bulk
	case j.d.Attempt > 1 && !j.drawn:
		return &ln.retries
	}
	return &ln.fresh
}

func (ln *lane) queues() []*[]*job { return []*[]*job{&ln.fresh, &ln.retries, &ln.bulk} }

// push adds a delivery that waits for its turn.
func (ln *lane) push(j *job) {
	j.since = time.Now()
	q := ln.queue(j)
	*q = append(*q, j)
}

// pushBack returns a delivery whose turn it was to the head.
func (ln *lane) pushBack(j *job) {
	q := ln.queue(j)
	*q = slices.Insert(*q, 0, j)
}

func (ln *lane) waiting() bool { return len(ln.fresh)+len(ln.retries)+len(ln.bulk) > 0 }

// Deliveries of lower urgency get every so many-th turn, so that none starves.
const (
	retryTurn = 4
	bulkTurn  = 16
)

// blocked says whether it is the endpoint that keeps a class of the lane's
// deliveries waiting: it has as many as it may, and most of them are there, not
// counting one that has just begun. Else it is a lack of places, or of what the sender
// itself needs.
func (ln *lane) blocked(c class, now time.Time) bool {
	n, again := ln.pace.allowed(now)
	asking, _ := ln.wire.state()
	full := ln.running >= n && asking+1 >= n-n/4
	return now.Before(again) || now.Before(ln.paused) || full || c == bulk && !ln.roomForBulk()
}

// silent says whether a delivery that was not drawn has waited since before then,
// for an endpoint that has answered nothing since it came.
func (ln *lane) silent(then, now time.Time) bool {
	asking, answered := ln.wire.state()
	for _, q := range ln.queues() {
		i := slices.IndexFunc(*q, func(j *job) bool { return !j.drawn })
		if i < 0 {
			continue
		}
		j := (*q)[i]
		if j.since.Before(then) && answered.Before(j.since) && (asking > 0 || ln.blocked(classOf(j.d), now)) {
			return true
		}
	}
	return false
}

// pick returns the delivery whose turn it is; the lane is ready.
func (ln *lane) pick() *job {
	order := [...]*[]*job{&ln.fresh, &ln.retries, &ln.bulk}
	switch {
	case ln.turn%bulkTurn == bulkTurn-1:
		order[0], order[1], order[2] = order[2], order[0], order[1]
	case ln.turn%retryTurn == retryTurn-1:
		order[0], order[1] = order[1], order[0]
	}
	for _, q := range order {
		if len(*q) == 0 || q == &ln.bulk && !ln.roomForBulk() {
			continue
		}
		j := (*q)[0]
		(*q)[0] = nil
		*q = (*q)[1:]
		ln.turn++
		return j
	}
	return nil
}

// roomForBulk says whether one more replayed delivery may be under way: they
// leave half of the endpoint to what is live.
func (ln *lane) roomForBulk() bool {
	return ln.bulkRunning == 0 || 2*ln.bulkRunning < int(ln.pace.limit)
}

// ready says whether a delivery may begin now. If nothing but time keeps the
// lane from it, it will be started again.
func (ln *lane) ready(now time.Time) bool {
	if len(ln.fresh)+len(ln.retries) == 0 && (len(ln.bulk) == 0 || !ln.roomForBulk()) {
		return false
	}
	n, again := ln.pace.allowed(now)
	if again.Before(ln.paused) {
		again = ln.paused
	}
	if now.Before(again) {
		ln.wake(again)
		return false
	}
	return ln.running < n
}

// begin returns the delivery whose turn it is; the lane is ready.
func (ln *lane) begin() *job {
	j := ln.pick()
	c := classOf(j.d)
	if j.drawn {
		ln.backlogs[c].drawn--
		ln.sh.draw(ln, c)
	}
	j.busy = true
	ln.running++
	if c == bulk {
		ln.bulkRunning++
	}
	return j
}

// wake starts the lane again at that time.
func (ln *lane) wake(at time.Time) {
	if ln.wakes {
		return
	}
	ln.wakes = true
	ln.sh.at(at, func() { ln.wakes = false; ln.sh.start(ln) })
}

// full says whether as many requests are under way as the endpoint may have, or as
// replays may.
func (ln *lane) full() bool {
	return ln.running >= int(ln.pace.limit) || len(ln.bulk) > 0 && !ln.roomForBulk()
}

// used says whether the lane has anything in hand.
func (ln *lane) used() bool {
	return ln.running > 0 || ln.held[live]+ln.held[bulk] > 0 || ln.waiting() || ln.wakes ||
		ln.backlogs[live].parked(ln.sh.seen) || ln.backlogs[bulk].parked(ln.sh.seen) ||
		!ln.backlogs[live].idle() || !ln.backlogs[bulk].idle()
}

// takeToken takes one of the requests that the rate limit has granted.
func (ln *lane) takeToken() bool {
	ln.sh.mu.Lock()
	defer ln.sh.mu.Unlock()
	if ln.tokens == 0 {
		return false
	}
	ln.tokens--
	return true
}

func (ln *lane) addTokens(n int) {
	ln.sh.mu.Lock()
	defer ln.sh.mu.Unlock()
	ln.tokens += n
}

func (ln *lane) failingSince() failing {
	ln.sh.mu.Lock()
	defer ln.sh.mu.Unlock()
	return ln.failing
}

func (ln *lane) setFailing(f failing) {
	ln.sh.mu.Lock()
	defer ln.sh.mu.Unlock()
	ln.failing = f
}
