package appointment

import (
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// Create asks for a new appointment.
type Create struct {
	ID         string
	PatientID  string
	ProviderID string
	Date       string
	Start      string
	End        string
	Type       string // DefaultType if empty
	Notes      string
	Location   string
}

// Change asks for an appointment to be changed. A nil field stays as it is.
type Change struct {
	ID         string
	PatientID  *string // may only repeat its value
	ProviderID *string // may only repeat its value
	Date       *string
	Start      *string
	End        *string
	Type       *string
	Notes      *string
	Location   *string
	Status     *Status
	Reason     string // why it is cancelled
	// Move is set when the command is nothing but the step to Status, and so
	// must be one: confirming what is confirmed is refused, where a Change that
	// repeats the status changes nothing.
	Move bool
	// IfVersion refuses the change of any other version; 0 takes any.
	IfVersion int
}

// Slot finds an active appointment of the provider that takes some of the same
// time as the given one, which itself is not counted; nil if there is none.
type Slot func(a *Appointment) *Appointment

// fact is what a decision says happened, without who, when and by which command.
type fact struct {
	kind string
	data events.Data
}

// DecideCreate decides on a new appointment.
func DecideCreate(c Create, taken Slot) ([]fact, error) { //nolint:revive // facts are only passed on
	a := &Appointment{
		ID: c.ID, PatientID: c.PatientID, ProviderID: c.ProviderID,
		Date: c.Date, Start: c.Start, End: c.End, Type: c.Type,
		Status: Scheduled, Notes: c.Notes, Location: c.Location, Version: 1,
	}
	if a.Type == "" {
		a.Type = DefaultType
	}
	if err := a.validate(); err != nil {
		return nil, err
	}
	if other := taken(a); other != nil {
		return nil, conflict(other)
	}
	data := a.data()
	data.Notes, data.Location = a.Notes, a.Location
	return []fact{{events.Created, data}}, nil
}

// DecideChange decides on a change of an appointment as it is.
func DecideChange(a *Appointment, c Change, taken Slot) ([]fact, error) { //nolint:revive // facts are only passed on
	if c.IfVersion != 0 && c.IfVersion != a.Version {
		return nil, &Refusal{Kind: Stale, Code: "version_mismatch", Message: fmt.Sprintf(
			"The appointment is at version %d, not %d: read it again and repeat the change", a.Version, c.IfVersion)}
	}
	if err := unchangeable(a, c); err != nil {
		return nil, err
	}
	after := *a
	changes := map[string]string{}
	set := func(name string, field, value *string) {
		if value != nil && *value != *field {
			*field = *value
			changes[name] = *value
		}
	}
	set("appointment_date", &after.Date, c.Date)
	set("start_time", &after.Start, c.Start)
	set("end_time", &after.End, c.End)
	set("appointment_type", &after.Type, c.Type)
	set("notes", &after.Notes, c.Notes)
	set("location", &after.Location, c.Location)

	var facts []fact
	if len(changes) > 0 {
		// What was recorded under earlier rules can still be cancelled.
		if err := after.validate(); err != nil {
			return nil, err
		}
		if !a.Status.Active() {
			return nil, &Refusal{Kind: Conflict, Code: "appointment_final", Message: fmt.Sprintf(
				"A %s appointment can't be changed", a.Status)}
		}
		after.Version++
		data := after.data()
		data.Changes = changes
		facts = append(facts, fact{events.Updated, data})
	}
	if c.Status != nil && (c.Move || *c.Status != a.Status) {
		kind, err := step(a.Status, *c.Status)
		if err != nil {
			return nil, err
		}
		after.Status = *c.Status
		after.Version++
		data := after.data()
		if after.Status == Cancelled {
			if err := text("reason", c.Reason, maxNotes); err != nil {
				return nil, err
			}
			data.Reason = c.Reason
		}
		facts = append(facts, fact{kind, data})
	}
	// Also if it is cancelled in the same breath: between the two events it takes
	// its new time.
	if len(changes) > 0 {
		if other := taken(&after); other != nil {
			return nil, conflict(other)
		}
	}
	return facts, nil
}

func unchangeable(a *Appointment, c Change) error {
	for _, f := range []struct {
		name  string
		value *string
		is    string
	}{{"patient_id", c.PatientID, a.PatientID}, {"provider_id", c.ProviderID, a.ProviderID}} {
		if f.value != nil && *f.value != f.is {
			return Invalid(f.name, "can't be changed; make a new appointment instead")
		}
	}
	return nil
}

// step returns the type of event that moves an appointment from one status to
// another, or a refusal.
func step(from, to Status) (string, error) {
	kinds := map[Status]struct {
		kind string
		from []Status
	}{
		Confirmed: {events.Confirmed, []Status{Scheduled}},
		Completed: {events.Completed, []Status{Scheduled, Confirmed}},
		Cancelled: {events.Cancelled, []Status{Scheduled, Confirmed}},
		NoShow:    {events.NoShow, []Status{Scheduled, Confirmed}},
		Scheduled: {},
	}
	k, ok := kinds[to]
	if !ok {
		return "", Invalid("status", "must be one of scheduled, confirmed, cancelled, completed, no_show")
	}
	if !slices.Contains(k.from, from) {
		return "", &Refusal{Kind: Conflict, Code: "impossible_transition", Message: fmt.Sprintf(
			"A %s appointment can't become %s", from, to)}
	}
	return k.kind, nil
}

func conflict(other *Appointment) error {
	// Whose appointment it is, is nobody else's business.
	return &Refusal{Kind: Conflict, Code: "time_conflict", Message: fmt.Sprintf(
		"Time conflict: the provider has an appointment on %s from %s to %s", other.Date, other.Start, other.End)}
}

const (
	maxID       = 200
	maxNotes    = 10_000
	maxLocation = 500
)

func (a *Appointment) validate() error {
	var problems []Problem
	add := func(err error) {
		if r, ok := err.(*Refusal); ok { //nolint:errorlint // made here
			problems = append(problems, r.Details...)
		}
	}
	add(id("patient_id", a.PatientID))
	add(id("provider_id", a.ProviderID))
	if _, err := time.Parse(time.DateOnly, a.Date); err != nil {
		add(Invalid("appointment_date", "must be a date of the form YYYY-MM-DD"))
	}
	start, end := validTime(a.Start), validTime(a.End)
	if !start {
		add(Invalid("start_time", "must be a time of the form HH:MM"))
	}
	if !end {
		add(Invalid("end_time", "must be a time of the form HH:MM"))
	}
	if start && end && a.End <= a.Start {
		add(Invalid("end_time", "must be after start_time"))
	}
	if !slices.ContainsFunc(Types(), func(l Label) bool { return l.Value == a.Type }) {
		add(Invalid("appointment_type", "must be one of consultation, follow_up, emergency, routine, specialist"))
	}
	add(text("notes", a.Notes, maxNotes))
	add(text("location", a.Location, maxLocation))
	if len(problems) > 0 {
		return InvalidFields(problems)
	}
	return nil
}

func validTime(s string) bool {
	_, err := time.Parse("15:04", s)
	return err == nil && len(s) == len("15:04")
}

func id(field, value string) error {
	if value == "" {
		return Invalid(field, "is required")
	}
	for _, r := range value {
		if unicode.IsControl(r) {
			return Invalid(field, "must not contain control characters")
		}
	}
	return text(field, value, maxID)
}

func text(field, value string, limit int) error {
	switch {
	case !utf8.ValidString(value):
		return Invalid(field, "must be valid UTF-8")
	case utf8.RuneCountInString(value) > limit:
		return Invalid(field, fmt.Sprintf("must have at most %d characters", limit))
	}
	return nil
}

func (a *Appointment) data() events.Data {
	return events.Data{
		AppointmentID: a.ID, PatientID: a.PatientID, ProviderID: a.ProviderID,
		AppointmentDate: a.Date, StartTime: a.Start, EndTime: a.End,
		AppointmentType: a.Type, Status: string(a.Status), Version: a.Version,
	}
}
