package events

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	source      = "/arsmedicatech/appointments"
	contentType = "application/json"
	// SchemaVersion is the shape of Data that this version writes.
	SchemaVersion = 1
)

// ErrUnreadable is wrapped by every error of Decode: the record is not an
// event that this or any newer version can have written.
var ErrUnreadable = errors.New("unreadable event")

// Encode returns the event as a record for the topic. Its partition is left to
// the caller: one calendar lives in one partition, see Partition.
func (e Event) Encode(topic string) (*kgo.Record, error) {
	value, err := json.Marshal(e.Data, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	headers := []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(e.ID)},
		{Key: "ce_source", Value: []byte(source)},
		{Key: "ce_type", Value: []byte(e.Type)},
		{Key: "ce_time", Value: []byte(e.Time.UTC().Format(time.RFC3339Nano))},
		{Key: "ce_subject", Value: []byte(e.Data.AppointmentID)},
		{Key: "content-type", Value: []byte(contentType)},
		{Key: "ce_partitionkey", Value: []byte(e.Data.ProviderID)},
		{Key: "ce_schemaversion", Value: strconv.AppendInt(nil, SchemaVersion, 10)},
		{Key: "ce_actor", Value: []byte(e.Actor)},
		{Key: "ce_commandid", Value: []byte(e.Command)},
	}
	if e.Idempotency != "" {
		headers = append(headers, kgo.RecordHeader{Key: "ce_idempotency", Value: []byte(e.Idempotency)})
	}
	return &kgo.Record{Topic: topic, Key: []byte(e.Data.ProviderID), Value: value, Headers: headers, Timestamp: e.Time}, nil
}

// Type returns a record's type of event without decoding its value, or "" if
// it is no CloudEvent.
func Type(r *kgo.Record) string { return header(r, "ce_type") }

// Decode reads an event. One whose type this version does not know is returned as it is:
// the caller decides whether it can pass it over. Errors wrap ErrUnreadable and
// never contain the record's data.
func Decode(r *kgo.Record) (Event, error) {
	var e Event
	versionSet := false
	for _, h := range r.Headers {
		switch h.Key {
		case "ce_id":
			e.ID = string(h.Value)
		case "ce_type":
			e.Type = string(h.Value)
		case "ce_time":
			t, err := time.Parse(time.RFC3339Nano, string(h.Value))
			if err != nil {
				return e, fmt.Errorf("%w: ce_time is not RFC 3339", ErrUnreadable)
			}
			e.Time = t.UTC()
		case "ce_actor":
			e.Actor = string(h.Value)
		case "ce_commandid":
			e.Command = string(h.Value)
		case "ce_idempotency":
			e.Idempotency = string(h.Value)
		case "ce_schemaversion":
			v, err := strconv.Atoi(string(h.Value))
			if err != nil || v < 1 {
				return e, fmt.Errorf("%w: ce_schemaversion is not a positive number", ErrUnreadable)
			}
			versionSet = true
		}
	}
	if e.ID == "" || e.Type == "" || e.Time.IsZero() || !versionSet {
		return e, fmt.Errorf("%w: ce_id, ce_type, ce_time and ce_schemaversion are required", ErrUnreadable)
	}
	if !Known(e.Type) {
		return e, nil
	}
	// The error is left out: it may quote the value.
	if json.Unmarshal(r.Value, &e.Data) != nil {
		return e, fmt.Errorf("%w: the value is not the JSON of an appointment", ErrUnreadable)
	}
	if e.Data.ProviderID != string(r.Key) {
		return e, fmt.Errorf("%w: the key is not the provider's id", ErrUnreadable)
	}
	return e, e.Data.check()
}

func (d *Data) check() error {
	switch {
	case d.AppointmentID == "" || d.PatientID == "" || d.ProviderID == "":
		return fmt.Errorf("%w: appointment_id, patient_id and provider_id are required", ErrUnreadable)
	case d.AppointmentDate == "" || d.StartTime == "" || d.EndTime == "" || d.AppointmentType == "" || d.Status == "":
		return fmt.Errorf("%w: date, times, type and status are required", ErrUnreadable)
	case d.Version < 1:
		return fmt.Errorf("%w: version is missing", ErrUnreadable)
	}
	return nil
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// Partition returns the partition of a provider's calendar among n: Kafka's
// default partitioning of the key (murmur2), as any other client computes it.
func Partition(providerID string, n int32) int32 {
	p := kgo.StickyKeyPartitioner(nil).ForTopic("")
	return int32(p.Partition(&kgo.Record{Key: []byte(providerID)}, int(n)))
}
