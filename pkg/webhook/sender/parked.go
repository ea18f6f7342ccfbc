package sender

import (
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
)

// see takes up a parked delivery, or notes where it is.
func (sh *shard) see(p *partition, j *job) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if p.stopped() {
		return
	}
	sh.seen = j.r.Offset + 1
	c := classOf(j.d)
	ln := sh.lane(j.d.SubscriptionID)
	b := &ln.backlogs[c]
	if b.behind == 0 && b.drawn < ln.appetite() && sh.s.drawer.room() {
		sh.drawn(ln, j)
		sh.start(ln)
		return
	}
	if b.behind++; b.behind == 1 {
		b.from = j.r.Offset
		sh.draw(ln, c)
	}
}

// pass notes that a record of the parked ones is nobody's.
func (sh *shard) pass(p *partition, r *kgo.Record) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if !p.stopped() {
		sh.seen = r.Offset + 1
	}
}

// drawn adds a delivery that was drawn from the parked ones.
func (sh *shard) drawn(ln *lane, j *job) {
	b := &ln.backlogs[classOf(j.d)]
	if b.tracker == nil {
		b.tracker = checkpoint.New()
	}
	// What is fetched with it would stay in memory as long as it waits.
	r := clone(j.r)
	d, err := parse(r)
	if err != nil {
		return // not possible: it has been parsed before
	}
	j.r, j.d, j.lane, j.drawn, j.tracker = r, d, ln, true, b.tracker
	b.tracker.Begin(j.r)
	if j.p.begin(j) {
		b.drawn++
		ln.push(j)
	}
}

// clone returns a record that shares no memory with what it was fetched with.
func clone(r *kgo.Record) *kgo.Record {
	own := *r
	buf := make([]byte, 0, size(r))
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		n := len(buf)
		buf = append(buf, b...)
		return buf[n:len(buf):len(buf)]
	}
	own.Key, own.Value, own.Headers = keep(r.Key), keep(r.Value), slices.Clone(r.Headers)
	for i, h := range r.Headers {
		own.Headers[i].Value = keep(h.Value)
		own.Headers[i].Key = strings.Clone(h.Key)
	}
	return &own
}

// appetite is how many parked deliveries a lane holds: enough for the requests it
// makes while more are fetched.
func (ln *lane) appetite() int { return min(max(4*int(ln.pace.limit), 64), 1024) }

// hungry says whether little of what is parked is left in the lane.
func (ln *lane) hungry(c class) bool {
	b := &ln.backlogs[c]
	return b.behind > 0 && (b.idle() || 2*b.drawn <= ln.appetite() && ln.sh.s.drawer.ample())
}

// draw has more fetched of what is parked, if the lane is hungry; the caller
// holds mu.
func (sh *shard) draw(ln *lane, c class) {
	if !sh.drawing && ln.hungry(c) {
		sh.drawing = true
		sh.s.drawer.ask(sh)
	}
}

// hungriest returns where to fetch parked deliveries next, and false if no lane is
// hungry; the caller holds mu.
func (sh *shard) hungriest() (at int64, found bool) {
	if sh.parked == nil || sh.parked.stopped() {
		return 0, false
	}
	// From the lowest place behind the last one, around: each lane has its turn.
	lowest, next := int64(math.MaxInt64), int64(math.MaxInt64)
	for _, ln := range sh.lanes {
		for c := range classes {
			b := &ln.backlogs[c]
			if b.behind > 0 && b.from >= sh.seen {
				sh.expired(ln, b.behind)
				b.behind = 0
			}
			if ln.hungry(c) {
				lowest = min(lowest, b.from)
				if b.from > sh.fetched {
					next = min(next, b.from)
				}
			}
		}
	}
	if next == math.MaxInt64 {
		next = lowest
	}
	sh.fetched = next
	return next, lowest != math.MaxInt64
}

// expired tells of parked deliveries that Kafka has deleted.
func (sh *shard) expired(ln *lane, n int) {
	sh.s.cfg.Log.Error("parked deliveries were deleted before they were sent: the topic's retention is too short for the backlog",
		"subscription_id", ln.id, "partition", sh.number, "deliveries", n)
}

// feed gives lanes what was fetched from at on and before next, as far as they
// have room and need nothing from before. It says whether some are still hungry.
func (sh *shard) feed(p *partition, records []*kgo.Record, at, next int64) (more bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if p.stopped() {
		return true // it may be back already, with lanes that think they have asked
	}
	left := map[*backlog]bool{} // what has more that was fetched and not taken
	for _, r := range records {
		ln := sh.lanes[string(r.Key)]
		// Most are of lanes that take nothing of it: they are not even parsed.
		if ln == nil || r.Attrs.IsControl() || !slices.ContainsFunc([]class{live, bulk}, func(c class) bool {
			b := &ln.backlogs[c]
			return b.takes(at, r.Offset) && !left[b]
		}) {
			continue
		}
		d, err := parse(r)
		if err != nil { // it was dealt with when it was seen
			continue
		}
		switch b := &ln.backlogs[classOf(d)]; {
		case !b.takes(at, r.Offset) || left[b]:
		case b.drawn >= ln.appetite() || !b.idle() && !sh.s.drawer.room():
			left[b] = true
			b.from = r.Offset
		default:
			b.behind--
			b.from = r.Offset + 1
			sh.drawn(ln, &job{p: p, r: r, d: d})
		}
	}
	for _, ln := range sh.lanes {
		for c := range classes {
			b := &ln.backlogs[c]
			if b.behind > 0 && b.from >= at && b.from < next && !left[b] {
				b.from = next
			}
		}
		sh.start(ln)
	}
	// Only now: lanes that were started would have asked besides.
	sh.drawing = false
	for _, ln := range sh.lanes {
		for c := range classes {
			sh.drawing = sh.drawing || ln.hungry(c)
		}
	}
	return sh.drawing
}

// settled returns the lowest offset of a partition of parked deliveries that is
// not settled, and false if none has been seen.
func (sh *shard) settled(p *partition) (at int64, seen bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.parked != p {
		return 0, false
	}
	at = sh.seen
	for _, ln := range sh.lanes {
		for c := range ln.backlogs {
			if lowest, open := ln.backlogs[c].lowest(); open {
				at = min(at, lowest)
			}
		}
	}
	return at, at > 0
}
