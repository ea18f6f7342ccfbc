package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

func TestReceiver(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	delivery := &webhook.Delivery{
		ID: webhook.DeliveryID("e", "s", ""), EventType: "appointment.created", Attempt: 2, Body: []byte(`{"event":"appointment.created","data":{"a":1}}`),
	}
	for name, c := range map[string]struct {
		secret string // the receiver's; requests are signed with "S"
		answer int
		spoil  func(*http.Request)
		status int
		shown  []string
	}{
		"right": {"S", 200, nil, 200, []string{
			"12:00:00  POST /hook → 200", "event     appointment.created", "delivery  " + delivery.ID + ", attempt 2\n",
			"both signatures verified", "    \"event\": \"appointment.created\",\n",
		}},
		"told to fail": {"S", 500, nil, 500, []string{"→ 500", "both signatures verified"}},
		"other secret": {"other", 200, nil, 401, []string{"→ 401", "NOT VERIFIED: " + webhook.HeaderSignature}},
		"second signature wrong": {"S", 200, func(r *http.Request) { r.Header.Set(webhook.HeaderStandardSignature, "v1,AAAA") }, 401,
			[]string{"NOT VERIFIED: " + webhook.HeaderStandardSignature}},
		"old":       {"S", 200, func(r *http.Request) { webhook.NewSigner("S").Sign(r.Header.Set, delivery, now.Add(-time.Hour)) }, 401, []string{"NOT VERIFIED", "1h0m0s"}},
		"unchecked": {"", 204, func(r *http.Request) { r.Header.Del(webhook.HeaderSignature) }, 204, []string{"signatures not checked"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			r := &receiver{secret: c.secret, status: c.answer, out: &out, now: func() time.Time { return now }}
			req := httptest.NewRequest(http.MethodPost, "/hook", strings.NewReader(string(delivery.Body)))
			webhook.NewSigner("S").Sign(req.Header.Set, delivery, now)
			if c.spoil != nil {
				c.spoil(req)
			}
			answer := httptest.NewRecorder()
			r.ServeHTTP(answer, req)
			if answer.Code != c.status {
				t.Errorf("answered %d, want %d", answer.Code, c.status)
			}
			for _, want := range c.shown {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it does not show %q:\n%s", want, out.String())
				}
			}
		})
	}
}

func TestReceiverCountsRepeats(t *testing.T) {
	var out strings.Builder
	r := &receiver{status: 200, out: &out, now: time.Now}
	for range 2 {
		req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		req.Header.Set(webhook.HeaderDeliveryID, "d")
		r.ServeHTTP(httptest.NewRecorder(), req)
	}
	if strings.Count(out.String(), "seen 2 times") != 1 || strings.Contains(out.String(), "seen 1") {
		t.Errorf("it shows:\n%s", out.String())
	}
}

// Nothing that a stranger sends may steer the terminal: neither in a header nor
// in the path nor in a body, be it JSON or not.
func TestReceiverEscapesControlCharacters(t *testing.T) {
	for _, body := range []string{"\x1b[2J\x07 no JSON", `{"a":"` + "\u009b31m" + `"}`, `{"a":"` + "\x7f\x9b\u202e" + `"}`, ""} {
		var out strings.Builder
		r := &receiver{status: 200, out: &out, now: time.Now}
		req := httptest.NewRequest(http.MethodPost, "/%1b%5b2J", strings.NewReader(body))
		req.Header.Set(webhook.HeaderEventType, "\u009b2J")
		req.Header.Set(webhook.HeaderDeliveryID, "\x1b]0;x")
		req.Header.Set(webhook.HeaderAttempt, "\x7f")
		r.ServeHTTP(httptest.NewRecorder(), req)
		for _, c := range out.String() {
			if c != '\n' && (c < ' ' || c >= 0x7f && c <= 0x9f || c == '\u202e') {
				t.Errorf("%q shows the control character %U in %q", body, c, out.String())
			}
		}
	}
}

func TestReceiverRefusesHugeBodies(t *testing.T) {
	r := &receiver{status: 200, out: &strings.Builder{}, now: time.Now}
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat(" ", 1<<20+1))))
	if answer.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("answered %d", answer.Code)
	}
}
