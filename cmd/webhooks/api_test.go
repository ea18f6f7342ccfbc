package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
)

// scripted is an API that answers as it is told, and remembers what it was asked.
type scripted struct {
	*httptest.Server

	answers []func(http.ResponseWriter) // the last one again and again

	mu   sync.Mutex
	seen []request
}

// asked returns what it was asked so far.
func (s *scripted) asked() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// take remembers a request and returns the answer to it.
func (s *scripted) take(r request) func(http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r)
	return s.answers[min(len(s.seen), len(s.answers))-1]
}

type request struct {
	line, token, key, body string
}

func answers(t *testing.T, answers ...func(http.ResponseWriter)) *scripted {
	t.Helper()
	s := &scripted{answers: answers}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.take(request{r.Method + " " + r.RequestURI, r.Header.Get("Authorization"), r.Header.Get("Idempotency-Key"), string(body)})(w)
	}))
	t.Cleanup(s.Close)
	return s
}

func answer(status int, body string, headers ...string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// cutOff ends the connection without an answer.
func cutOff(http.ResponseWriter) { panic(http.ErrAbortHandler) }

// client returns a client with the token T that does not wait in real time.
func (s *scripted) client(t *testing.T) *apiClient {
	t.Helper()
	c, err := newAPIClient(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.token = "T"
	c.wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	return c
}

const unavailable = `{"success":false,"error":"The log can't be reached at the moment","code":"unavailable"}`

// A command is repeated with its key while its outcome is unknown, and what can't
// be found out is said, with the key.
func TestCommandsAreRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		answers []func(http.ResponseWriter)
		asked   int
		says    string // of the error
		unknown bool
	}{
		"done":         {[]func(http.ResponseWriter){answer(202, "{}")}, 1, "", false},
		"unavailable":  {[]func(http.ResponseWriter){answer(503, unavailable, "Retry-After", "1"), answer(202, "{}")}, 2, "", false},
		"cut off":      {[]func(http.ResponseWriter){cutOff, answer(502, "bad gateway"), answer(202, "{}")}, 3, "", false},
		"never":        {[]func(http.ResponseWriter){answer(503, unavailable)}, tries, "The log can't be reached", true},
		"never at all": {[]func(http.ResponseWriter){cutOff}, tries, "no answer from http", true},
		"refused":      {[]func(http.ResponseWriter){answer(409, `{"error":"It is disabled"}`)}, 1, "It is disabled", false},
		"too many":     {[]func(http.ResponseWriter){answer(429, `{"error":"Too many"}`, "Retry-After", "7")}, 1, "Too many (7s)", false},
	} {
		t.Run(name, func(t *testing.T) {
			api := answers(t, c.answers...)
			var into struct{}
			err := api.client(t).command(t.Context(), http.MethodPost, "/api/x", nil, &into, "")
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, want one that says %q", err, c.says)
			}
			if len(api.asked()) != c.asked {
				t.Errorf("it asked %d times, want %d", len(api.asked()), c.asked)
			}
			key := api.asked()[0].key
			if key == "" || slices.ContainsFunc(api.asked(), func(r request) bool { return r.key != key || r.token != "Bearer T" }) {
				t.Errorf("not all have the same key and the token: %+v", api.asked())
			}
			if said := err != nil && strings.Contains(err.Error(), "--idempotency-key "+key); said != c.unknown {
				t.Errorf("that the outcome is unknown is said: %t, want %t: %v", said, c.unknown, err)
			}
		})
	}
}

// Each way in which the API can't be used says what to do.
func TestAPIErrors(t *testing.T) {
	elsewhere := answers(t, answer(200, "{}"))
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		says   []string
	}{
		"not signed in": {answer(401, `{"error":"Sign in first"}`), []string{"Sign in first", "WEBHOOKS_TOKEN", "--username"}},
		"not allowed":   {answer(403, `{"error":"Access denied"}`), []string{"Access denied", "admin or integrator"}},
		"invalid":       {answer(400, `{"error":"limit must be a number","details":[{"field":"limit","problem":"must be a number"}]}`), []string{"limit must be a number"}},
		"hostile":       {answer(404, `{"error":"\u001b[2Jgone"}`), []string{`\x1b[2Jgone`}},
		"another":       {answer(200, "<html>"), []string{"not as the webhooks' API does", "--api-url"}},
		"redirect":      {answer(307, "", "Location", elsewhere.URL), []string{"answers 307", "--api-url"}},
		"huge":          {answer(200, `"`+strings.Repeat("a", answerLimit)+`"`), []string{"larger than 8 MiB"}},
		"newer":         {answer(200, `{"Number":"one"}`), []string{"both of one version"}},
	} {
		t.Run(name, func(t *testing.T) {
			api := answers(t, c.answer)
			var into struct{ Number int }
			err := api.client(t).get(t.Context(), "/api/x", nil, &into)
			for _, text := range c.says {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("the error is %v, want one that says %q", err, text)
				}
			}
		})
	}
	if len(elsewhere.asked()) > 0 {
		t.Error("it followed a redirect, and took the token there")
	}

	gone := answers(t)
	gone.Close()
	if err := gone.client(t).get(t.Context(), "/api/x", nil, nil); err == nil || !strings.Contains(err.Error(), "nobody answers at "+gone.URL) {
		t.Errorf("where nobody is the error is %v", err)
	}
}

func TestAPIAddress(t *testing.T) {
	for _, wrong := range []string{"", "localhost:5000", "ftp://host", "http://", "http://u:p@host", "http://host?a=b"} {
		if _, err := newAPIClient(wrong); err == nil {
			t.Errorf("%q is taken", wrong)
		} else if _, ok := errors.AsType[*run.UsageError](err); !ok || strings.Contains(err.Error(), "u:p") {
			t.Errorf("of %q the error is %v", wrong, err)
		}
	}
	api := answers(t, answer(200, "{}"))
	c := api.client(t)
	c.base.Path = "/behind/a/proxy/"
	if err := c.get(t.Context(), pathOf("webhooks", "webhook_subscription:1/../x y"), nil, &struct{}{}); err != nil {
		t.Fatal(err)
	}
	if got, want := api.asked()[0].line, "GET /behind/a/proxy/api/webhooks/webhook_subscription:1%2F..%2Fx%20y"; got != want {
		t.Errorf("it asked for %s, want %s", got, want)
	}
}

func TestSignIn(t *testing.T) {
	welcome := answer(200, `{"success":true,"token":"S","user":{"id":"user:1"}}`)
	asks := 0
	ask := func(_ context.Context, user string) (string, error) { asks++; return "typed by " + user, nil }
	for name, c := range map[string]struct {
		flags apiFlags
		first func(http.ResponseWriter)
		asked []request
		asks  int
		says  string
	}{
		"token": {apiFlags{Token: "T", Username: "u"}, welcome, nil, 0, ""},
		"password": {apiFlags{Username: "u", Password: "p"}, welcome, []request{
			{"POST /api/auth/login", "", "", `{"password":"p","username":"u"}`}, {"POST /api/auth/logout", "Bearer S", "", ""}}, 0, ""},
		"typed": {apiFlags{Username: "u"}, welcome, []request{
			{"POST /api/auth/login", "", "", `{"password":"typed by u","username":"u"}`}, {"POST /api/auth/logout", "Bearer S", "", ""}}, 1, ""},
		"nothing": {apiFlags{}, welcome, nil, 0, "set WEBHOOKS_TOKEN"},
		"wrong":   {apiFlags{Username: "u", Password: "p"}, answer(401, `{"error":"no"}`), []request{{"POST /api/auth/login", "", "", `{"password":"p","username":"u"}`}}, 0, "is wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			api, asksBefore := answers(t, c.first, answer(200, "{}")), asks
			client := api.client(t)
			client.token = ""
			err := client.signIn(t.Context(), c.flags, ask)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, want one that says %q", err, c.says)
			}
			client.signOut(t.Context())
			if !slices.Equal(api.asked(), c.asked) {
				t.Errorf("it asked %+v, want %+v", api.asked(), c.asked)
			}
			if asks-asksBefore != c.asks {
				t.Errorf("it asked for %d passwords, want %d", asks-asksBefore, c.asks)
			}
		})
	}
}

// What the API documents, one delivery by itself and as the first page of two.
const (
	deliveryID = "0f8fad5b-d9cb-469f-a165-70867728950e"
	pageOne    = `{"success": true, "deliveries": [{
   "delivery_id": "0f8fad5b-d9cb-469f-a165-70867728950e", "subscription_id": "webhook_subscription:1",
   "event": "appointment.created", "event_position": "3/1234", "status": "retrying", "created_at": "2026-05-06T12:00:50Z",
   "next_attempt_at": "2026-05-06T12:01:04Z", "attempt_count": 2,
   "last_attempt": {"attempt": 2, "at": "2026-05-06T12:00:51.2Z", "outcome": "failed", "status": 503, "error": "status",
                    "latency_ms": 12.3, "next_attempt_at": "2026-05-06T12:01:04Z"}}],
 "next_cursor": "MTc", "behind": 0}`
	pageTwo = `{"success": true, "deliveries": [{
   "delivery_id": "1f8fad5b-d9cb-469f-a165-70867728950e", "subscription_id": "webhook_subscription:1", "origin": "replay:r1",
   "event": "appointment.cancelled", "event_position": "3/1235", "status": "waiting", "created_at": "2026-05-06T12:00:49Z", "attempt_count": 0},
  {"delivery_id": "2f8fad5b-d9cb-469f-a165-70867728950e", "subscription_id": "webhook_subscription:1",
   "event": "appointment.created", "event_position": "3/1236", "status": "dead", "created_at": "2026-05-06T12:00:48Z", "attempt_count": 6,
   "last_attempt": {"attempt": 6, "at": "2026-05-06T12:00:49Z", "outcome": "dead", "error": "timeout", "latency_ms": 10000}}],
 "behind": 7}`
	oneDelivery = `{"success": true, "delivery": {
   "delivery_id": "0f8fad5b-d9cb-469f-a165-70867728950e", "subscription_id": "webhook_subscription:1",
   "event": "appointment.created", "event_position": "3/1234", "status": "retrying", "created_at": "2026-05-06T12:00:50Z",
   "next_attempt_at": "2026-05-06T12:01:04Z",
   "attempts": [
     {"attempt": 1, "at": "2026-05-06T12:00:50Z", "outcome": "failed", "error": "timeout", "latency_ms": 10000, "next_attempt_at": "2026-05-06T12:00:51Z"},
     {"attempt": 2, "at": "2026-05-06T12:00:51.2Z", "outcome": "failed", "status": 503, "error": "status", "latency_ms": 12.3,
      "answer": "go\u001b[2J ` + "\u009b" + `away\nnow", "next_attempt_at": "2026-05-06T12:01:04Z"}]}, "behind": 0}`
)

func TestDeliveriesList(t *testing.T) {
	api := answers(t, answer(200, pageOne), answer(200, pageTwo))
	s := newTestScreen(false)
	cmd := deliveriesListCmd{Subscription: "webhook_subscription:1", Status: "retrying", Event: "appointment.created", From: "2h", To: "2026-05-06T14:00:00+02:00", All: true, Limit: 1}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.out, `
CREATED              DELIVERY                              EVENT                  STATUS    ATTEMPTS  LAST     NEXT   ORIGIN
2026-05-06 13:00:50  0f8fad5b-d9cb-469f-a165-70867728950e  appointment.created    retrying  2         503      in 4s  -
2026-05-06 13:00:49  1f8fad5b-d9cb-469f-a165-70867728950e  appointment.cancelled  waiting   0         -        -      replay:r1
2026-05-06 13:00:48  2f8fad5b-d9cb-469f-a165-70867728950e  appointment.created    dead      6         timeout  -      -
`)
	same(t, s.err, `
this lacks the last 7 records of the log, which are still being taken in
`)
	const asked = "GET /api/webhooks/webhook_subscription:1/deliveries?"
	const rest = "event=appointment.created&from=2026-05-06T10%3A01%3A00Z&limit=200&status=retrying&to=2026-05-06T12%3A00%3A00Z"
	if len(api.asked()) != 2 || api.asked()[0].line != asked+rest || api.asked()[1].line != asked+"cursor=MTc&"+rest {
		t.Errorf("it asked %+v", api.asked())
	}
}

// A list ends where it was asked to, and says that there is more.
func TestDeliveriesListIsLimited(t *testing.T) {
	api := answers(t, answer(200, pageOne))
	s := newTestScreen(true)
	cmd := deliveriesListCmd{Subscription: "webhook_subscription:1", Limit: 1}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	if len(api.asked()) != 1 || !strings.HasSuffix(api.asked()[0].line, "/deliveries?limit=1") {
		t.Errorf("it asked %+v", api.asked())
	}
	if !strings.Contains(s.err.String(), "there are more") {
		t.Errorf("it says %q", s.err)
	}
	var document struct{ Deliveries []map[string]any }
	if err := json.Unmarshal([]byte(s.out.String()), &document); err != nil || len(document.Deliveries) != 1 || document.Deliveries[0]["event_position"] != "3/1234" {
		t.Errorf("the document is %s (%v)", s.out, err)
	}

	again := answers(t, answer(200, pageOne))
	cmd.All = true
	if err := cmd.run(t.Context(), again.client(t), s.screen); err == nil || len(again.asked()) != 2 {
		t.Errorf("a page that names itself as the next one was asked for %d times (%v)", len(again.asked()), err)
	}
}

func TestDeliveriesShow(t *testing.T) {
	api := answers(t, answer(200, oneDelivery))
	s := newTestScreen(false)
	cmd := deliveriesShowCmd{Delivery: deliveryID}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.out, `
delivery      0f8fad5b-d9cb-469f-a165-70867728950e
subscription  webhook_subscription:1
event         appointment.created
position      3/1234
status        retrying
created       2026-05-06 13:00:50
next attempt  in 4s

ATTEMPT  AT                   OUTCOME  STATUS  ERROR    TOOK  ANSWER
1        2026-05-06 13:00:50  failed   -       timeout  10s   -
2        2026-05-06 13:00:51  failed   503     status   12ms  go\x1b[2J \u009baway\nnow
`)
	if api.asked()[0].line != "GET /api/deliveries/"+deliveryID {
		t.Errorf("it asked for %s", api.asked()[0].line)
	}

	asJSON := newTestScreen(true)
	if err := cmd.run(t.Context(), api.client(t), asJSON.screen); err != nil {
		t.Fatal(err)
	}
	var document struct {
		Delivery struct{ Attempts []struct{ Answer string } }
	}
	if err := json.Unmarshal([]byte(asJSON.out.String()), &document); err != nil {
		t.Fatal(err)
	}
	if got := document.Delivery.Attempts[1].Answer; got != "go\x1b[2J \u009baway\nnow" {
		t.Errorf("the answer is %q", got)
	}
	for _, c := range asJSON.out.String() {
		if c != '\n' && (c < ' ' || c >= 0x7f && c <= 0x9f) {
			t.Errorf("the JSON has the control character %U", c)
		}
	}
}

func TestDeliveriesResend(t *testing.T) {
	api := answers(t, answer(202, `{"success":true,"message":"The event is sent again","delivery_id":"new"}`))
	s := newTestScreen(false)
	cmd := deliveriesResendCmd{Delivery: deliveryID, keyFlag: keyFlag{Key: "K"}}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.out, "sent again as new; to see what becomes of it: webhooks deliveries show new\n")
	if want := (request{"POST /api/deliveries/" + deliveryID + "/resend", "Bearer T", "K", ""}); api.asked()[0] != want {
		t.Errorf("it asked %+v, want %+v", api.asked()[0], want)
	}
}
