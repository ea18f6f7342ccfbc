package appointment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

func free(*Appointment) *Appointment { return nil }

func at(status Status) *Appointment {
	return &Appointment{
		ID: "appointment:1", PatientID: "patient:1", ProviderID: "provider:1", Date: "2026-03-02",
		Start: "10:00", End: "10:30", Type: DefaultType, Status: status, Notes: "n", Location: "l", Version: 4,
	}
}

func valid() Create {
	return Create{ID: "appointment:1", PatientID: "patient:1", ProviderID: "provider:1", Date: "2026-03-02", Start: "10:00", End: "10:30"}
}

// evolve applies facts as if they had been written and read.
func evolve(a *Appointment, facts []fact) *Appointment {
	for i, f := range facts {
		a = Evolve(a, events.Event{Type: f.kind, Time: time.UnixMilli(int64(i)).UTC(), Data: f.data})
	}
	return a
}

func kinds(facts []fact) []string {
	var all []string
	for _, f := range facts {
		all = append(all, f.kind)
	}
	return all
}

// refused fails the test unless err is a refusal of that kind and code.
func refused(t *testing.T, err error, kind Kind, code string) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != kind || r.Code != code {
		t.Fatalf("got %v, want a refusal %s", err, code)
	}
	return r
}

var statuses = []Status{Scheduled, Confirmed, Cancelled, Completed, NoShow}

// Every step from every status to every status, as a move and as a change.
func TestTransitions(t *testing.T) {
	possible := map[Status]map[Status]string{
		Scheduled: {Confirmed: events.Confirmed, Completed: events.Completed, Cancelled: events.Cancelled, NoShow: events.NoShow},
		Confirmed: {Completed: events.Completed, Cancelled: events.Cancelled, NoShow: events.NoShow},
	}
	for _, from := range statuses {
		for _, to := range statuses {
			for _, move := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s to %s, move %v", from, to, move), func(t *testing.T) {
					before := at(from)
					facts, err := DecideChange(before, Change{ID: before.ID, Status: &to, Move: move, Reason: "why"}, free)
					kind, ok := possible[from][to]
					switch {
					case !move && from == to:
						if err != nil || len(facts) != 0 {
							t.Errorf("%v, %v; want nothing to happen", kinds(facts), err)
						}
					case !ok:
						refused(t, err, Conflict, "impossible_transition")
					case err != nil:
						t.Error(err)
					default:
						if !slices.Equal(kinds(facts), []string{kind}) {
							t.Errorf("%v, want %s alone", kinds(facts), kind)
						}
						after := evolve(before, facts)
						if after.Status != to || after.Version != before.Version+1 {
							t.Errorf("then it is %s at version %d", after.Status, after.Version)
						}
						if reason := facts[0].data.Reason; (reason == "why") != (to == Cancelled) {
							t.Errorf("the reason is %q", reason)
						}
					}
				})
			}
		}
	}
}

func TestUnknownStatus(t *testing.T) {
	status := Status("postponed")
	_, err := DecideChange(at(Scheduled), Change{Status: &status}, free)
	if r := refused(t, err, BadInput, "invalid_input"); r.Details[0].Field != "status" {
		t.Errorf("details: %v", r.Details)
	}
}

func TestCreate(t *testing.T) {
	facts, err := DecideCreate(valid(), free)
	if err != nil || !slices.Equal(kinds(facts), []string{events.Created}) {
		t.Fatalf("%v, %v", kinds(facts), err)
	}
	a := evolve(nil, facts)
	if a.Type != DefaultType || a.Status != Scheduled || a.Version != 1 || !a.CreatedAt.Equal(a.UpdatedAt) {
		t.Errorf("made %+v", a)
	}
	c := valid()
	c.Type, c.Notes, c.Location = "emergency", "notes", "room 1"
	facts, _ = DecideCreate(c, free)
	if a := evolve(nil, facts); a.Type != c.Type || a.Notes != c.Notes || a.Location != c.Location {
		t.Errorf("made %+v of %+v", a, c)
	}
}

func TestValidation(t *testing.T) {
	long := func(n int) string { return strings.Repeat("é", n) }
	for _, c := range []struct {
		name   string
		edit   func(*Create)
		fields []string // those complained of
	}{
		{"all well", func(*Create) {}, nil},
		{"no patient", func(c *Create) { c.PatientID = "" }, []string{"patient_id"}},
		{"no provider", func(c *Create) { c.ProviderID = "" }, []string{"provider_id"}},
		{"control character", func(c *Create) { c.PatientID = "a\nb" }, []string{"patient_id"}},
		{"longest id", func(c *Create) { c.PatientID = long(200) }, nil},
		{"too long an id", func(c *Create) { c.PatientID = long(201) }, []string{"patient_id"}},
		{"no date", func(c *Create) { c.Date = "" }, []string{"appointment_date"}},
		{"no such date", func(c *Create) { c.Date = "2026-02-29" }, []string{"appointment_date"}},
		{"leap day", func(c *Create) { c.Date = "2028-02-29" }, nil},
		{"short date", func(c *Create) { c.Date = "2026-3-2" }, []string{"appointment_date"}},
		{"date with a time", func(c *Create) { c.Date = "2026-03-02T10:00" }, []string{"appointment_date"}},
		{"short hour", func(c *Create) { c.Start = "9:00" }, []string{"start_time"}},
		{"seconds", func(c *Create) { c.End = "10:30:00" }, []string{"end_time"}},
		{"24:00", func(c *Create) { c.End = "24:00" }, []string{"end_time"}},
		{"whole day", func(c *Create) { c.Start, c.End = "00:00", "23:59" }, nil},
		{"no length", func(c *Create) { c.End = c.Start }, []string{"end_time"}},
		{"backwards", func(c *Create) { c.Start, c.End = c.End, c.Start }, []string{"end_time"}},
		{"type", func(c *Create) { c.Type = "surgery" }, []string{"appointment_type"}},
		{"longest notes", func(c *Create) { c.Notes = long(10_000) }, nil},
		{"too long notes", func(c *Create) { c.Notes = long(10_001) }, []string{"notes"}},
		{"too long a location", func(c *Create) { c.Location = long(501) }, []string{"location"}},
		{"no UTF-8", func(c *Create) { c.Notes = "\xff" }, []string{"notes"}},
		{"several", func(c *Create) { c.PatientID, c.Date, c.End = "", "x", "y" }, []string{"patient_id", "appointment_date", "end_time"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			create := valid()
			c.edit(&create)
			_, err := DecideCreate(create, free)
			if len(c.fields) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var fields []string
			for _, p := range refused(t, err, BadInput, "invalid_input").Details {
				fields = append(fields, p.Field)
			}
			if !slices.Equal(fields, c.fields) {
				t.Errorf("complains of %v, want %v", fields, c.fields)
			}
		})
	}
}

func TestChange(t *testing.T) {
	p := func(s string) *string { return &s }
	st := func(s Status) *Status { return &s }
	for _, c := range []struct {
		name    string
		from    Status
		change  Change
		kinds   []string
		changes map[string]string // of the updated event
		kind    Kind              // of the refusal, if code is set
		code    string
	}{
		{name: "nothing", from: Scheduled},
		{name: "the same again", from: Confirmed, change: Change{
			PatientID: p("patient:1"), ProviderID: p("provider:1"), Date: p("2026-03-02"), Start: p("10:00"), End: p("10:30"),
			Type: p(DefaultType), Notes: p("n"), Location: p("l"), Status: st(Confirmed),
		}},
		{name: "the same again when final", from: Completed, change: Change{Notes: p("n"), Status: st(Completed)}},
		{name: "a field", from: Scheduled, change: Change{Notes: p("other"), Location: p("l")},
			kinds: []string{events.Updated}, changes: map[string]string{"notes": "other"}},
		{name: "emptied", from: Confirmed, change: Change{Notes: p(""), Location: p("")},
			kinds: []string{events.Updated}, changes: map[string]string{"notes": "", "location": ""}},
		{name: "all fields", from: Scheduled,
			change: Change{Date: p("2026-03-03"), Start: p("11:00"), End: p("12:00"), Type: p("routine"), Notes: p("N"), Location: p("L")},
			kinds:  []string{events.Updated},
			changes: map[string]string{"appointment_date": "2026-03-03", "start_time": "11:00", "end_time": "12:00",
				"appointment_type": "routine", "notes": "N", "location": "L"}},
		{name: "field and status", from: Scheduled, change: Change{Start: p("10:15"), Status: st(Confirmed)},
			kinds: []string{events.Updated, events.Confirmed}, changes: map[string]string{"start_time": "10:15"}},
		{name: "field and impossible status", from: Confirmed, change: Change{Notes: p("x"), Status: st(Scheduled)},
			kind: Conflict, code: "impossible_transition"},
		{name: "field when final", from: Cancelled, change: Change{Notes: p("x")}, kind: Conflict, code: "appointment_final"},
		{name: "invalid field", from: Scheduled, change: Change{End: p("09:00")}, kind: BadInput, code: "invalid_input"},
		{name: "emptied type", from: Scheduled, change: Change{Type: p("")}, kind: BadInput, code: "invalid_input"},
		{name: "another patient", from: Scheduled, change: Change{PatientID: p("patient:2")}, kind: BadInput, code: "invalid_input"},
		{name: "another provider", from: Scheduled, change: Change{ProviderID: p("")}, kind: BadInput, code: "invalid_input"},
		{name: "this version", from: Scheduled, change: Change{IfVersion: 4, Status: st(NoShow), Move: true}, kinds: []string{events.NoShow}},
		{name: "stale", from: Scheduled, change: Change{IfVersion: 3, Notes: p("x")}, kind: Stale, code: "version_mismatch"},
		{name: "stale and nothing to do", from: Scheduled, change: Change{IfVersion: 5}, kind: Stale, code: "version_mismatch"},
		{name: "too long a reason", from: Scheduled, change: Change{Status: st(Cancelled), Reason: strings.Repeat("x", 10_001)},
			kind: BadInput, code: "invalid_input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := at(c.from)
			facts, err := DecideChange(before, c.change, free)
			if c.code != "" {
				refused(t, err, c.kind, c.code)
				return
			}
			if err != nil || !slices.Equal(kinds(facts), c.kinds) {
				t.Fatalf("%v, %v; want %v", kinds(facts), err, c.kinds)
			}
			if *before != *at(c.from) {
				t.Error("the state before was changed")
			}
			for i, f := range facts {
				if f.data.Version != before.Version+1+i {
					t.Errorf("event %d has version %d", i, f.data.Version)
				}
				if f.kind == events.Updated && (!maps.Equal(f.data.Changes, c.changes) || f.data.Status != string(c.from)) {
					t.Errorf("updated with %v at status %s, want %v at %s", f.data.Changes, f.data.Status, c.changes, c.from)
				}
			}
		})
	}
}

// What was recorded when the rules were others can still come to an end.
func TestEarlierRulesDoNotHoldBackTheStatus(t *testing.T) {
	a := at(Scheduled)
	a.Type = "house_call"
	status := Cancelled
	if facts, err := DecideChange(a, Change{Status: &status, Move: true}, free); err != nil || len(facts) != 1 {
		t.Errorf("%v, %v", kinds(facts), err)
	}
	notes := "x"
	_, err := DecideChange(a, Change{Notes: &notes}, free)
	refused(t, err, BadInput, "invalid_input")
}

func TestOverlaps(t *testing.T) {
	for _, c := range []struct {
		start, end string
		date       string
		want       bool
	}{
		{"10:00", "10:30", "", true},
		{"09:00", "11:00", "", true},
		{"10:10", "10:20", "", true},
		{"09:45", "10:01", "", true},
		{"10:29", "10:45", "", true},
		{"09:30", "10:00", "", false}, // they touch
		{"10:30", "11:00", "", false},
		{"10:00", "10:30", "2026-03-03", false},
	} {
		a, b := at(Scheduled), at(Scheduled)
		b.Start, b.End = c.start, c.end
		if c.date != "" {
			b.Date = c.date
		}
		if a.Overlaps(b) != c.want || b.Overlaps(a) != c.want {
			t.Errorf("%s %s-%s overlaps %s-%s: %v, want %v", b.Date, b.Start, b.End, a.Start, a.End, !c.want, c.want)
		}
	}
}

func TestConflictNamesNobody(t *testing.T) {
	taken := func(*Appointment) *Appointment { return at(Confirmed) }
	start, cancelled := "10:10", Cancelled
	_, created := DecideCreate(valid(), taken)
	_, moved := DecideChange(at(Scheduled), Change{Start: &start}, taken)
	_, movedAway := DecideChange(at(Scheduled), Change{Start: &start, Status: &cancelled}, taken)
	for _, err := range []error{created, moved, movedAway} {
		r := refused(t, err, Conflict, "time_conflict")
		if !strings.HasPrefix(r.Message, "Time conflict: ") || strings.Contains(r.Message, "patient:") || strings.Contains(r.Message, "appointment:") {
			t.Errorf("message: %s", r.Message)
		}
	}
	// A step of status alone takes no other time.
	confirmed := Confirmed
	if _, err := DecideChange(at(Scheduled), Change{Status: &confirmed}, taken); err != nil {
		t.Error(err)
	}
}
