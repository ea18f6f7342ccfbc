package appointment

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// Random commands, in batches of which some are never committed, on few
// calendars, so that they are in each other's way. What is kept must be what
// the log says, and what the log says must keep the promises at each prefix.
func TestCommandsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Service{cfg: Config{Topic: "log"}}
		kept := newCalendars()
		var log []*kgo.Record
		var ids []string
		var end int64
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			b := kept.begin()
			var records []*kgo.Record
			for range rapid.IntRange(1, 6).Draw(t, "commands") {
				records = append(records, command(t, s, b, &ids)...)
			}
			if rapid.IntRange(0, 4).Draw(t, "fate") == 0 {
				continue // the transaction failed
			}
			for _, r := range records {
				r.Offset = end
				end++
			}
			end++ // the transaction's marker
			log = append(log, records...)
			// The follower reads it back, sooner or later than the writer knows
			// that it is committed.
			sooner := rapid.Bool().Draw(t, "sooner")
			if sooner {
				kept.fold(records, time.Now())
			}
			b.commit(records)
			if !sooner {
				kept.fold(records, time.Now())
			}
		}
		folded := newCalendars()
		folded.fold(log, time.Now())
		if folded.broken != nil {
			t.Fatal(folded.broken)
		}
		same(t, kept, folded)
		promises(t, log)
	})
}

// command decides one random command on the batch and checks that its events
// do what was asked for and no more.
func command(t *rapid.T, s *Service, b *batch, ids *[]string) []*kgo.Record {
	times := rapid.SampledFrom([]string{"09:00", "09:30", "10:00", "10:15", "10:30", "11:00"})
	dates := rapid.SampledFrom([]string{"2026-03-02", "2026-03-03"})
	texts := rapid.SampledFrom([]string{"", "a", "b\u2028\u0000<é>"})
	m := Meta{Actor: "user:1", Command: "c"}
	if rapid.Bool().Draw(t, "keyed") {
		m.Idempotency = Fingerprint("user:1", "route", fmt.Sprint(rapid.IntRange(0, 20).Draw(t, "key")), nil)
	}
	var (
		before *Appointment
		facts  []fact
		err    error
		id     string
		asked  func(after *Appointment) bool
	)
	if len(*ids) == 0 || rapid.IntRange(0, 2).Draw(t, "create") == 0 {
		id = fmt.Sprintf("appointment:%d", len(*ids))
		c := Create{
			ID: id, PatientID: rapid.SampledFrom([]string{"patient:1", "patient:2"}).Draw(t, "patient"), ProviderID: rapid.SampledFrom([]string{"provider:1", "provider:2"}).Draw(t, "provider"),
			Date: dates.Draw(t, "date"), Start: times.Draw(t, "start"), End: times.Draw(t, "end"), Notes: texts.Draw(t, "notes"), Location: texts.Draw(t, "location"),
		}
		facts, err = DecideCreate(c, b.taken)
		*ids = append(*ids, id)
		asked = func(a *Appointment) bool {
			return a.Date == c.Date && a.Start == c.Start && a.End == c.End && a.Notes == c.Notes && a.Location == c.Location && a.Status == Scheduled
		}
	} else {
		id = rapid.SampledFrom(*ids).Draw(t, "id")
		if before = b.get(id); before == nil {
			return nil // its creation was refused or not committed
		}
		c := Change{ID: id, Move: rapid.Bool().Draw(t, "move"), Reason: "r"}
		optional := func(name string, g *rapid.Generator[string]) *string {
			if rapid.Bool().Draw(t, "with "+name) {
				v := g.Draw(t, name)
				return &v
			}
			return nil
		}
		if !c.Move {
			c.Date, c.Start, c.End = optional("date", dates), optional("start", times), optional("end", times)
			c.Notes, c.Location = optional("notes", texts), optional("location", texts)
		}
		if c.Move || rapid.Bool().Draw(t, "with status") {
			st := rapid.SampledFrom(statuses).Draw(t, "status")
			c.Status = &st
		}
		facts, err = DecideChange(before, c, b.taken)
		is := func(want *string, got, was string) bool {
			return got == was && want == nil || want != nil && got == *want
		}
		asked = func(a *Appointment) bool {
			return is(c.Date, a.Date, before.Date) && is(c.Start, a.Start, before.Start) && is(c.End, a.End, before.End) &&
				is(c.Notes, a.Notes, before.Notes) && is(c.Location, a.Location, before.Location) &&
				(c.Status == nil && a.Status == before.Status || c.Status != nil && a.Status == *c.Status) &&
				a.CreatedAt.Equal(before.CreatedAt) && a.PatientID == before.PatientID && a.ProviderID == before.ProviderID
		}
	}
	if err != nil {
		var r *Refusal
		if !errors.As(err, &r) || len(facts) > 0 {
			t.Fatalf("%v with %v", err, facts)
		}
		return nil
	}
	records, err := s.record(b, m, facts)
	if err != nil {
		t.Fatal(err)
	}
	after := b.get(id)
	if !asked(after) {
		t.Fatalf("%+v became %+v", before, after)
	}
	return records
}

// same compares two calendars in everything that decisions and answers rest on.
func same(t *rapid.T, a, b *calendars) {
	if !reflect.DeepEqual(a.byID, b.byID) {
		t.Fatalf("kept   %v\nfolded %v", dump(a), dump(b))
	}
	if !reflect.DeepEqual(a.keys, b.keys) || !slices.Equal(a.aging, b.aging) {
		t.Fatalf("kept keys %v, folded keys %v", a.keys, b.keys)
	}
	if a.next != b.next {
		t.Fatalf("kept up to %d, folded up to %d", a.next, b.next)
	}
	for _, c := range []*calendars{a, b} {
		want := map[day][]*Appointment{}
		for _, en := range c.byID {
			if en.now.Status.Active() {
				d := day{en.now.ProviderID, en.now.Date}
				want[d] = append(want[d], en.now)
			}
		}
		for _, days := range []map[day][]*Appointment{want, c.byDay} {
			for _, all := range days {
				slices.SortFunc(all, Compare)
			}
		}
		if !reflect.DeepEqual(want, c.byDay) {
			t.Fatalf("the days hold %v, want %v", c.byDay, want)
		}
		indexed(t, c)
	}
}

// indexed compares what the index finds with what all appointments hold, and
// with nothing left over.
func indexed(t *rapid.T, c *calendars) {
	s := &Service{parts: []*calendars{c}}
	everyone := func(*Appointment) bool { return true }
	for _, patient := range []string{"", "patient:1", "patient:2"} {
		for _, provider := range []string{"", "provider:1", "provider:2"} {
			for _, date := range []string{"", "2026-03-02", "2026-03-03"} {
				for _, status := range []Status{"", Scheduled, Cancelled} {
					f := Filter{Date: date, PatientID: patient, ProviderID: provider, Status: status}
					want := s.find(Filter{}, func(a *Appointment) bool { return f.matches(a) })
					if got := s.find(f, everyone); !reflect.DeepEqual(got, want) {
						t.Fatalf("%+v finds %d, want %d", f, len(got), len(want))
					}
				}
			}
		}
	}
	count := map[string]int{}
	for name, entries := range map[string]map[string][]*entry{"provider": c.index.byProvider, "patient": c.index.byPatient} {
		for _, of := range entries {
			count[name] += len(of)
		}
	}
	for _, providers := range c.index.byDate {
		for _, of := range providers {
			count["date"] += len(of)
		}
		if len(providers) == 0 {
			t.Fatal("a date is kept for nothing")
		}
	}
	for _, by := range []string{"provider", "patient", "date"} {
		if count[by] != len(c.byID) {
			t.Fatalf("by %s there are %d of %d appointments", by, count[by], len(c.byID))
		}
	}
}

func dump(c *calendars) []string {
	all := slices.SortedFunc(maps.Values(c.byID), func(a, b *entry) int { return cmp.Compare(a.now.ID, b.now.ID) })
	var texts []string
	for _, en := range all {
		texts = append(texts, fmt.Sprintf("%+v@%v", *en.now, en.offsets))
	}
	return texts
}

// promises checks, at each prefix of the log, that versions have no gap and no
// provider has two at once.
func promises(t *rapid.T, log []*kgo.Record) {
	state := map[string]*Appointment{}
	for i, r := range log {
		e, err := events.Decode(r)
		if err != nil {
			t.Fatal(err)
		}
		before := state[e.Data.AppointmentID]
		switch {
		case before == nil && (e.Type != events.Created || e.Data.Version != 1):
			t.Fatalf("event %d: %s version %d begins an appointment", i, e.Type, e.Data.Version)
		case before != nil && (e.Type == events.Created || e.Data.Version != before.Version+1):
			t.Fatalf("event %d: %s version %d follows version %d", i, e.Type, e.Data.Version, before.Version)
		}
		after := Evolve(before, e)
		state[after.ID] = after
		for _, other := range state {
			if other.ID != after.ID && other.ProviderID == after.ProviderID &&
				other.Status.Active() && after.Status.Active() && other.Overlaps(after) {
				t.Fatalf("event %d: %+v overlaps %+v", i, after, other)
			}
		}
	}
}
