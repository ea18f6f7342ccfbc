package sender

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// shard is what the partitions of one number share: the lanes of the
// subscriptions whose deliveries are there. It lives as long as the sender.
type shard struct {
	s      *Sender
	number int32
	stir   chan struct{} // has an element when run has something to do

	mu      sync.Mutex
	lanes   map[string]*lane
	held    [classes]int  // deliveries that wait in lanes, but for those drawn
	leaving []*job        // to be parked, in order
	alarms  []alarm       // by time
	parked  *partition    // of parked deliveries; nil while it is somebody else's
	seen    int64         // how far it has been looked through
	fetched int64         // where the drawer has fetched last
	drawing bool          // the drawer has been asked
	room    chan struct{} // closed when there may be room again; nil while nobody waits
	looking bool          // for lanes that take room for nothing
	stalled time.Time     // when sending was last found paused for want of Redis or Kafka
}

// alarm is something to be done later, with the shard's lock held.
type alarm struct {
	at time.Time
	do func()
}

func newShard(s *Sender, number int32) *shard {
	return &shard{s: s, number: number, stir: make(chan struct{}, 1), lanes: map[string]*lane{}}
}

// lane returns a subscription's lane; the caller holds mu.
func (sh *shard) lane(id string) *lane {
	ln := sh.lanes[id]
	if ln == nil {
		ln = &lane{sh: sh, id: id, pace: newPace(sh.s.cfg.PerEndpoint, sh.s.cfg.BreakAfter)}
		sh.lanes[id] = ln
		sh.s.metrics.lanes.Inc()
	}
	return ln
}

// at has something done at a time, with the lock held; the caller holds mu.
func (sh *shard) at(t time.Time, do func()) {
	i, _ := slices.BinarySearchFunc(sh.alarms, t, func(a alarm, t time.Time) int { return cmp.Or(a.at.Compare(t), -1) })
	sh.alarms = slices.Insert(sh.alarms, i, alarm{t, do})
	if i == 0 {
		sh.wake()
	}
}

func (sh *shard) wake() {
	select {
	case sh.stir <- struct{}{}:
	default:
	}
}

// lookEvery is how often a shard looks for deliveries that have waited for too
// long, and idleLife how long a lane is kept that has nothing to do.
const (
	lookEvery = 250 * time.Millisecond
	idleLife  = 5 * time.Minute
)

// run parks what is to be parked, and does what is due, until ctx ends.
func (sh *shard) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sh.stir:
		case <-timer.C:
		case <-look.C:
			sh.lookAround()
		}
		for _, j := range sh.due(timer) {
			sh.park(ctx, j)
		}
	}
}

// due does what is due, sets the timer to what comes next, and returns what is to
// be parked.
func (sh *shard) due(timer *time.Timer) []*job {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := time.Now()
	for len(sh.alarms) > 0 && !sh.alarms[0].at.After(now) {
		do := sh.alarms[0].do
		sh.alarms = slices.Delete(sh.alarms, 0, 1)
		do()
	}
	if len(sh.alarms) > 0 {
		timer.Reset(sh.alarms[0].at.Sub(now))
	}
	leaving := sh.leaving
	sh.leaving = nil
	for _, j := range leaving {
		j.busy = true
	}
	return leaving
}

// lookAround parks what has waited for too long, and forgets lanes that have
// nothing to do.
func (sh *shard) lookAround() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := time.Now()
	if !sh.s.keeper.ready() || sh.s.recorder.stuck() { // that is no lane's fault
		sh.stalled = now
	}
	then := now.Add(-sh.s.cfg.LaneWait)
	for id, ln := range sh.lanes {
		if ln.used() {
			ln.idle = time.Time{}
			if sh.stalled.Before(then) && ln.overdue(then) {
				sh.clear(ln)
				sh.tell()
			}
			continue
		}
		if ln.idle.IsZero() {
			ln.idle = now
		}
		if now.Sub(ln.idle) >= idleLife {
			delete(sh.lanes, id)
			sh.s.metrics.lanes.Dec()
			if ln.pace.broken() {
				sh.s.metrics.broken(false)
			}
		}
	}
}

// overdue says whether a delivery has waited since before then, and holds up its
// partition's commits by that.
func (ln *lane) overdue(then time.Time) bool {
	for _, q := range ln.queues() {
		i := slices.IndexFunc(*q, func(j *job) bool { return !j.drawn })
		if i >= 0 && (*q)[i].since.Before(then) {
			return true
		}
	}
	return false
}

// clear parks all that waits in a lane, in order.
func (sh *shard) clear(ln *lane) {
	for _, q := range ln.queues() {
		*q = slices.DeleteFunc(*q, func(j *job) bool {
			if !j.drawn {
				sh.leave(j)
			}
			return !j.drawn
		})
	}
}

// admit takes a delivery up: into its lane if there is room, else it is parked.
// If there is no room, and its lane is not to blame for that, it returns what to
// wait for before asking again.
func (sh *shard) admit(j *job) (wait <-chan struct{}) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if j.p.stopped() {
		sh.end(j, false)
		return nil
	}
	c := classOf(j.d)
	ln := sh.lane(j.d.SubscriptionID)
	leaves := sh.isParked(ln, c)
	if !leaves && ln.held[c] >= sh.s.cfg.Window-sh.held[c] {
		if !sh.toBlame(ln, c) {
			return sh.awaitRoom()
		}
		sh.clear(ln) // else what waits in the lane might be parked behind this one later
		leaves = true
	}
	j.lane = ln
	sh.count(j)
	if leaves {
		sh.leave(j)
		return nil
	}
	ln.push(j)
	sh.start(ln)
	return nil
}

// toBlame says whether a lane holds much more than the others do because of its
// endpoint. If not, it is the sender that is slow, and parking would only make it
// slower; as it would if there is nobody else to be held up.
func (sh *shard) toBlame(ln *lane, c class) bool {
	others := max(len(sh.lanes)-1, 1)
	return ln.held[c] > (sh.held[c]-ln.held[c])/others+sh.s.cfg.Window/8 && ln.blocked(c, time.Now()) && sh.s.company.several(sh.number)
}

// awaitRoom returns what is closed when there may be room; the caller holds mu.
func (sh *shard) awaitRoom() <-chan struct{} {
	if sh.room == nil {
		sh.room = make(chan struct{})
	}
	if !sh.looking {
		sh.looking = true
		sh.at(time.Now(), sh.makeRoom)
	}
	return sh.room
}

// makeRoom parks what waits for endpoints that don't answer, as long as somebody
// waits for room: none of them may hold much, but many together do. The caller
// holds mu.
func (sh *shard) makeRoom() {
	if sh.looking = sh.room != nil && sh.s.company.several(sh.number); !sh.looking {
		return
	}
	now := time.Now()
	// A well endpoint that has to wait for this process answers in less.
	then := now.Add(-sh.s.cfg.LaneWait / 4)
	for _, ln := range sh.lanes {
		if ln.silent(then, now) {
			sh.clear(ln)
		}
	}
	rest := min(max(makeRoomEvery, makeRoomShare*time.Since(now)), sh.s.cfg.LaneWait)
	sh.at(now.Add(rest), sh.makeRoom)
}

// A shard that has no room looks for lanes that take it for nothing every
// makeRoomEvery, or less often if there are so many that it would spend more than one
// in makeRoomShare of its time on that.
const (
	makeRoomEvery = 20 * time.Millisecond
	makeRoomShare = 100
)

// tell tells those that wait that there may be room.
func (sh *shard) tell() {
	if sh.room != nil {
		close(sh.room)
		sh.room = nil
	}
}

func (sh *shard) isParked(ln *lane, c class) bool {
	if sh.parked == nil { // it is drawn by somebody else
		return ln.backlogs[c].leaving > 0
	}
	return ln.backlogs[c].parked(sh.seen)
}

// leave sends a delivery on its way to the parked ones; the caller holds mu.
func (sh *shard) leave(j *job) {
	j.lane.backlogs[classOf(j.d)].leaving++
	sh.leaving = append(sh.leaving, j)
	sh.wake()
}

// park appends a delivery to the parked ones. That settles its record.
func (sh *shard) park(ctx context.Context, j *job) {
	rec := &kgo.Record{Topic: sh.s.cfg.Topics.Parked(), Key: j.r.Key, Value: j.r.Value, Headers: j.r.Headers}
	sh.s.client.Produce(ctx, rec, func(rec *kgo.Record, err error) {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		b := &j.lane.backlogs[classOf(j.d)]
		switch {
		case err == nil:
			b.leaving--
			if rec.Partition == sh.number { // else it is drawn by another shard
				b.written = max(b.written, rec.Offset+1)
			}
			sh.s.metrics.parked.Inc()
			sh.end(j, true)
		case ctx.Err() != nil || j.p.stopped():
			b.leaving--
			sh.end(j, false)
		default:
			sh.s.cfg.Log.Error("append failed; trying again", "topic", rec.Topic, "error", err)
			sh.at(time.Now().Add(time.Second), func() { sh.leaving = append(sh.leaving, j); sh.wake() })
		}
	})
}

// end has done with a delivery; the caller holds mu.
func (sh *shard) end(j *job, settled bool) {
	sh.uncount(j)
	j.p.end(j, settled)
	if j.drawn {
		sh.draw(j.lane, classOf(j.d))
	}
}

// count counts a delivery among what waits in its lane; the caller holds mu.
func (sh *shard) count(j *job) {
	j.counted = true
	c := classOf(j.d)
	j.lane.held[c]++
	sh.held[c]++
}

// uncount makes room for another delivery; the caller holds mu.
func (sh *shard) uncount(j *job) {
	if !j.counted {
		return
	}
	j.counted = false
	c := classOf(j.d)
	j.lane.held[c]--
	sh.held[c]--
	sh.tell()
}

// start begins as many of a lane's deliveries as may be under way; the caller
// holds mu.
func (sh *shard) start(ln *lane) {
	for ln.ready(time.Now()) && sh.s.slots.take(ln, ln.running) {
		j := sh.begin(ln)
		sh.s.metrics.inFlight.Inc()
		sh.s.pool.run(func() { sh.work(ln, j) })
	}
}

// work delivers, one of the lane's deliveries after the other, as long as there
// are any and nobody else waits for the place.
func (sh *shard) work(ln *lane, j *job) {
	for j != nil {
		j = sh.after(ln, j, sh.s.deliver(j))
	}
	sh.s.metrics.inFlight.Dec()
	sh.s.slots.give()
	// Whoever's turn it is may not need the place any more.
	for next := sh.s.slots.next(); next != nil; next = sh.s.slots.next() {
		next.sh.mu.Lock()
		next.sh.start(next)
		next.sh.mu.Unlock()
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.start(ln)
}

// after takes the lesson of a delivery, and returns the next one that may have
// its place.
func (sh *shard) after(ln *lane, j *job, l lesson) *job {
	now := time.Now()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	full := ln.full()
	broken := ln.pace.broken()
	switch l.kind {
	case good:
		ln.pace.succeeded(l.began, now, l.latency, full)
	case bad, overloaded:
		ln.pace.failed(l.began, now, l.kind == overloaded)
	case pausing:
		ln.paused = now.Add(l.wait)
		sh.again(j)
	case refused:
		if j.p.stopped() { // nobody else would give it up
			sh.end(j, false)
			break
		}
		j.busy = false
		sh.at(now.Add(l.wait), func() {
			if !j.p.stopped() { // else it has been given up
				sh.again(j)
				sh.start(ln)
			}
		})
	}
	if now := ln.pace.broken(); now != broken {
		sh.s.metrics.broken(now)
	}
	keep := sh.s.slots.keep(ln.running)
	ln.running--
	if classOf(j.d) == bulk {
		ln.bulkRunning--
	}
	if !keep || !ln.ready(now) {
		return nil
	}
	return sh.begin(ln)
}

// begin returns the delivery whose turn it is; the lane is ready. Under way it does
// not count any more: many endpoints that hang with one request each would take
// the room of all others. There are places for that.
func (sh *shard) begin(ln *lane) *job {
	j := ln.begin()
	sh.uncount(j)
	return j
}

// again puts a delivery back whose turn it was, unless its partition is gone.
func (sh *shard) again(j *job) {
	if j.p.stopped() {
		sh.end(j, false)
		return
	}
	j.busy = false
	if j.drawn {
		j.lane.backlogs[classOf(j.d)].drawn++
	} else {
		sh.count(j)
	}
	j.lane.pushBack(j)
}

// drop gives up what waits of a partition that is taken away; what is under way
// goes on.
func (sh *shard) drop(p *partition) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	of := func(j *job) bool { return j.p == p }
	for _, ln := range sh.lanes {
		for _, q := range ln.queues() {
			*q = slices.DeleteFunc(*q, of)
		}
		ln.failing = failing{} // others may know better by the time it is back
	}
	sh.leaving = slices.DeleteFunc(sh.leaving, func(j *job) bool {
		if of(j) {
			j.lane.backlogs[classOf(j.d)].leaving--
		}
		return of(j)
	})
	for _, j := range p.open() {
		if !j.busy {
			sh.end(j, false)
		}
	}
}

// join takes up a partition that has been assigned.
func (sh *shard) join(p *partition) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if p.parked {
		sh.parked, sh.seen = p, 0
	}
}

// forget forgets a partition after its last commit.
func (sh *shard) forget(p *partition) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.parked != p {
		return
	}
	sh.parked, sh.seen = nil, 0
	for _, ln := range sh.lanes {
		for c := range ln.backlogs {
			ln.backlogs[c] = backlog{leaving: ln.backlogs[c].leaving}
		}
	}
}

// giveUp ends what is still under way of a partition that is taken away.
func (sh *shard) giveUp(p *partition) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, j := range p.open() {
		sh.end(j, j.ended.Load())
	}
}
