package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// An endpoint that keeps failing is tried six times and then the delivery is a
// dead letter; its neighbour notices nothing.
func TestFailingEndpoint(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	failing := harness.NewSink(t, func(harness.Request) int { return http.StatusInternalServerError })
	healthy := harness.NewSink(t, nil)
	id := c.Subscribe(t, "appointment.created", failing.URL, secret)
	c.Subscribe(t, "appointment.created", healthy.URL, secret)
	c.Book(t, "provider:1", day, "10:00", "10:30")

	healthy.AwaitN(t, 1)
	dead := d.AwaitRecords(t, "webhooks.dead-letters", 1)
	requests := failing.Requests()
	if len(requests) != 6 {
		t.Fatalf("%d attempts, want 6", len(requests))
	}
	for i, r := range requests {
		if got := r.Header.Get("X-Delivery-Attempt"); got != fmt.Sprint(i+1) {
			t.Errorf("request %d says it is attempt %s", i+1, got)
		}
		if r.ID() != requests[0].ID() || string(r.Body) != string(requests[0].Body) {
			t.Errorf("attempt %d differs from the first", i+1)
		}
	}
	var letter webhook.DeadLetter
	if err := json.Unmarshal(dead[0].Value, &letter); err != nil {
		t.Fatal(err)
	}
	if letter.Reason != webhook.ReasonExhausted || letter.Delivery.SubscriptionID != id || len(letter.Delivery.Attempts) != 6 {
		t.Errorf("dead letter %s", dead[0].Value)
	}
	d.Drained(t)
	d.CheckSchemas(t)

	// Who asks is told the same: the delivery with its cause, and every attempt.
	list := awaitStatus(t, c, "/api/webhooks/"+id+"/deliveries?status=dead", func(a harness.Answer) bool {
		deliveries, _ := a["deliveries"].([]any)
		return len(deliveries) == 1
	})
	one := harness.Answer(list["deliveries"].([]any)[0].(map[string]any))
	if last := one.Object("last_attempt"); one.String("delivery_id") != requests[0].ID() || last["status"] != 500.0 || last.String("error") != "status" {
		t.Errorf("the API says %v", one)
	}
	shown := c.Must(t, http.StatusOK, http.MethodGet, "/api/deliveries/"+requests[0].ID(), nil).Object("delivery")
	if attempts, _ := shown["attempts"].([]any); len(attempts) != 6 || shown.String("status") != "dead" {
		t.Errorf("the API says %v", shown)
	}
	stats := c.Must(t, http.StatusOK, http.MethodGet, "/api/webhooks/"+id+"/stats", nil).Object("stats")
	if hour := stats.Object("1h"); hour["attempts"] != 6.0 || hour["dead"] != 1.0 || stats["retrying"] != 0.0 {
		t.Errorf("the API says %v", stats)
	}
}

// awaitStatus repeats a question until its answer says what is waited for.
func awaitStatus(t *testing.T, c *harness.Client, path string, holds func(harness.Answer) bool) harness.Answer {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		a := c.Must(t, http.StatusOK, http.MethodGet, path, nil)
		if holds(a) {
			return a
		}
		select {
		case <-limit:
			t.Fatalf("%s still answers %v", path, a)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// An endpoint that says for the last time that it is gone is left in peace: its
// subscription is disabled, the answer says why, and what comes later is not for
// it. Enabled again, it gets what happens from then on.
func TestGoneEndpoint(t *testing.T) {
	d := harness.Start(t, harness.Options{RetrySchedule: "100ms"})
	c := d.SignIn(d.URL)
	var well atomic.Bool
	gone := harness.NewSink(t, func(harness.Request) int {
		if well.Load() {
			return http.StatusOK
		}
		return http.StatusGone
	})
	id := c.Subscribe(t, "appointment.created", gone.URL, secret)
	c.Book(t, "provider:1", day, "10:00", "10:30")
	sub := harness.Answer{}
	for limit := time.After(time.Minute); sub["disabled"] == nil; {
		sub = c.Must(t, http.StatusOK, http.MethodGet, "/api/webhooks/"+id, nil).Object("subscription")
		select {
		case <-time.After(50 * time.Millisecond):
		case <-limit:
			t.Fatalf("the subscription is still %v", sub)
		}
	}
	if enabled(sub) || sub.Object("disabled").String("reason") != "gone" || sub["version"] != 2.0 {
		t.Errorf("the subscription is %v", sub)
	}
	c.Book(t, "provider:1", day, "11:00", "11:30")
	well.Store(true)
	sub = c.Must(t, http.StatusOK, http.MethodPut, "/api/webhooks/"+id, map[string]any{"enabled": true}).Object("subscription")
	if !enabled(sub) || sub["disabled"] != nil {
		t.Errorf("enabled again, the subscription is %v", sub)
	}
	last := c.Book(t, "provider:1", day, "12:00", "12:30")
	requests := gone.AwaitN(t, 3)
	var body struct {
		Data struct {
			ID string `json:"appointment_id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(requests[2].Body, &body); err != nil || body.Data.ID != last {
		t.Errorf("the third request is for %s, %v; want %s", body.Data.ID, err, last)
	}
	d.Drained(t)
	d.CheckSchemas(t)
}

func enabled(sub harness.Answer) bool {
	on, _ := sub["enabled"].(bool)
	return on
}

// Killed like in a power cut and started again, the system has everything it
// had: what waited is delivered, what was delivered is not sent again. Only a
// request in flight at the kill may come twice, and none is.
func TestKillAndStartAgain(t *testing.T) {
	// The retry comes when the processes have long been killed.
	d := harness.Start(t, harness.Options{RetrySchedule: "10s,10s,10s,10s,10s"})
	c := d.SignIn(d.URL)
	good := harness.NewSink(t, nil)
	bad := harness.NewSink(t, func(harness.Request) int { return http.StatusServiceUnavailable })
	c.Subscribe(t, "appointment.*", good.URL, secret)
	c.Subscribe(t, "appointment.created", bad.URL, secret)
	id := c.Book(t, "provider:1", day, "10:00", "10:30")
	good.AwaitN(t, 1)
	bad.AwaitN(t, 1)
	awaitCommitted(t, d, "webhooks.deliveries", 2) // so both attempts are settled

	for _, p := range d.Processes {
		p.Kill()
	}
	bad.Answer(func(harness.Request) int { return http.StatusOK })
	d.StartAgain()
	c = d.SignIn(d.URL)

	appointment := c.Must(t, http.StatusOK, http.MethodGet, "/api/appointments/"+id, nil).Object("appointment")
	if appointment.String("status") != "scheduled" {
		t.Errorf("after the restart the appointment is %v", appointment)
	}
	if total := c.Must(t, http.StatusOK, http.MethodGet, "/api/webhooks", nil)["total"]; total != 2.0 {
		t.Errorf("after the restart there are %v subscriptions, want 2", total)
	}
	// What waited in a retry topic is delivered, and what comes now too; had one of
	// the first requests been sent again, it would be here.
	c.Must(t, http.StatusOK, http.MethodPost, "/api/appointments/"+id+"/confirm", nil)
	good.AwaitN(t, 2)
	bad.AwaitN(t, 2)
	d.Drained(t)
	for sink, want := range map[*harness.Sink][]string{
		good: {"appointment.created attempt 1", "appointment.confirmed attempt 1"},
		bad:  {"appointment.created attempt 1", "appointment.created attempt 2"},
	} {
		var got []string
		for _, r := range sink.Requests() {
			got = append(got, r.Header.Get("X-Event-Type")+" attempt "+r.Header.Get("X-Delivery-Attempt"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("requests for %q, want %q", got, want)
		}
	}
	if all := bad.Requests(); all[0].ID() != all[len(all)-1].ID() {
		t.Errorf("the retry is of delivery %s, not of %s", all[len(all)-1].ID(), all[0].ID())
	}
}

// awaitCommitted returns when the senders have committed past n records of a
// topic, and so have settled them.
func awaitCommitted(t *testing.T, d *harness.Deployment, topic string, n int) {
	t.Helper()
	last := map[int32]int64{}
	for _, r := range d.AwaitRecords(t, topic, n) {
		last[r.Partition] = max(last[r.Partition], r.Offset)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	adm := kadm.NewClient(d.Client(t))
	for {
		committed, err := adm.FetchOffsets(ctx, d.Prefix+"webhook-sender")
		done := err == nil
		for p, offset := range last {
			o, ok := committed.Lookup(d.Prefix+topic, p)
			done = done && ok && o.At > offset
		}
		if done {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not committed to %v: %v", topic, last, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Records that nobody can read end as dead letters and stop nothing.
func TestUnreadableRecords(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	sink := harness.NewSink(t, nil)
	c.Subscribe(t, "appointment.created", sink.URL, secret)
	d.Produce(t, "webhooks.deliveries", []byte("webhook_subscription:x"), []byte("{"))
	d.Produce(t, "webhooks.subscriptions", []byte("webhook_subscription:y"), []byte("not JSON"))
	c.Book(t, "provider:1", day, "10:00", "10:30")
	sink.AwaitN(t, 1)
	for _, r := range d.AwaitRecords(t, "webhooks.dead-letters", 2) {
		var letter webhook.DeadLetter
		if err := json.Unmarshal(r.Value, &letter); err != nil {
			t.Fatal(err)
		}
		if letter.Reason != webhook.ReasonUnreadable || letter.Error == "" || letter.Source.Topic == "" {
			t.Errorf("dead letter %s", r.Value)
		}
	}
}
