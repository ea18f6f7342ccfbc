// Package e2e tries the whole system from outside: an appointment made over HTTP
// arrives at an endpoint, signed.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/arsmedicatech/webhooks/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	secret = "test-secret"
	day    = "2031-05-06"
)

// The flow that receivers were promised: a subscription for each event; one
// appointment created, updated, confirmed and cancelled, another completed; each
// request arrives once, with the contract's headers and body.
func TestFlow(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	page, err := http.Get(d.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	if _ = page.Body.Close(); page.StatusCode != http.StatusOK || page.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("the console is answered %d, %v", page.StatusCode, page.Header)
	}
	sink := harness.NewSink(t, nil)
	subs := map[string]string{}
	for _, event := range []string{"created", "updated", "cancelled", "confirmed", "completed"} {
		subs["appointment."+event] = c.Subscribe(t, "appointment."+event, sink.URL+"/"+event, secret)
	}

	one := c.Book(t, "provider:1", day, "10:00", "10:30")
	c.Must(t, http.StatusOK, http.MethodPut, "/api/appointments/"+one, map[string]any{"start_time": "10:15", "end_time": "10:45"})
	c.Must(t, http.StatusOK, http.MethodPost, "/api/appointments/"+one+"/confirm", nil)
	c.Must(t, http.StatusOK, http.MethodPost, "/api/appointments/"+one+"/cancel", map[string]any{"reason": "flu"})
	two := c.Book(t, "provider:2", day, "10:00", "10:30")
	c.Must(t, http.StatusOK, http.MethodPost, "/api/appointments/"+two+"/complete", nil)

	common := func(id, provider, start, end string, more map[string]any) map[string]any {
		data := map[string]any{
			"appointment_id": id, "patient_id": "patient:1", "provider_id": provider, "appointment_date": day,
			"start_time": start, "end_time": end, "appointment_type": "consultation",
		}
		maps.Copy(data, more)
		return data
	}
	type want struct {
		event string
		data  map[string]any
	}
	wanted := []want{
		{"appointment.created", common(one, "provider:1", "10:00", "10:30", nil)},
		{"appointment.updated", common(one, "provider:1", "10:15", "10:45", map[string]any{
			"status": "scheduled", "changes": map[string]any{"start_time": "10:15", "end_time": "10:45"}})},
		{"appointment.confirmed", common(one, "provider:1", "10:15", "10:45", map[string]any{"status": "confirmed"})},
		{"appointment.cancelled", common(one, "provider:1", "10:15", "10:45", map[string]any{"status": "cancelled", "reason": "flu"})},
		{"appointment.created", common(two, "provider:2", "10:00", "10:30", nil)},
		{"appointment.completed", common(two, "provider:2", "10:00", "10:30", map[string]any{"status": "completed"})},
	}
	sink.AwaitN(t, len(wanted))
	d.Drained(t)
	requests := sink.Requests()
	if len(requests) != len(wanted) {
		t.Fatalf("%d requests arrived, want %d", len(requests), len(wanted))
	}
	ids := map[string]bool{}
	for _, r := range requests {
		body := verify(t, r)
		if ids[r.ID()] {
			t.Errorf("delivery %s came twice", r.ID())
		}
		ids[r.ID()] = true
		data, err := json.Marshal(body["data"])
		if err != nil {
			t.Fatal(err)
		}
		matched := false
		for i, w := range wanted {
			text, err := json.Marshal(w.data)
			if err != nil {
				t.Fatal(err)
			}
			if body["event"] == w.event && bytes.Equal(text, data) {
				wanted = append(wanted[:i:i], wanted[i+1:]...)
				matched = true
				break
			}
		}
		if !matched {
			t.Errorf("unexpected %s with data %s", body["event"], data)
		}
	}
	d.CheckSchemas(t)
}

// verify checks a request as a receiver does, with code that is not ours, and
// returns its body.
func verify(t *testing.T, r harness.Request) map[string]any {
	t.Helper()
	wh, err := standard.NewWebhookRaw([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	if err := wh.Verify(r.Body, r.Header); err != nil {
		t.Errorf("the Standard Webhooks library refuses %s: %v", r.Path, err)
	}
	verifyInPython(t, r)
	var body map[string]any
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatalf("body of %s: %v", r.Path, err)
	}
	event, _ := body["event"].(string)
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "ArsMedicaTech-Webhooks/1.0",
		"X-Event-Type": event, "X-Delivery-Attempt": "1", "Webhook-Id": r.ID(),
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s of %s is %q, want %q", name, r.Path, got, want)
		}
	}
	if body["delivery_id"] != r.ID() {
		t.Errorf("the body's delivery_id is %v, the header's %s", body["delivery_id"], r.ID())
	}
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(body["timestamp"])); err != nil {
		t.Errorf("timestamp: %v", err)
	}
	if len(body) != 4 {
		t.Errorf("the body has %d members, want 4: %s", len(body), r.Body)
	}
	return body
}

// python is the function that the specification gives to receivers.
const python = `
import hmac
import hashlib
import sys

def verify_signature(payload: bytes, secret: str, signature: str) -> bool:
    expected = hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"sha256={expected}", signature)

sys.exit(0 if verify_signature(sys.stdin.buffer.read(), sys.argv[1], sys.argv[2]) else 1)
`

// verifyInPython does nothing where there is no Python; a vector computed with
// the same function is tested everywhere.
func verifyInPython(t *testing.T, r harness.Request) {
	t.Helper()
	interpreter, err := exec.LookPath("python3")
	if err != nil {
		return
	}
	cmd := exec.CommandContext(t.Context(), interpreter, "-c", python, secret, r.Header.Get("X-Signature"))
	cmd.Stdin = bytes.NewReader(r.Body)
	if err := cmd.Run(); err != nil {
		t.Errorf("the specification's function refuses %s: %v", r.Path, err)
	}
}
