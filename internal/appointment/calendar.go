package appointment

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// keyLife is how long the answer to an Idempotency-Key is remembered.
const keyLife = 24 * time.Hour

// calendars is the state of one partition of the log: the calendars of the
// providers whose events it holds.
type calendars struct {
	mu    sync.RWMutex
	byID  map[string]*entry
	index index
	byDay map[day][]*Appointment // the active ones, in no order
	keys  map[string]keyed
	// aging are the keys, the oldest first.
	aging []string
	// next is the offset after the last event applied.
	next int64
	// broken is why the partition takes no commands: an event could not be read,
	// and decisions that leave it out would be wrong.
	broken error
}

type day struct{ provider, date string }

// entry is an appointment and where its events stand in the log.
type entry struct {
	now     *Appointment
	offsets []int64
}

// keyed is what a command with an Idempotency-Key made.
type keyed struct {
	request string // fingerprint of what was asked for
	at      time.Time
	made    *Appointment
}

// alive says whether the key is still remembered; it is forgotten some time
// after.
func (k keyed) alive(now time.Time) bool { return now.Sub(k.at) <= keyLife }

func newCalendars() *calendars {
	return &calendars{byID: map[string]*entry{}, index: newIndex(), byDay: map[day][]*Appointment{}, keys: map[string]keyed{}}
}

// fold applies records of the log. Those applied already, by the writer when it
// committed them, are passed over.
func (c *calendars) fold(records []*kgo.Record, now time.Time) {
	decoded := make([]events.Event, 0, len(records))
	var broken error
	for _, r := range records {
		e, err := events.Decode(r)
		if err == nil && !events.Known(e.Type) {
			// What a newer version recorded may well concern the calendar.
			err = fmt.Errorf("unknown type %q: this version is too old for the log", e.Type)
		}
		if err != nil {
			broken = fmt.Errorf("%s[%d]@%d: %w", r.Topic, r.Partition, r.Offset, err)
			break
		}
		decoded = append(decoded, e)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return
	}
	c.broken = broken
	for i, e := range decoded {
		if r := records[i]; r.Offset >= c.next {
			c.apply(e, r.Offset)
			c.next = r.Offset + 1
		}
	}
	c.forget(now)
}

// apply changes the state by one event; c.mu is held.
func (c *calendars) apply(e events.Event, offset int64) {
	en := c.byID[e.Data.AppointmentID]
	if en == nil {
		en = &entry{}
		c.byID[e.Data.AppointmentID] = en
	}
	before := en.now
	en.now = Evolve(before, e)
	en.offsets = append(en.offsets, offset)
	c.index.move(en, before, en.now)
	if before != nil && before.Status.Active() {
		c.free(before)
	}
	if en.now.Status.Active() {
		d := day{en.now.ProviderID, en.now.Date}
		c.byDay[d] = append(c.byDay[d], en.now)
	}
	if key, request, ok := splitFingerprint(e.Idempotency); ok {
		if _, known := c.keys[key]; !known {
			c.aging = append(c.aging, key)
		}
		// A command that makes two events is remembered with the last.
		c.keys[key] = keyed{request, e.Time, en.now}
	}
}

func (c *calendars) free(a *Appointment) {
	d := day{a.ProviderID, a.Date}
	rest := slices.DeleteFunc(c.byDay[d], func(o *Appointment) bool { return o == a })
	if len(rest) == 0 {
		delete(c.byDay, d)
		return
	}
	c.byDay[d] = rest
}

// forget drops keys that are too old; c.mu is held.
func (c *calendars) forget(now time.Time) {
	n := 0
	for n < len(c.aging) && !c.keys[c.aging[n]].alive(now) {
		delete(c.keys, c.aging[n])
		n++
	}
	if n > 0 {
		c.aging = slices.Clone(c.aging[n:])
	}
}

// batch is what the commands of one transaction decide on: the calendars, and
// on top what the batch's earlier commands decided.
type batch struct {
	base    *calendars
	pending map[string]*Appointment
	keys    map[string]keyed
	events  []events.Event
}

func (c *calendars) begin() *batch {
	return &batch{base: c, pending: map[string]*Appointment{}, keys: map[string]keyed{}}
}

func (b *batch) get(id string) *Appointment {
	if a := b.pending[id]; a != nil {
		return a
	}
	b.base.mu.RLock()
	defer b.base.mu.RUnlock()
	if en := b.base.byID[id]; en != nil {
		return en.now
	}
	return nil
}

func (b *batch) key(key string) (keyed, bool) {
	if k, ok := b.keys[key]; ok {
		return k, true
	}
	b.base.mu.RLock()
	defer b.base.mu.RUnlock()
	k, ok := b.base.keys[key]
	return k, ok
}

// taken is the Slot of decisions.
func (b *batch) taken(a *Appointment) *Appointment {
	for _, other := range b.pending {
		if other.ID != a.ID && other.ProviderID == a.ProviderID && other.Status.Active() && other.Overlaps(a) {
			return other
		}
	}
	b.base.mu.RLock()
	defer b.base.mu.RUnlock()
	for _, other := range b.base.byDay[day{a.ProviderID, a.Date}] {
		if other.ID != a.ID && b.pending[other.ID] == nil && other.Overlaps(a) {
			return other
		}
	}
	return nil
}

// add makes an event part of the batch.
func (b *batch) add(e events.Event) {
	after := Evolve(b.get(e.Data.AppointmentID), e)
	b.pending[after.ID] = after
	if key, request, ok := splitFingerprint(e.Idempotency); ok {
		b.keys[key] = keyed{request, e.Time, after}
	}
	b.events = append(b.events, e)
}

// commit makes the batch's events part of the state. They stand at the records'
// offsets.
func (b *batch) commit(records []*kgo.Record) {
	b.base.mu.Lock()
	defer b.base.mu.Unlock()
	for i, r := range records {
		if r.Offset >= b.base.next { // else it has been read back already
			b.base.apply(b.events[i], r.Offset)
			b.base.next = r.Offset + 1
		}
	}
	if len(records) > 0 {
		b.base.forget(records[len(records)-1].Timestamp)
	}
}
