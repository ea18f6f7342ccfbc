package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

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

// known are the JSON names of Data's fields; everything else is Unknown.
var known = map[string]bool{
	"appointment_id": true, "patient_id": true, "provider_id": true, "appointment_date": true,
	"start_time": true, "end_time": true, "appointment_type": true, "status": true, "version": true,
	"notes": true, "location": true, "changes": true, "reason": true,
}

// Encode returns the event as a record for the topic. Its partition is left to
// the caller: one calendar lives in one partition, see Partition.
func (e Event) Encode(topic string) (*kgo.Record, error) {
	value, err := e.Data.encode()
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

func (d Data) encode() ([]byte, error) {
	type plain Data
	value, err := json.Marshal(plain(d))
	if err != nil || len(d.Unknown) == 0 {
		return value, err
	}
	rest, err := json.Marshal(d.Unknown)
	if err != nil {
		return nil, err
	}
	// Two objects become one: {"a":1} and {"b":2} → {"a":1,"b":2}.
	return append(append(value[:len(value)-1], ','), rest[1:]...), nil
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
	if err := e.Data.decode(r.Value); err != nil {
		return e, err
	}
	if e.Data.ProviderID != string(r.Key) {
		return e, fmt.Errorf("%w: the key is not the provider's id", ErrUnreadable)
	}
	return e, e.Data.check()
}

func (d *Data) decode(value []byte) error {
	type plain Data
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if dec.Decode((*plain)(d)) == nil {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
	}
	// The slow way, for values that have fields of a newer version.
	*d = Data{}
	if err := json.Unmarshal(value, (*plain)(d)); err != nil {
		return fmt.Errorf("%w: the value is not the JSON of an appointment", ErrUnreadable)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(value, &all); err != nil {
		return fmt.Errorf("%w: the value is not a JSON object", ErrUnreadable)
	}
	for name := range all {
		if isKnown(name) {
			delete(all, name)
		}
	}
	d.Unknown = all
	return nil
}

// isKnown takes names as encoding/json does, whatever their case: one that was
// kept as unknown would override the field when it is read again.
func isKnown(name string) bool {
	if known[name] {
		return true
	}
	for k := range known {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
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
