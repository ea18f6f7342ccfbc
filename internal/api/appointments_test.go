package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/testenv"
)

const day = `"appointment_date":"2030-05-06","start_time":"10:00","end_time":"10:30"`

func TestAppointment(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Provider)
	r := c.call("POST", "/api/appointments", `{"patient_id":"patient:1",`+day+`,"notes":"<n>","location":"L"}`).want(201)
	id := r.text("appointment", "id")
	for name, want := range map[string]string{
		"patient_id": "patient:1", "provider_id": "provider:1", "appointment_date": "2030-05-06", "start_time": "10:00", "end_time": "10:30",
		"appointment_type": "consultation", "status": "scheduled", "notes": "<n>", "location": "L", "version": "1",
	} {
		if got := r.text("appointment", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"created_at", "updated_at"} {
		if at, err := time.Parse(time.RFC3339, r.text("appointment", name)); err != nil || at.Location() != time.UTC {
			t.Errorf("%s is %q", name, r.text("appointment", name))
		}
	}
	if !strings.HasPrefix(id, "appointment:") || r.header.Get("ETag") != `"1"` || r.text("message") == "" {
		t.Errorf("answer %s, ETag %q", r.raw, r.header.Get("ETag"))
	}
	// Browsers escape the colon.
	got := c.call("GET", "/api/appointments/"+strings.Replace(id, ":", "%3A", 1), "").want(200)
	if got.text("appointment") != r.text("appointment") || got.header.Get("ETag") != `"1"` {
		t.Errorf("answer %s, want %s", got.raw, r.raw)
	}
	c.call("GET", "/api/appointments/appointment:none", "").refused(404, "appointment_not_found")
	c.call("PUT", "/api/appointments/appointment:none", "{}").refused(404, "appointment_not_found")
	c.call("GET", "/api/appointments/appointment:none/history", "").refused(404, "appointment_not_found")
	c.call("POST", "/api/appointments", booking("patient:1", "provider:1", "10:15", "10:45")).refused(409, "time_conflict")

	// The front end sends all that it knows.
	put := func(body string) *reply { return c.call("PUT", "/api/appointments/"+id, body) }
	same := `{"id":"` + id + `","patient_id":"patient:1","provider_id":"provider:1",` + day + `,"appointment_type":"consultation","notes":"<n>","location":"L","status":"scheduled"`
	if r := put(same + `}`).want(200); r.text("appointment", "version") != "1" {
		t.Errorf("nothing changed, but the answer is %s", r.raw)
	}
	put(`{"patient_id":"patient:2"}`).refused(400, "invalid_input", "patient_id")
	put(`{"provider_id":"provider:2"}`).refused(400, "invalid_input", "provider_id")
	put(`{"id":"appointment:x"}`).refused(400, "invalid_input", "id")
	put(`{"status":"lost"}`).refused(400, "invalid_input", "status")
	put(`{"reason":"x"}`).refused(400, "invalid_input", "reason")
	if r := put(`{"notes":null,"start_time":"11:00","end_time":"11:30","status":"confirmed"}`).want(200); r.header.Get("ETag") != `"3"` ||
		r.text("appointment", "status") != "confirmed" || r.text("appointment", "start_time") != "11:00" || r.text("appointment", "notes") != "<n>" {
		t.Errorf("answer %s, ETag %q", r.raw, r.header.Get("ETag"))
	}
	put(`{"status":"confirmed"}`).want(200)
	put(`{"status":"scheduled"}`).refused(409, "impossible_transition")
	put(`{"status":"cancelled","reason":"ill"}`).want(200)
	put(`{"notes":"late"}`).refused(409, "appointment_final")

	var history struct {
		Events []struct {
			ID, Event, Actor string
			Timestamp        time.Time
			Version          int
			Data             struct{ Reason, Status string }
		}
	}
	r = c.call("GET", "/api/appointments/"+id+"/history", "").want(200)
	check(t, json.Unmarshal([]byte(r.raw), &history))
	var kinds []string
	for i, e := range history.Events {
		kinds = append(kinds, e.Event)
		if e.Actor != "provider:1" || e.Timestamp.IsZero() || e.Version != i+1 || e.ID == "" {
			t.Errorf("event %+v", e)
		}
	}
	if want := []string{"appointment.created", "appointment.updated", "appointment.confirmed", "appointment.cancelled"}; !slices.Equal(kinds, want) ||
		history.Events[3].Data.Reason != "ill" || history.Events[3].Data.Status != "cancelled" {
		t.Errorf("history %s", r.raw)
	}
	if strings.Contains(r.raw, "Unknown") { // the name of a Go field, not of one of an event
		t.Errorf("history %s", r.raw)
	}
}

func TestMoves(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	for i, m := range []struct{ route, body, status string }{
		{"confirm", "", "confirmed"}, {"complete", "{}", "completed"}, {"no-show", "", "no_show"}, {"cancel", `{"reason":"ill"}`, "cancelled"}, {"cancel", "", "cancelled"},
	} {
		start := string(rune('0'+i)) + "0"
		id := c.book("patient:1", "provider:1", "0"+start[:1]+":00", "0"+start[:1]+":30")
		path := "/api/appointments/" + id + "/" + m.route
		if r := c.call("POST", path, m.body).want(200); r.text("appointment", "status") != m.status || r.header.Get("ETag") != `"2"` || r.text("message") == "" {
			t.Errorf("%s: %s", m.route, r.raw)
		}
		c.call("POST", path, "").refused(409, "impossible_transition")
		c.call("POST", path, `{"resaon":"x"}`).refused(400, "invalid_input", "resaon")
	}
}

func TestInput(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	post := func(body string, headers ...string) *reply {
		return c.call("POST", "/api/appointments", body, headers...)
	}
	post(`{}`).refused(400, "invalid_input", "patient_id", "appointment_date", "start_time", "end_time")
	post(``).refused(400, "invalid_input", "patient_id", "appointment_date", "start_time", "end_time")
	post(`{"patient_id":1,`+day+`}`).refused(400, "invalid_input", "patient_id")
	post(`{"patient_id":"p",`+day+`,"colour":"red","notes":[]}`).refused(400, "invalid_input", "colour", "notes")
	post(`{"patient_id":"p",`+day+`,"patient_id":"q"}`).refused(400, "invalid_input", "patient_id")
	post(`{"Patient_id":"p",`+day+`}`).refused(400, "invalid_input", "Patient_id")
	post(`{"patient_id":"p",`+day+`,"appointment_type":"x"}`).refused(400, "invalid_input", "appointment_type")
	post(`{"patient_id":"p",`+day).refused(400, "invalid_json")
	post(`{} {}`).refused(400, "invalid_json")
	post(`[]`).refused(400, "invalid_json")
	post("{\"notes\":\"\xff\"}").refused(400, "invalid_json")
	post(booking("p", "d", "10:00", "09:00")).refused(400, "invalid_input", "end_time")
	post(`{"notes":"`+strings.Repeat("x", 1<<20)+`"}`).refused(413, "body_too_large")
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/jsonp", "x;;"} {
		post(`{}`, "Content-Type", kind).refused(415, "unsupported_media_type")
	}
	post(`{}`, "Content-Encoding", "gzip").refused(415, "unsupported_media_type")
	post(`{"patient_id":"p",`+day+`}`, "Content-Type", "application/json; charset=UTF-8").want(201)
	// The provider is whoever is signed in.
	if r := c.call("GET", "/api/appointments?provider_id=user:admin&patient_id=p&date=2030-05-06&status=scheduled", "").want(200); r.text("total") != "1" {
		t.Errorf("answer %s", r.raw)
	}
	for query, field := range map[string]string{"date=06.05.2030": "date", "status=lost": "status"} {
		c.call("GET", "/api/appointments?"+query, "").refused(400, "invalid_input", field)
	}
	for query, field := range map[string]string{
		"": "date", "date=x": "date", "date=2030-05-06&duration=x": "duration", "date=2030-05-06&duration=0": "duration",
	} {
		c.call("GET", "/api/appointments/available-slots?"+query, "").refused(400, "invalid_input", field)
	}
}

func TestListsAndSlots(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	c.book("patient:1", "provider:1", "11:00", "11:30")
	c.book("patient:2", "provider:1", "09:30", "10:00")
	c.book("patient:1", "provider:2", "10:00", "10:30")
	var list struct {
		Appointments []struct {
			Start string `json:"start_time"`
		}
		Total int
	}
	r := c.call("GET", "/api/appointments", "").want(200)
	check(t, json.Unmarshal([]byte(r.raw), &list))
	if a := list.Appointments; list.Total != 3 || len(a) != 3 || a[0].Start != "09:30" || a[1].Start != "10:00" || a[2].Start != "11:00" {
		t.Errorf("list %s", r.raw)
	}
	if r := c.call("GET", "/api/appointments?date=2031-01-01", "").want(200); r.text("appointments") != "[]" || r.text("total") != "0" {
		t.Errorf("empty list %s", r.raw)
	}
	provider := in.as(session.Provider)
	if r := provider.call("GET", "/api/appointments", "").want(200); r.text("total") != "2" {
		t.Errorf("the provider's list %s", r.raw)
	}
	r = provider.call("GET", "/api/appointments/available-slots?date=2030-05-06", "").want(200)
	free := r.text("available_slots")
	if r.text("date") != "2030-05-06" || r.text("provider_id") != "provider:1" || r.text("duration_minutes") != "30" ||
		!strings.HasPrefix(free, `[{"start_time":"09:00","end_time":"09:30"},{"start_time":"10:00","end_time":"10:30"},`) ||
		strings.Contains(free, `"start_time":"11:00"`) || !strings.HasSuffix(free, `{"start_time":"16:30","end_time":"17:00"}]`) {
		t.Errorf("slots %s", r.raw)
	}
	if r := c.call("GET", "/api/appointments/available-slots?date=2030-05-06&provider_id=provider:2&duration=450", "").want(200); r.text("available_slots") != `[]` {
		t.Errorf("slots %s", r.raw)
	}
	r = c.call("GET", "/api/appointments/types", "").want(200)
	if !strings.HasPrefix(r.text("appointment_types"), `[{"value":"consultation","label":"Consultation"}`) {
		t.Errorf("types %s", r.raw)
	}
	r = c.call("GET", "/api/appointments/statuses", "").want(200)
	if !strings.HasPrefix(r.text("appointment_statuses"), `[{"value":"scheduled","label":"Scheduled"}`) {
		t.Errorf("statuses %s", r.raw)
	}
}

func TestIfMatch(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	path := "/api/appointments/" + c.book("patient:1", "provider:1", "10:00", "10:30")
	put := func(notes, tag string) *reply { return c.call("PUT", path, `{"notes":"`+notes+`"}`, "If-Match", tag) }
	put("a", `"1"`).want(200)
	put("b", `"1"`).refused(412, "version_mismatch")
	put("b", `*`).want(200)
	for _, wrong := range []string{`3`, `"x"`, `W/"3"`, `"3", "4"`, `"0"`, `"-1"`, `"03"`, `"`, `""`} {
		put("c", wrong).refused(400, "invalid_if_match")
	}
	c.call("POST", path+"/confirm", "", "If-Match", `"2"`).refused(412, "version_mismatch")
	if r := c.call("POST", path+"/confirm", "", "If-Match", `"3"`).want(200); r.header.Get("ETag") != `"4"` {
		t.Errorf("ETag %q", r.header.Get("ETag"))
	}
}

func TestIdempotency(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Admin)
	post := func(who *caller, body, key string) *reply {
		return who.call("POST", "/api/appointments", body, "Idempotency-Key", key)
	}
	body := booking("patient:1", "provider:1", "10:00", "10:30")
	first := post(c, body, "k1").want(201)
	c.call("PUT", "/api/appointments/"+first.text("appointment", "id"), `{"notes":"later"}`, "Idempotency-Key", "not for a PUT").want(200)
	if again := post(c, body, "k1").want(201); again.raw != first.raw || again.header.Get("ETag") != `"1"` {
		t.Errorf("the repeat is answered %s, the first was %s", again.raw, first.raw)
	}
	post(c, booking("patient:1", "provider:1", "12:00", "12:30"), "k1").refused(409, "idempotency_key_reused")
	for _, other := range []string{"provider:2", "provider:3", "provider:4", "provider:5"} { // other partitions
		post(c, booking("patient:1", other, "12:00", "12:30"), "k1").refused(409, "idempotency_key_reused")
	}
	post(in.as(session.Staff), body, "k1").refused(409, "time_conflict") // another user's key
	post(c, body, "k2").refused(409, "time_conflict")

	path := "/api/appointments/" + first.text("appointment", "id") + "/confirm"
	for range 2 { // another route's key
		if r := c.call("POST", path, "", "Idempotency-Key", "k1").want(200); r.header.Get("ETag") != `"3"` {
			t.Errorf("ETag %q", r.header.Get("ETag"))
		}
	}
	c.call("POST", path, "", "Idempotency-Key", "k9").refused(409, "impossible_transition")
	post(c, body, strings.Repeat("k", 256)).refused(400, "invalid_idempotency_key")
	post(c, body, "kö").refused(400, "invalid_idempotency_key")
	post(c, body, strings.Repeat("k", 255)).refused(409, "time_conflict")

	for _, r := range testenv.Read(t, d.kafka, d.kafka.Topics().Events(), 3) {
		for _, h := range r.Headers {
			if strings.Contains(string(h.Value), "k1") {
				t.Errorf("the log keeps the key: %s=%s", h.Key, h.Value)
			}
		}
	}
}
