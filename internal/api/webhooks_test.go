package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

const secret = "top-s3cret-value"

func hook(event string, more string) string {
	return `{"event_name":"` + event + `","target_url":"https://receiver.example/hook","secret":"` + secret + `"` + more + `}`
}

func TestSubscription(t *testing.T) {
	d := deploy(t)
	c := d.start(t, nil).as(session.Integrator)
	var answers []*reply
	call := func(method, path, body string, headers ...string) *reply {
		t.Helper()
		r := c.call(method, path, body, headers...)
		answers = append(answers, r)
		return r
	}
	first := call("POST", "/api/webhooks", hook("appointment.created", ""), "Idempotency-Key", "k").want(201)
	id := first.text("subscription", "id")
	for name, want := range map[string]string{
		"event_name": "appointment.created", "target_url": "https://receiver.example/hook", "enabled": "true", "version": "1",
	} {
		if got := first.text("subscription", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(id, "webhook_subscription:") || first.header.Get("ETag") != `"1"` || first.text("message") == "" ||
		!strings.HasSuffix(first.text("subscription", "created_at"), "Z") || first.text("subscription", "updated_at") == "" {
		t.Errorf("answer %s", first.raw)
	}
	path := "/api/webhooks/" + id
	if r := call("GET", strings.Replace(path, ":", "%3A", 1), "").want(200); r.text("subscription") != first.text("subscription") || r.header.Get("ETag") != `"1"` {
		t.Errorf("answer %s", r.raw)
	}
	if r := call("PUT", path, `{"target_url":"https://other.example/","enabled":false,"secret":"`+secret+`2"}`, "If-Match", `"1"`).want(200); r.header.Get("ETag") != `"2"` ||
		r.text("subscription", "enabled") != "false" || r.text("subscription", "target_url") != "https://other.example/" {
		t.Errorf("answer %s", r.raw)
	}
	if r := call("POST", "/api/webhooks", hook("appointment.created", ""), "Idempotency-Key", "k").want(201); r.raw != first.raw {
		t.Errorf("the repeat is answered %s, the first was %s", r.raw, first.raw)
	}
	call("POST", "/api/webhooks", hook("appointment.updated", ""), "Idempotency-Key", "k").refused(409, "idempotency_key_reused")
	call("PUT", path, `{"enabled":true}`, "If-Match", `"1"`).refused(412, "version_mismatch")
	second := call("POST", "/api/webhooks", hook("appointment.*", `,"enabled":false`)).want(201)
	third := call("POST", "/api/webhooks", hook("appointment.created", `,"enabled":null`)).want(201).text("subscription", "id")

	for query, want := range map[string][]string{
		"": {third, second.text("subscription", "id"), id}, "?enabled=true": {third}, "?enabled=false": {second.text("subscription", "id"), id},
		"?event_name=appointment.created": {third, id}, "?event_name=appointment.created&enabled=false": {id}, "?event_name=x": {},
	} {
		var list struct {
			Subscriptions []struct{ ID string }
			Total         int
		}
		r := call("GET", "/api/webhooks"+query, "").want(200)
		check(t, json.Unmarshal([]byte(r.raw), &list))
		if list.Total != len(want) || len(list.Subscriptions) != len(want) {
			t.Fatalf("%s: %s, want %v", query, r.raw, want)
		}
		// Made within one millisecond they have no order of time.
		for _, one := range want {
			if !strings.Contains(r.raw, one) {
				t.Errorf("%s: %s, want %v", query, r.raw, want)
			}
		}
	}
	for _, wrong := range []string{"1", "True", ""} {
		call("GET", "/api/webhooks?enabled="+wrong, "").refused(400, "invalid_input", "enabled")
	}
	if r := call("GET", "/api/webhooks/events", "").want(200); strings.Count(r.raw, `"description"`) != 5 || !strings.Contains(r.raw, `{"value":"appointment.created","label":"Appointment Created","description":"`) {
		t.Errorf("events %s", r.raw)
	}
	call("DELETE", path, "", "If-Match", `"1"`).refused(412, "version_mismatch")
	if r := call("DELETE", path, "", "If-Match", `"2"`).want(200); r.text("message") == "" || r.header.Get("ETag") != "" {
		t.Errorf("answer %s", r.raw)
	}
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		call(method, path, map[string]string{"PUT": "{}"}[method]).refused(404, "subscription_not_found")
	}

	call("POST", "/api/webhooks", "{}").refused(400, "invalid_input", "event_name", "target_url", "secret")
	call("POST", "/api/webhooks", hook("appointment.lost", "")).refused(400, "invalid_input", "event_name")
	call("POST", "/api/webhooks", hook("appointment.created", `,"enabled":"yes"`)).refused(400, "invalid_input", "enabled")
	call("POST", "/api/webhooks", hook("appointment.created", `,"secret":"`+secret+`"`)).refused(400, "invalid_input", "secret")
	call("POST", "/api/webhooks", `{"secret":{"x":"`+secret+`"}}`).refused(400, "invalid_input", "secret")
	call("POST", "/api/webhooks", `{"secret":"`+secret).refused(400, "invalid_json")
	call("PUT", "/api/webhooks/"+third, `{"secret":"`+strings.Repeat(secret, 50)+`"}`).refused(400, "invalid_input", "secret")
	call("PUT", "/api/webhooks/"+third, `{"target_url":"ftp://x"}`).refused(400, "invalid_input", "target_url")
	for _, r := range answers {
		if strings.Contains(r.raw, secret) || strings.Contains(r.raw, `"secret":`) {
			t.Errorf("an answer shows the secret: %s", r.raw)
		}
	}
	for _, r := range testenv.Read(t, d.kafka, d.kafka.Topics().Subscriptions(), 5) {
		if bytes.Contains(r.Value, []byte(secret)) {
			t.Errorf("the topic shows the secret: %s", r.Value)
		}
	}
}

func TestRateLimit(t *testing.T) {
	c := deploy(t).start(t, nil).as(session.Integrator)
	first := c.call("POST", "/api/webhooks", hook("appointment.created", ` , "rate_limit" : { "per_second" : 5 } `), "Idempotency-Key", "k").want(201)
	limited := func(r *reply, want string) {
		t.Helper()
		if got := r.text("subscription", "rate_limit"); got != want {
			t.Errorf("the limit is %q, want %q", got, want)
		}
	}
	limited(first, `{"per_second":5,"burst":5}`)
	path := "/api/webhooks/" + first.text("subscription", "id")
	for _, step := range []struct{ body, want, version string }{
		{`{"rate_limit":{"per_second":10000,"burst":1}}`, `{"per_second":10000,"burst":1}`, `"2"`},
		{`{"rate_limit":{"burst":1,"per_second":10000}}`, `{"per_second":10000,"burst":1}`, `"2"`}, // changes nothing
		{`{"enabled":false}`, `{"per_second":10000,"burst":1}`, `"3"`},
		{`{"rate_limit":null}`, "", `"4"`},
		{`{"rate_limit":null}`, "", `"4"`},
		{`{"rate_limit":{"per_second":1,"burst":null}}`, `{"per_second":1,"burst":1}`, `"5"`},
	} {
		r := c.call("PUT", path, step.body).want(200)
		limited(r, step.want)
		limited(c.call("GET", path, "").want(200), step.want)
		if r.header.Get("ETag") != step.version {
			t.Errorf("%s leads to version %s, want %s", step.body, r.header.Get("ETag"), step.version)
		}
	}
	again := c.call("POST", "/api/webhooks", hook("appointment.created", ` , "rate_limit" : { "per_second" : 5 } `), "Idempotency-Key", "k").want(201)
	if again.raw != first.raw {
		t.Errorf("the repeat is answered %s, the first was %s", again.raw, first.raw)
	}
	limited(c.call("POST", "/api/webhooks", hook("appointment.created", `,"rate_limit":null`)).want(201), "")

	for body, fields := range map[string][]string{
		`5`: {"rate_limit"}, `"5"`: {"rate_limit"}, `[]`: {"rate_limit"}, `{}`: {"rate_limit.per_second"},
		`{"per_second":null,"burst":1}`: {"rate_limit.per_second"}, `{"per_second":0}`: {"rate_limit.per_second"},
		`{"per_second":10001}`: {"rate_limit.per_second"}, `{"per_second":1.5}`: {"rate_limit.per_second"}, `{"per_second":"5"}`: {"rate_limit.per_second"},
		`{"per_second":5,"burst":0}`: {"rate_limit.burst"}, `{"per_second":5,"burst":-1}`: {"rate_limit.burst"}, `{"per_second":5,"burst":10001}`: {"rate_limit.burst"},
		`{"per_second":0,"burst":10001}`: {"rate_limit.per_second", "rate_limit.burst"},
		`{"per_second":5,"x":1}`:         {"rate_limit.x"}, `{"per_second":5,"per_second":6}`: {"rate_limit.per_second"}, `{"per_second":5},"rate_limit":null`: {"rate_limit"},
	} {
		c.call("POST", "/api/webhooks", hook("appointment.created", `,"rate_limit":`+body)).refused(400, "invalid_input", fields...)
		c.call("PUT", path, `{"rate_limit":`+body+`}`).refused(400, "invalid_input", fields...)
	}
}

// A sender's request to disable a subscription shows, until it is enabled again.
func TestDisabledBySystem(t *testing.T) {
	d := deploy(t)
	c := d.start(t, nil).as(session.Integrator)
	id := c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(201).text("subscription", "id")
	value, err := json.Marshal(webhook.Attempt{
		DeliveryID: "d", SubscriptionID: id, EventType: "appointment.created", Attempt: 6, At: time.Now(), Outcome: webhook.Dead, Status: 410,
		Disable: &webhook.Disable{Reason: webhook.DisabledGone, Version: 1},
	})
	check(t, err)
	check(t, testenv.Client(t, d.kafka).ProduceSync(t.Context(), &kgo.Record{Topic: d.kafka.Topics().Attempts(), Key: []byte(id), Value: value}).FirstErr())
	path := "/api/webhooks/" + id
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for r := c.call("GET", path, ""); r.text("subscription", "disabled") == ""; r = c.call("GET", path, "") {
		r.want(200)
		check(t, ctx.Err())
	}
	r := c.call("GET", path, "").want(200)
	at, err := time.Parse(time.RFC3339, r.text("subscription", "disabled", "at"))
	if r.text("subscription", "disabled", "reason") != "gone" || err != nil || at.Location() != time.UTC || r.text("subscription", "enabled") != "false" || r.header.Get("ETag") != `"2"` {
		t.Errorf("answer %s", r.raw)
	}
	if r := c.call("PUT", path, `{"enabled":true}`).want(200); r.text("subscription", "disabled") != "" || r.text("subscription", "enabled") != "true" {
		t.Errorf("answer %s", r.raw)
	}
}

// logged is a log that others may still write to: the projection's router says
// last words after it has ended.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(text)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Requests are counted by route and logged without what they are about.
func TestObserved(t *testing.T) {
	d := deploy(t)
	var log logged
	d.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	in := d.start(t, nil)
	c := in.as(session.Admin)
	c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(201)
	c.call("GET", "/api/appointments/appointment:none?patient_id=patient:77", "").refused(404, "appointment_not_found")
	c.call("GET", "/nowhere", "").refused(404, "not_found")
	in.stop() // what is logged is complete
	families, err := in.metrics.Gather()
	check(t, err)
	counted := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			counted[f.GetName()+" "+strings.Join(labels, " ")] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for _, want := range []string{
		"webhooks_api_requests_total POST /api/webhooks 2xx", "webhooks_api_requests_total GET /api/appointments/{id} 4xx",
		"webhooks_api_requests_total GET none 4xx", "webhooks_api_request_seconds POST /api/webhooks",
	} {
		if counted[want] != 1 {
			t.Errorf("%s is %v in %v", want, counted[want], counted)
		}
	}
	for _, private := range []string{secret, password, c.token, "patient:77", "appointment:none"} {
		if strings.Contains(log.String(), private) {
			t.Errorf("the log shows %q", private)
		}
	}
	if !strings.Contains(log.String(), `route=/api/webhooks status=201`) {
		t.Errorf("the log is %s", log.String())
	}
}
