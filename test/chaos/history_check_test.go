package chaos

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// logged is an event and where it stands.
type logged struct {
	events.Event
	partition int32
	offset    int64
}

func (l logged) String() string {
	return fmt.Sprintf("%s version %d at %d/%d", l.Data.AppointmentID, l.Data.Version, l.partition, l.offset)
}

// accepted returns the try that was answered with success, or nil.
func (c *command) accepted() *try {
	for i := range c.tries {
		if s := c.tries[i].status; s == http.StatusOK || s == http.StatusCreated {
			return &c.tries[i]
		}
	}
	return nil
}

// refused says whether the last answer is a refusal.
func (c *command) refused() bool {
	if len(c.tries) == 0 {
		return false
	}
	last := c.tries[len(c.tries)-1]
	return last.clear() && last.status >= http.StatusBadRequest
}

// had says whether some try ended like this; 0 is without an answer.
func (c *command) had(status int) bool {
	return slices.ContainsFunc(c.tries, func(t try) bool { return t.status == status })
}

// tally counts how commands ended.
type tally struct {
	accepted, refused, conflicts, open, unavailable, broken, late int
	codes                                                         map[string]int // of answers with 503
}

// checkHistory compares the log with what the clients were told, and returns
// what is wrong.
func checkHistory(log []logged, commands []*command, count *tally) []string {
	wrong := checkLog(log)
	byKey := map[string][]logged{} // by fingerprint of a POST, or by the notes of a PUT
	byVersion := map[string]logged{}
	for _, e := range log {
		if e.Idempotency != "" {
			byKey[e.Idempotency] = append(byKey[e.Idempotency], e)
		}
		if notes := e.Data.Changes["notes"]; notes != "" {
			byKey[notes] = append(byKey[notes], e)
		}
		byVersion[versionKey(e.Data.AppointmentID, e.Data.Version)] = e
	}
	for _, c := range commands {
		key := c.key
		if c.fingerprint != "" {
			key = c.fingerprint
		}
		wrong = append(wrong, c.check(byKey[key], byVersion, count)...)
	}
	return wrong
}

func versionKey(id string, version int) string { return fmt.Sprintf("%s/%d", id, version) }

// check compares one command with the events that it left.
func (c *command) check(left []logged, byVersion map[string]logged, count *tally) (wrong []string) {
	fail := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s %s of %q, tries %v: ", c.kind, c.key, c.id, c.statuses())+fmt.Sprintf(format, args...))
	}
	for _, t := range c.tries {
		switch t.status {
		case 0:
			count.broken++
		case http.StatusServiceUnavailable:
			count.unavailable++
			count.codes[t.answer.Code]++
		}
	}
	// A PUT for any version may be carried out by more than one of its tries: it
	// has no key, and others may have changed the appointment in between.
	most := 1
	if c.fingerprint == "" && c.ifVersion == 0 {
		most = len(c.tries)
	}
	if len(left) > most {
		fail("is in the log %d times: %v", len(left), left)
	}
	done := c.accepted()
	switch {
	case done != nil:
		count.accepted++
		if len(left) == 0 {
			fail("was acknowledged and is not in the log")
			return wrong
		}
		a := done.answer.Appointment
		e, ok := byVersion[versionKey(a.ID, a.Version)]
		switch {
		case !ok:
			fail("was answered with version %d of %s, which the log does not have", a.Version, a.ID)
		case e.Data.AppointmentDate != a.Date || e.Data.StartTime != a.Start || e.Data.EndTime != a.End || e.Data.Status != a.Status:
			fail("was answered with %+v, and the log says %+v", a, e.Data)
		case most == 1 && (left[0].Data.AppointmentID != a.ID || left[0].Data.Version != a.Version):
			fail("was answered with version %d of %s, and its event is %v", a.Version, a.ID, left[0])
		}
	case c.refused():
		count.refused++
		if c.had(http.StatusConflict) {
			count.conflicts++
		}
		if len(left) == 0 {
			return wrong
		}
		// A PUT has no key: when it is repeated it meets what its first try did. A
		// POST is known again, unless its first try is carried out last.
		doubtful := c.had(0) || c.had(http.StatusServiceUnavailable)
		if c.fingerprint == "" && doubtful || slices.ContainsFunc(c.tries, try.lingering) {
			count.late++
			return wrong
		}
		fail("was refused and is in the log: %v", left)
	default:
		count.open++
	}
	return wrong
}

func (c *command) statuses() []int {
	var all []int
	for _, t := range c.tries {
		all = append(all, t.status)
	}
	return all
}

// checkLog looks for what must not be in any log.
func checkLog(log []logged) (wrong []string) {
	log = slices.Clone(log)
	slices.SortStableFunc(log, func(a, b logged) int {
		if a.partition != b.partition {
			return int(a.partition - b.partition)
		}
		return int(a.offset - b.offset)
	})
	now := map[string]events.Data{}               // appointments after each event
	booked := map[string]map[string]events.Data{} // by provider and date, by appointment: the active ones
	commandOf, home := map[string]string{}, map[string]int32{}
	ids := map[string]bool{}
	for _, e := range log {
		d := e.Data
		if ids[e.ID] {
			wrong = append(wrong, fmt.Sprintf("event %s is there twice: %v", e.ID, e))
		}
		ids[e.ID] = true
		if p, known := home[d.ProviderID]; known && p != e.partition {
			wrong = append(wrong, fmt.Sprintf("the calendar of %s is in partitions %d and %d", d.ProviderID, p, e.partition))
		}
		home[d.ProviderID] = e.partition
		before, known := now[d.AppointmentID]
		if d.Version != before.Version+1 {
			wrong = append(wrong, fmt.Sprintf("%v follows version %d", e, before.Version))
		}
		if key, _, ok := strings.Cut(e.Idempotency, "."); ok {
			if other, used := commandOf[key]; used && other != e.Command {
				wrong = append(wrong, fmt.Sprintf("an Idempotency-Key made events of two commands, %s and that of %v", other, e))
			}
			commandOf[key] = e.Command
		}
		if known {
			delete(booked[before.ProviderID+before.AppointmentDate], d.AppointmentID)
		}
		now[d.AppointmentID] = d
		if d.Status != "scheduled" && d.Status != "confirmed" {
			continue
		}
		day := d.ProviderID + d.AppointmentDate
		if booked[day] == nil {
			booked[day] = map[string]events.Data{}
		}
		for _, o := range booked[day] {
			if o.StartTime < d.EndTime && d.StartTime < o.EndTime {
				wrong = append(wrong, fmt.Sprintf("%s is double-booked on %s: %s-%s, %v, and %s-%s, %s", d.ProviderID,
					d.AppointmentDate, d.StartTime, d.EndTime, e, o.StartTime, o.EndTime, o.AppointmentID))
			}
		}
		booked[day][d.AppointmentID] = d
	}
	return wrong
}

// The checker sees each kind of violation; a checker that can't fail shows
// nothing.
func TestHistoryChecker(t *testing.T) {
	event := func(offset int64, id, kind, start, end, status string, version int, fingerprint string) logged {
		return logged{events.Event{
			ID: fmt.Sprintf("e%d", offset), Type: kind, Command: fmt.Sprintf("c%d", offset), Idempotency: fingerprint,
			Data: events.Data{AppointmentID: id, ProviderID: "doctor:1", AppointmentDate: "2031-03-01",
				StartTime: start, EndTime: end, Status: status, Version: version},
		}, 0, offset}
	}
	asked := func(fingerprint string, version int, statuses ...int) *command {
		c := &command{kind: "create", key: "k", fingerprint: fingerprint}
		for _, s := range statuses {
			c.tries = append(c.tries, try{status: s, answer: answer{Appointment: shown{
				ID: "a", Date: "2031-03-01", Start: "09:00", End: "09:30", Status: "scheduled", Version: version}}})
		}
		return c
	}
	made := event(0, "a", events.Created, "09:00", "09:30", "scheduled", 1, "k.1")
	for what, one := range map[string]struct {
		log      []logged
		commands []*command
		want     string // "" for none
	}{
		"all is well": {[]logged{made, event(2, "b", events.Created, "09:30", "10:00", "scheduled", 1, "l.1")},
			[]*command{asked("k.1", 1, 503, 201), asked("m.1", 0, 409), asked("l.1", 0, 0)}, ""},
		"a lost command":          {nil, []*command{asked("k.1", 1, 201)}, "is not in the log"},
		"a repeated command":      {[]logged{made, event(1, "b", events.Created, "11:00", "11:30", "scheduled", 1, "k.1")}, []*command{asked("k.1", 1, 0, 201)}, "2 times"},
		"two commands of one key": {[]logged{made, event(1, "b", events.Created, "11:00", "11:30", "scheduled", 1, "k.2")}, nil, "two commands"},
		"a refused command":       {[]logged{made}, []*command{asked("k.1", 0, 503, 409)}, "was refused"},
		"a key that is forgotten": {[]logged{made}, []*command{asked("k.1", 0, 0, 409)}, "was refused"},
		"another version":         {[]logged{made}, []*command{asked("k.1", 2, 201)}, "does not have"},
		"a gap":                   {[]logged{made, event(1, "a", events.Confirmed, "09:00", "09:30", "confirmed", 3, "")}, nil, "follows version 1"},
		"a repeated version":      {[]logged{made, event(1, "a", events.Confirmed, "09:00", "09:30", "confirmed", 1, "")}, nil, "follows version 1"},
		"a double booking":        {[]logged{made, event(1, "b", events.Created, "09:15", "09:45", "scheduled", 1, "")}, nil, "double-booked"},
		"a double booking for a while": {[]logged{made, event(1, "b", events.Created, "09:15", "09:45", "scheduled", 1, ""),
			event(2, "a", events.Cancelled, "09:00", "09:30", "cancelled", 2, "")}, nil, "double-booked"},
		"a time that was given back": {[]logged{made, event(1, "a", events.Cancelled, "09:00", "09:30", "cancelled", 2, ""),
			event(2, "b", events.Created, "09:15", "09:45", "scheduled", 1, "")}, nil, ""},
	} {
		t.Run(what, func(t *testing.T) {
			expect(t, checkHistory(one.log, one.commands, &tally{codes: map[string]int{}}), one.want)
		})
	}
}
