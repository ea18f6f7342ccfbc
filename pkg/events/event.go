// Package events is the fact: what can happen to an appointment, how it is
// written to the log and how it is read back.
//
// The log is a Kafka topic of CloudEvents 1.0 in the Kafka binding's binary
// mode: attributes are ce_* headers, the value is the JSON of Data. A record's
// key is the provider's id, so that one provider's calendar is one ordered
// stream.
package events

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The types of events, as written on the log and in webhooks, for ever.
const (
	Created   = "appointment.created"
	Updated   = "appointment.updated"
	Cancelled = "appointment.cancelled"
	Confirmed = "appointment.confirmed"
	Completed = "appointment.completed"
	// NoShow is recorded in the log and has no webhook.
	NoShow = "appointment.no_show"
)

// Kind describes a type of event that a webhook can be subscribed to.
type Kind struct {
	Value       string `json:"value"`
	Label       string `json:"label"`
	Description string `json:"description"`
}

// Catalogue lists the types that webhooks exist for, in the order in which
// they are shown.
func Catalogue() []Kind {
	return []Kind{
		{Created, "Appointment Created", "Triggered when a new appointment is created"},
		{Updated, "Appointment Updated", "Triggered when an appointment is updated"},
		{Cancelled, "Appointment Cancelled", "Triggered when an appointment is cancelled"},
		{Confirmed, "Appointment Confirmed", "Triggered when an appointment is confirmed"},
		{Completed, "Appointment Completed", "Triggered when an appointment is marked as completed"},
	}
}

// Known says whether this version knows the type of event.
func Known(eventType string) bool {
	switch eventType {
	case Created, Updated, Cancelled, Confirmed, Completed, NoShow:
		return true
	}
	return false
}

// Event is one thing that happened to one appointment.
type Event struct {
	// ID is unique per event (a UUID); delivery ids derive from it.
	ID string
	// Type is one of the constants above, or one of a newer version.
	Type string
	// Time is when it happened, UTC, in milliseconds.
	Time time.Time
	// Actor is the id of the user whose command it was.
	Actor string
	// Command is the id of that command, minted where it entered the system.
	Command string
	// Idempotency is the fingerprint of the command's Idempotency-Key, or empty.
	Idempotency string
	// Data is the appointment as it stands after the event.
	Data Data
}

// Data is the value of an event: the appointment as it stands after it, and
// what changed.
type Data struct {
	AppointmentID   string `json:"appointment_id"`
	PatientID       string `json:"patient_id"`
	ProviderID      string `json:"provider_id"`
	AppointmentDate string `json:"appointment_date"` // YYYY-MM-DD
	StartTime       string `json:"start_time"`       // HH:MM
	EndTime         string `json:"end_time"`         // HH:MM
	AppointmentType string `json:"appointment_type"`
	Status          string `json:"status"`
	// Version counts the appointment's events: 1, 2, 3 …
	Version int `json:"version"`
	// Notes and Location are set on created events only; later ones carry them
	// in Changes.
	Notes    string `json:"notes,omitempty"`
	Location string `json:"location,omitempty"`
	// Changes holds, on updated events, each changed field and its new value.
	Changes map[string]string `json:"changes,omitempty"`
	// Reason is why the appointment was cancelled; cancelled events only.
	Reason string `json:"reason,omitempty"`

	// Unknown holds fields of a newer version, so that they survive.
	Unknown map[string]jsontext.Value `json:",embed"`
}
