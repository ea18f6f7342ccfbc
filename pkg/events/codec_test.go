package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/schemas"
)

// all returns an event of each type, as the service writes them.
func all() []events.Event {
	data := func(status string, version int, more func(*events.Data)) events.Data {
		d := events.Data{
			AppointmentID: "appointment:5d2f1c7e-8a34-4b0d-9c3e-7f6a5b4c3d21", PatientID: "patient:67890", ProviderID: "provider:11111",
			AppointmentDate: "2026-09-15", StartTime: "10:00", EndTime: "10:30", AppointmentType: "consultation",
			Status: status, Version: version,
		}
		if more != nil {
			more(&d)
		}
		return d
	}
	at := time.Date(2026, 9, 1, 12, 0, 0, 123e6, time.UTC)
	return []events.Event{
		{ID: "e0000000-0000-4000-8000-000000000001", Type: events.Created, Time: at, Actor: "user:admin", Command: "c1", Idempotency: "aa.bb",
			Data: data("scheduled", 1, func(d *events.Data) { d.Notes, d.Location = "<Müller> & \"Søn\"", "Room 4" })},
		{ID: "e0000000-0000-4000-8000-000000000002", Type: events.Updated, Time: at.Add(time.Hour), Actor: "user:admin", Command: "c2",
			Data: data("scheduled", 2, func(d *events.Data) { d.Changes = map[string]string{"start_time": "10:00", "notes": ""} })},
		{ID: "e0000000-0000-4000-8000-000000000003", Type: events.Confirmed, Time: at.Add(2 * time.Hour), Actor: "user:admin", Command: "c3",
			Data: data("confirmed", 3, nil)},
		{ID: "e0000000-0000-4000-8000-000000000004", Type: events.Completed, Time: at.Add(3 * time.Hour), Actor: "user:admin", Command: "c4",
			Data: data("completed", 4, nil)},
		{ID: "e0000000-0000-4000-8000-000000000005", Type: events.Cancelled, Time: at.Add(4 * time.Hour), Actor: "user:admin", Command: "c5",
			Data: data("cancelled", 4, func(d *events.Data) { d.Reason = "ill" })},
		{ID: "e0000000-0000-4000-8000-000000000006", Type: events.NoShow, Time: at.Add(5 * time.Hour), Actor: "user:admin", Command: "c6",
			Data: data("no_show", 4, nil)},
	}
}

func encode(t testing.TB, e events.Event) *kgo.Record {
	t.Helper()
	r, err := e.Encode("appointments.events")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEventsSurviveTheirRecords(t *testing.T) {
	for _, e := range all() {
		t.Run(e.Type, func(t *testing.T) {
			if !events.Known(e.Type) {
				t.Error("the type is not known")
			}
			r := encode(t, e)
			if got := events.Type(r); got != e.Type {
				t.Errorf("type of the record is %q", got)
			}
			got, err := events.Decode(r)
			if err != nil || !reflect.DeepEqual(got, e) {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, e)
			}
			if err := schemas.ValidateEvent(e.Type, r.Value); err != nil {
				t.Error(err)
			}
		})
	}
}

// The rules of CloudEvents' Kafka binding for binary mode: each attribute is a
// header ce_<name>, except datacontenttype, which is content-type; names are
// lower-case letters and digits; four attributes are required; a partitionkey
// is the record's key.
func TestRecordsAreCloudEvents(t *testing.T) {
	for _, e := range all() {
		r := encode(t, e)
		headers := map[string]string{}
		for _, h := range r.Headers {
			if _, twice := headers[h.Key]; twice {
				t.Errorf("%s: header %s comes twice", e.Type, h.Key)
			}
			headers[h.Key] = string(h.Value)
			name, attribute := strings.CutPrefix(h.Key, "ce_")
			if attribute && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				t.Errorf("%s: %s is no name of an attribute", e.Type, h.Key)
			}
			if !attribute && h.Key != "content-type" {
				t.Errorf("%s: header %s", e.Type, h.Key)
			}
			if len(h.Value) == 0 {
				t.Errorf("%s: header %s is empty", e.Type, h.Key)
			}
		}
		for name, want := range map[string]string{
			"ce_specversion": "1.0", "ce_id": e.ID, "ce_source": "/arsmedicatech/appointments", "ce_type": e.Type,
			"ce_subject": e.Data.AppointmentID, "ce_partitionkey": string(r.Key), "content-type": "application/json",
		} {
			if headers[name] != want {
				t.Errorf("%s: %s is %q, want %q", e.Type, name, headers[name], want)
			}
		}
		if at, err := time.Parse(time.RFC3339, headers["ce_time"]); err != nil || !at.Equal(e.Time) || !at.Equal(r.Timestamp) {
			t.Errorf("%s: ce_time is %q, the record's time %s", e.Type, headers["ce_time"], r.Timestamp)
		}
	}
}

var update = flag.Bool("update", false, "write testdata/version1.json anew; only before it was ever released")

type goldenRecord struct {
	Key     string      `json:"key"`
	Headers [][2]string `json:"headers"`
	Value   string      `json:"value"`
}

func (g goldenRecord) record() *kgo.Record {
	r := &kgo.Record{Key: []byte(g.Key), Value: []byte(g.Value)}
	for _, h := range g.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	return r
}

// What schema version 1 wrote stays readable, and is still what is written.
func TestRecordsOfVersion1(t *testing.T) {
	const file = "testdata/version1.json"
	var written []goldenRecord
	for _, e := range all() {
		r := encode(t, e)
		g := goldenRecord{Key: string(r.Key), Value: string(r.Value)}
		for _, h := range r.Headers {
			g.Headers = append(g.Headers, [2]string{h.Key, string(h.Value)})
		}
		written = append(written, g)
	}
	if *update {
		text, err := json.MarshalIndent(written, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var golden []goldenRecord
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden) != len(all()) {
		t.Fatalf("%d records, want %d", len(golden), len(all()))
	}
	for i, want := range all() {
		got, err := events.Decode(golden[i].record())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("record %d: got %+v, %v\nwant %+v", i, got, err, want)
		}
		if !reflect.DeepEqual(written[i], golden[i]) {
			t.Errorf("record %d is written as\n%+v\nand was as\n%+v", i, written[i], golden[i])
		}
	}
}

func TestFieldsOfANewerVersionSurvive(t *testing.T) {
	r := encode(t, all()[0])
	r.Value = []byte(strings.TrimSuffix(string(r.Value), "}") + `,"room":{"floor":2},"tags":["<a>",1e3]}`)
	e, err := events.Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	if e.Data.AppointmentID != all()[0].Data.AppointmentID || e.Data.Notes != all()[0].Data.Notes {
		t.Errorf("known fields are lost: %+v", e.Data)
	}
	again := encode(t, e)
	var got map[string]json.RawMessage
	if err := json.Unmarshal(again.Value, &got); err != nil {
		t.Fatalf("%s: %v", again.Value, err)
	}
	if string(got["room"]) != `{"floor":2}` || !slices.Contains([]string{`["<a>",1e3]`, `["\u003ca\u003e",1e3]`}, string(got["tags"])) {
		t.Errorf("newer fields became room=%s tags=%s", got["room"], got["tags"])
	}
	if twice, err := events.Decode(again); err != nil || !reflect.DeepEqual(slices.Sorted(maps.Keys(twice.Data.Unknown)), []string{"room", "tags"}) {
		t.Errorf("read again: %v, %v", twice.Data.Unknown, err)
	}
}

func setHeader(r *kgo.Record, key, value string) {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			r.Headers[i].Value = []byte(value)
		}
	}
}

func TestUnknownTypesPassUndecoded(t *testing.T) {
	r := encode(t, all()[0])
	setHeader(r, "ce_type", "appointment.moved")
	setHeader(r, "ce_schemaversion", "2")
	r.Value, r.Key = []byte("not even JSON"), nil
	e, err := events.Decode(r)
	if err != nil || e.Type != "appointment.moved" || e.ID != all()[0].ID || !reflect.DeepEqual(e.Data, events.Data{}) {
		t.Errorf("got %+v, %v", e, err)
	}
	if events.Known(e.Type) {
		t.Error("the type is known")
	}
}

// No error may say what a record holds: logs and dead letters' reasons repeat it.
func TestUnreadableRecords(t *testing.T) {
	const secret = "Hortensia" // in everything that is spoilt
	header := func(key, value string) func(*kgo.Record) { return func(r *kgo.Record) { setHeader(r, key, value) } }
	without := func(key string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			r.Headers = slices.DeleteFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == key })
		}
	}
	field := func(name string, value any) func(*kgo.Record) {
		return func(r *kgo.Record) {
			var fields map[string]any
			if err := json.Unmarshal(r.Value, &fields); err != nil {
				t.Fatal(err)
			}
			if fields[name] = value; value == nil {
				delete(fields, name)
			}
			r.Value, _ = json.Marshal(fields)
		}
	}
	value := func(text string) func(*kgo.Record) { return func(r *kgo.Record) { r.Value = []byte(text) } }
	more := func(text string) func(*kgo.Record) { return func(r *kgo.Record) { r.Value = append(r.Value, text...) } }
	cases := map[string]func(*kgo.Record){
		"no headers": func(r *kgo.Record) { r.Headers = nil }, "no value": func(r *kgo.Record) { r.Value = nil },
		"no id": without("ce_id"), "no type": without("ce_type"), "no time": without("ce_time"), "no schema version": without("ce_schemaversion"),
		"time": header("ce_time", secret), "schema version": header("ce_schemaversion", secret), "schema version 0": header("ce_schemaversion", "0"),
		"other key": func(r *kgo.Record) { r.Key = []byte(secret) }, "no JSON": value(secret), "no object": value(`"` + secret + `"`),
		"null": value("null"), "list": value(`[{"notes":"` + secret + `"}]`), "cut off": func(r *kgo.Record) { r.Value = r.Value[:len(r.Value)-1] },
		"trailing": more(secret), "two values": more(" {}"), "trailing brace": more("}"), "trailing bracket": more("]"),
		"number for text": field("patient_id", 123456), "text for number": field("version", secret), "changes": field("changes", secret),
		"version 0": field("version", 0), "fraction": field("version", 123456.5),
	}
	for _, name := range []string{"appointment_id", "patient_id", "provider_id", "appointment_date", "start_time", "end_time", "appointment_type", "status", "version"} {
		cases["no "+name] = field(name, nil)
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			e := all()[0]
			e.Data.Notes, e.Data.PatientID = secret, "patient:"+secret
			r := encode(t, e)
			spoil(r)
			_, err := events.Decode(r)
			if !errors.Is(err, events.ErrUnreadable) {
				t.Fatalf("got %v, want ErrUnreadable", err)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "123456") {
				t.Errorf("the error repeats data: %v", err)
			}
		})
	}
}

func TestTypeOfWhatIsNoCloudEvent(t *testing.T) {
	if got := events.Type(&kgo.Record{Value: []byte("{}")}); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestCatalogue(t *testing.T) {
	var types []string
	for _, k := range events.Catalogue() {
		types = append(types, k.Value)
		if k.Label == "" || k.Description == "" || !events.Known(k.Value) {
			t.Errorf("%+v", k)
		}
	}
	if want := []string{events.Created, events.Updated, events.Cancelled, events.Confirmed, events.Completed}; !slices.Equal(types, want) {
		t.Errorf("got %v, want %v", types, want)
	}
}

// The hashes are those of Apache Kafka's own test of its murmur2
// (org.apache.kafka.common.utils.UtilsTest).
func TestPartitionIsKafkas(t *testing.T) {
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
	} {
		for _, n := range []int32{1, 3, 12, 100} {
			if got, want := events.Partition(key, n), (hash&0x7fffffff)%n; got != want {
				t.Errorf("%s among %d: got %d, want %d", key, n, got, want)
			}
		}
	}
}

// Whatever is in a record, it is read or refused as unreadable; what is read is
// written and read again unchanged.
func FuzzDecode(f *testing.F) {
	for _, e := range all() {
		r := encode(f, e)
		f.Add(e.Type, e.Time.Format(time.RFC3339Nano), "1", r.Key, r.Value)
	}
	f.Add("appointment.created", "2026-09-01T12:00:00Z", "2", []byte("provider:11111"), []byte(`{"provider_id":"provider:11111","Version":1,"x":{}}`))
	f.Add("appointment.created", "2026-09-01T12:00:00Z", "1", []byte("p"), []byte(`{"VERSION":0,"x":"<","changes":{},"appointment_id":"a","patient_id":"b",`+
		`"provider_id":"p","appointment_date":"c","start_time":"d","end_time":"e","appointment_type":"f","status":"g","version":1}`))
	f.Add("appointment.moved", "", "", []byte(nil), []byte(`{}{}`))
	f.Fuzz(func(t *testing.T, eventType, at, version string, key, value []byte) {
		r := &kgo.Record{Key: key, Value: value, Headers: []kgo.RecordHeader{
			{Key: "ce_id", Value: []byte("e1")}, {Key: "ce_type", Value: []byte(eventType)},
			{Key: "ce_time", Value: []byte(at)}, {Key: "ce_schemaversion", Value: []byte(version)},
		}}
		e, err := events.Decode(r)
		if err != nil {
			if !errors.Is(err, events.ErrUnreadable) {
				t.Fatalf("not ErrUnreadable: %v", err)
			}
			return
		}
		if !events.Known(e.Type) {
			return
		}
		first := encode(t, e)
		again, err := events.Decode(&kgo.Record{Key: first.Key, Value: first.Value, Headers: r.Headers})
		if err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		if second := encode(t, again); !bytes.Equal(first.Value, second.Value) {
			t.Fatalf("written as\n%s\nand then as\n%s", first.Value, second.Value)
		}
	})
}
