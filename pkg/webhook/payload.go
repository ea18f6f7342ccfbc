package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// payloadData is the data of a webhook: the seven common fields, and what the
// type of event adds.
type payloadData struct {
	AppointmentID   string            `json:"appointment_id"`
	PatientID       string            `json:"patient_id"`
	ProviderID      string            `json:"provider_id"`
	AppointmentDate string            `json:"appointment_date"`
	StartTime       string            `json:"start_time"`
	EndTime         string            `json:"end_time"`
	AppointmentType string            `json:"appointment_type"`
	Status          string            `json:"status,omitempty"`
	Changes         map[string]string `json:"changes,omitempty"`
	Reason          *string           `json:"reason,omitempty"`
}

// idPlaceholder stands for the delivery id while a payload is rendered; it has
// the id's length and no character that JSON escapes.
const idPlaceholder = "00000000-0000-0000-0000-000000000000"

// Payload is an event rendered for receivers, lacking only the delivery id.
// The router renders it once per event, whatever the number of subscriptions.
type Payload struct{ head, tail []byte }

// Render makes the payload of an event.
func Render(e events.Event) (Payload, error) { return render(e, false) }

// RenderTest makes the payload of an example of a type of event, as of now. It
// is marked as a test and its data is obviously invented.
func RenderTest(eventType string, now time.Time) (Payload, error) {
	e := events.Event{Type: eventType, Time: now, Data: events.Data{
		AppointmentID: "appointment:00000000-0000-4000-8000-000000000000", PatientID: "patient:example", ProviderID: "provider:example",
		AppointmentDate: "2000-01-01", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation", Status: "scheduled",
	}}
	switch eventType {
	case events.Updated:
		e.Data.Changes = map[string]string{"start_time": "10:00", "end_time": "10:30"}
	case events.Cancelled:
		e.Data.Status, e.Data.Reason = "cancelled", "An example"
	case events.Confirmed:
		e.Data.Status = "confirmed"
	case events.Completed:
		e.Data.Status = "completed"
	}
	return render(e, true)
}

func render(e events.Event, test bool) (Payload, error) {
	d := payloadData{
		AppointmentID: e.Data.AppointmentID, PatientID: e.Data.PatientID, ProviderID: e.Data.ProviderID,
		AppointmentDate: e.Data.AppointmentDate, StartTime: e.Data.StartTime, EndTime: e.Data.EndTime,
		AppointmentType: e.Data.AppointmentType,
	}
	if e.Type != events.Created {
		d.Status = e.Data.Status
	}
	if e.Type == events.Updated {
		d.Changes = e.Data.Changes
	}
	if e.Type == events.Cancelled {
		d.Reason = &e.Data.Reason
	}
	body, err := json.Marshal(struct {
		Event      string      `json:"event"`
		Timestamp  string      `json:"timestamp"`
		DeliveryID string      `json:"delivery_id"`
		Data       payloadData `json:"data"`
		Test       bool        `json:"test,omitempty"`
	}{e.Type, e.Time.UTC().Format(time.RFC3339), idPlaceholder, d, test})
	if err != nil {
		return Payload{}, fmt.Errorf("render event %s: %w", e.ID, err)
	}
	// The first match is ours: before it stand the type, which is of the
	// catalogue, and the time.
	head, tail, _ := bytes.Cut(body, []byte(idPlaceholder))
	return Payload{head, tail}, nil
}

// Body returns the request's body for a delivery. id must be a UUID.
func (p Payload) Body(id string) []byte {
	body := make([]byte, 0, len(p.head)+len(id)+len(p.tail))
	return append(append(append(body, p.head...), id...), p.tail...)
}
