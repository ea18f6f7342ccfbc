// Package appointment is the write side: a provider's calendar, folded from the
// log of events, and the commands that are decided against it.
//
// This file and decide.go are the domain: they know nothing of Kafka, HTTP or
// clocks.
package appointment

import (
	"cmp"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// Status is where an appointment is in its life.
type Status string

// The life of an appointment: scheduled → confirmed → completed, scheduled →
// completed, and from both of the first to cancelled or no_show. The last three
// are final.
const (
	Scheduled Status = "scheduled"
	Confirmed Status = "confirmed"
	Completed Status = "completed"
	Cancelled Status = "cancelled"
	NoShow    Status = "no_show"
)

// Label is a value with the name that people are shown.
type Label struct {
	Value string `json:"value"`
	Label string `json:"label"`
}

// Statuses lists all statuses in the order in which they are shown.
func Statuses() []Label {
	return []Label{
		{string(Scheduled), "Scheduled"},
		{string(Confirmed), "Confirmed"},
		{string(Cancelled), "Cancelled"},
		{string(Completed), "Completed"},
		{string(NoShow), "No Show"},
	}
}

// Types lists the types of appointments in the order in which they are shown.
func Types() []Label {
	return []Label{
		{DefaultType, "Consultation"},
		{"follow_up", "Follow-up"},
		{"emergency", "Emergency"},
		{"routine", "Routine Check-up"},
		{"specialist", "Specialist Visit"},
	}
}

// DefaultType is what an appointment is for when nobody said.
const DefaultType = "consultation"

// Active says whether an appointment of this status takes its time slot.
func (s Status) Active() bool { return s == Scheduled || s == Confirmed }

// Appointment is the state folded from an appointment's events. Values are
// never changed once they are shared: Evolve makes a new one.
type Appointment struct {
	ID         string
	PatientID  string
	ProviderID string
	Date       string // YYYY-MM-DD
	Start      string // HH:MM
	End        string // HH:MM
	Type       string
	Status     Status
	Notes      string
	Location   string
	CreatedAt  time.Time
	UpdatedAt  time.Time
	Version    int
}

// Evolve applies an event to the state before it (nil before the first) and
// returns the state after it. It can't fail: what was decided has happened.
func Evolve(before *Appointment, e events.Event) *Appointment {
	after := Appointment{CreatedAt: e.Time, Notes: e.Data.Notes, Location: e.Data.Location}
	if before != nil {
		after = *before
	}
	d := e.Data
	after.ID, after.PatientID, after.ProviderID = d.AppointmentID, d.PatientID, d.ProviderID
	after.Date, after.Start, after.End, after.Type = d.AppointmentDate, d.StartTime, d.EndTime, d.AppointmentType
	after.Status, after.Version, after.UpdatedAt = Status(d.Status), d.Version, e.Time
	if notes, ok := d.Changes["notes"]; ok {
		after.Notes = notes
	}
	if location, ok := d.Changes["location"]; ok {
		after.Location = location
	}
	return &after
}

// Overlaps says whether two appointments of one provider take the same time.
func (a *Appointment) Overlaps(b *Appointment) bool {
	// Times of the form HH:MM compare as text.
	return a.Date == b.Date && a.Start < b.End && b.Start < a.End
}

// Compare orders appointments by date and start, as lists show them.
func Compare(a, b *Appointment) int {
	return cmp.Or(cmp.Compare(a.Date, b.Date), cmp.Compare(a.Start, b.Start), cmp.Compare(a.ID, b.ID))
}
