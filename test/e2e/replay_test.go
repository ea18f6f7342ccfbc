package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// History is delivered to a subscription that was made after it, counted first;
// one delivery is made again; and an example is sent. Each is a delivery of its
// own, whose body is the first one's but for the delivery's id.
func TestReplay(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	sink := harness.NewSink(t, nil)
	c.Subscribe(t, "appointment.*", sink.URL+"/first", secret)
	one := c.Book(t, "provider:1", day, "10:00", "10:30")
	c.Book(t, "provider:1", day, "11:00", "11:30")
	c.Book(t, "provider:2", day, "10:00", "10:30")
	c.Must(t, http.StatusOK, http.MethodPost, "/api/appointments/"+one+"/cancel", map[string]any{"reason": "flu"})
	first := sink.AwaitN(t, 4)
	d.Drained(t)

	late := c.Subscribe(t, "appointment.created", sink.URL+"/late", secret)
	replays := "/api/webhooks/" + late + "/replays"
	ask := map[string]any{"from": "2000-01-01T00:00:00Z", "provider_id": "provider:1", "dry_run": true}
	if n := c.Must(t, http.StatusOK, http.MethodPost, replays, ask)["count"]; n != 2.0 {
		t.Errorf("counted %v, want 2", n)
	}
	ask["dry_run"] = false
	id := c.Must(t, http.StatusCreated, http.MethodPost, replays, ask).Object("replay").String("id")
	awaitReplay(t, c, replays+"/"+id, webhook.ReplayDone)
	again := c.Must(t, http.StatusAccepted, http.MethodPost, "/api/deliveries/"+first[0].ID()+"/resend", nil).String("delivery_id")
	test := c.Must(t, http.StatusAccepted, http.MethodPost, "/api/webhooks/"+late+"/test", nil).String("delivery_id")

	bodies := map[string]bool{} // without ids
	for _, r := range first {
		bodies[strings.ReplaceAll(string(r.Body), r.ID(), "")] = true
	}
	replayed := 0
	for _, r := range d.AwaitRecords(t, "webhooks.backfill", 4) {
		got, err := webhook.ParseDelivery(r)
		if err != nil {
			t.Fatal(err)
		}
		known := bodies[strings.ReplaceAll(string(got.Body), got.ID, "")]
		switch {
		case got.Replay() == id && got.SubscriptionID == late && got.EventType == "appointment.created" && known:
			replayed++
		case got.ID == again && got.SubscriptionID != late && known:
		case got.ID == test && got.SubscriptionID == late && got.Test():
		default:
			t.Errorf("unexpected delivery %s of %s, %s: %s", got.ID, got.EventType, got.Origin, got.Body)
		}
	}
	if replayed != 2 {
		t.Errorf("%d events were replayed, want 2", replayed)
	}
	marked := 0
	for _, r := range sink.AwaitN(t, 8)[4:] {
		if (r.ID() == test) != (r.Header.Get("X-Webhook-Test") == "true") {
			t.Errorf("delivery %s says of itself that it is a test: %q", r.ID(), r.Header.Get("X-Webhook-Test"))
		}
		if r.ID() == test {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("%d tests arrived, want one", marked)
	}
	d.Drained(t)
	d.CheckSchemas(t)
}

// Cancelling a replay also ends what it has made and what still waits.
func TestCancelledReplay(t *testing.T) {
	d := harness.Start(t, harness.Options{RetrySchedule: "5s"})
	c := d.SignIn(d.URL)
	c.Book(t, "provider:1", day, "10:00", "10:30")
	failing := harness.NewSink(t, func(harness.Request) int { return http.StatusInternalServerError })
	id := c.Subscribe(t, "appointment.created", failing.URL, secret)
	replays := "/api/webhooks/" + id + "/replays"
	replay := c.Must(t, http.StatusCreated, http.MethodPost, replays, map[string]any{"from": "earliest"}).Object("replay").String("id")
	failing.AwaitN(t, 1)
	c.Must(t, http.StatusOK, http.MethodDelete, replays+"/"+replay, nil)
	last, err := webhook.ParseAttempt(d.AwaitRecords(t, "webhooks.attempts", 2)[1].Value)
	if err != nil {
		t.Fatal(err)
	}
	if last.Attempt != 2 || last.Outcome != webhook.Discarded || last.Error != "replay_cancelled" {
		t.Errorf("the second attempt is recorded as %+v", last)
	}
	if n := len(failing.Requests()); n != 1 {
		t.Errorf("%d requests arrived, want one", n)
	}
	d.Drained(t)
	d.CheckSchemas(t)
}

// awaitReplay asks until a replay is in a state.
func awaitReplay(t *testing.T, c *harness.Client, path, state string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		replay := c.Must(t, http.StatusOK, http.MethodGet, path, nil).Object("replay")
		if replay.String("state") == state {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the replay is not %s: %v", state, replay)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
