package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// delivered is the part of answers about deliveries that tests look at.
type delivered struct {
	ID           string `json:"delivery_id"`
	Subscription string `json:"subscription_id"`
	Event        string
	Status       string
	CreatedAt    time.Time  `json:"created_at"`
	NextAt       *time.Time `json:"next_attempt_at"`
	Count        int        `json:"attempt_count"`
	Last         *attempted `json:"last_attempt"`
	Attempts     []attempted
}

type attempted struct {
	Attempt   int
	Outcome   string
	Status    int
	Error     string
	Answer    string
	LatencyMS float64 `json:"latency_ms"`
}

// deliver writes a delivery's records: what the router and the sender would.
func (d *deployment) deliver(t *testing.T, sub, event string, at time.Time, outcomes ...string) (id string) {
	t.Helper()
	id = uuid.NewString()
	topics := d.kafka.Topics()
	made := webhook.Delivery{ID: id, SubscriptionID: sub, EventType: event, Event: webhook.Position{Offset: 3}, Attempt: 1, Body: []byte(`{"data":"private"}`)}
	record, err := made.Encode(topics.Deliveries())
	check(t, err)
	record.Timestamp = at
	records := []*kgo.Record{record}
	for i, outcome := range outcomes {
		a := webhook.Attempt{
			DeliveryID: id, SubscriptionID: sub, EventType: event, EventPosition: "0/3", Attempt: i + 1,
			At: at.Add(time.Duration(i) * time.Second), Outcome: outcome, Status: 200, LatencyMS: 10,
		}
		if outcome != webhook.Delivered {
			next := a.At.Add(time.Minute)
			a.Status, a.Error, a.Answer, a.NextAttemptAt = 503, "status", "out of order", &next
		}
		value, err := json.Marshal(a)
		check(t, err)
		records = append(records, &kgo.Record{Topic: topics.Attempts(), Key: []byte(sub), Value: value})
	}
	check(t, testenv.Client(t, d.kafka).ProduceSync(t.Context(), records...).FirstErr())
	return id
}

// upToDate repeats a question until the answer says that nothing is behind.
func (c *caller) upToDate(path string) *reply {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for {
		r := c.call("GET", path, "").want(200)
		if r.text("behind") == "0" {
			return r
		}
		select {
		case <-tick.C:
		case <-limit:
			c.t.Fatalf("the status is still behind: %s", r.raw)
		}
	}
}

func TestDeliveries(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Integrator)
	sub := c.call("POST", "/api/webhooks", hook("appointment.*", "")).want(201).text("subscription", "id")
	path := "/api/webhooks/" + sub
	if r := c.call("GET", path+"/deliveries", "").want(200); r.text("deliveries") != "[]" || r.body["next_cursor"] != nil || r.text("behind") != "0" {
		t.Errorf("without deliveries: %s", r.raw)
	}
	if r := c.call("GET", path+"/stats", "").want(200); strings.Count(r.raw, `"success_rate":null,"latency_ms":null`) != 3 || r.text("stats", "waiting") != "0" {
		t.Errorf("without deliveries: %s", r.raw)
	}

	now := time.Now().UTC().Truncate(time.Millisecond)
	wants := []struct {
		id, state string
		outcomes  []string
	}{
		{state: "waiting"},
		{state: "retrying", outcomes: []string{"failed"}},
		{state: "delivered", outcomes: []string{"failed", "delivered"}},
		{state: "dead", outcomes: []string{"failed", "failed", "dead"}},
		{state: "discarded", outcomes: []string{"discarded"}},
	}
	for i := range wants {
		event := "appointment.created"
		if i == 0 {
			event = "appointment.updated"
		}
		wants[i].id = d.deliver(t, sub, event, now.Add(-time.Duration(i)*10*time.Second), wants[i].outcomes...)
	}
	last := d.deliver(t, "webhook_subscription:"+uuid.NewString(), "appointment.created", now, "delivered")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); ; {
		list := c.call("GET", path+"/deliveries", "").raw
		if c.call("GET", "/api/deliveries/"+last, "").status == 200 && strings.Count(list, `"delivery_id"`) == len(wants) && strings.Count(list, `"last_attempt"`) == 4 &&
			c.call("GET", path+"/stats", "").text("stats", "1h", "attempts") == "6" {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the deliveries are still not there")
		}
	}

	r := c.upToDate(path + "/deliveries")
	var list struct{ Deliveries []delivered }
	check(t, json.Unmarshal([]byte(r.raw), &list))
	if len(list.Deliveries) != len(wants) {
		t.Fatalf("listed are %s", r.raw)
	}
	for i, want := range wants {
		got := list.Deliveries[i]
		if got.ID != want.id || got.Status != want.state || got.Subscription != sub || got.Count != len(want.outcomes) ||
			(got.Last == nil) != (len(want.outcomes) == 0) || (got.NextAt == nil) == (want.state == "retrying") ||
			!got.CreatedAt.Equal(now.Add(-time.Duration(i)*10*time.Second)) {
			t.Errorf("delivery %d in the list is %+v", i, got)
		}
		if want.state == "dead" && (got.Last.Status != 503 || got.Last.Error != "status" || got.Last.Outcome != "dead") {
			t.Errorf("a dead one does not show its cause: %+v", got.Last)
		}
		one := c.call("GET", "/api/deliveries/"+want.id, "").want(200)
		var shown struct{ Delivery delivered }
		check(t, json.Unmarshal([]byte(one.raw), &shown))
		if got := shown.Delivery; got.ID != want.id || got.Status != want.state || len(got.Attempts) != len(want.outcomes) {
			t.Errorf("delivery %d is %s", i, one.raw)
		}
		for n, a := range shown.Delivery.Attempts {
			if a.Attempt != n+1 || a.Outcome != want.outcomes[n] || a.LatencyMS != 10 || (a.Answer == "out of order") == (a.Outcome == "delivered") {
				t.Errorf("attempt %d of delivery %d is %+v", n+1, i, a)
			}
		}
		if r := c.call("GET", path+"/deliveries?status="+want.state, "").want(200); strings.Count(r.raw, `"delivery_id"`) != 1 || !strings.Contains(r.raw, want.id) {
			t.Errorf("those that are %s: %s", want.state, r.raw)
		}
	}

	for query, want := range map[string]int{
		"?event=appointment.updated": 1, "?event=appointment.cancelled": 0,
		"?from=" + now.Add(-15*time.Second).Format(time.RFC3339Nano): 2,
		"?to=" + now.Add(-15*time.Second).Format(time.RFC3339Nano):   3,
		"?status=dead&event=appointment.created&limit=200":           1,
	} {
		if r := c.call("GET", path+"/deliveries"+query, "").want(200); strings.Count(r.raw, `"delivery_id"`) != want || r.body["next_cursor"] != nil {
			t.Errorf("%s: %s, want %d", query, r.raw, want)
		}
	}
	cursor, pages := "", ""
	for range wants {
		r := c.call("GET", path+"/deliveries?limit=1"+cursor, "").want(200)
		pages += r.raw
		cursor = "&cursor=" + r.text("next_cursor")
	}
	if cursor != "&cursor=" || strings.Count(pages, `"delivery_id"`) != len(wants) {
		t.Errorf("by one, the pages are %s", pages)
	}

	stats := c.upToDate(path + "/stats")
	for name, want := range map[string]string{
		"delivered": "1", "failed": "4", "dead": "1", "discarded": "1", "attempts": "6", "success_rate": fmt.Sprint(1.0 / 6),
	} {
		for _, window := range []string{"5m", "1h", "24h"} {
			if got := stats.text("stats", window, name); got != want {
				t.Errorf("%s of %s is %s, want %s", name, window, got, want)
			}
		}
	}
	if stats.text("stats", "waiting") != "1" || stats.text("stats", "retrying") != "1" || stats.text("stats", "5m", "latency_ms", "p99") == "" {
		t.Errorf("stats %s", stats.raw)
	}

	for query, field := range map[string]string{
		"status=lost": "status", "status=": "status", "event=appointment.no_show": "event", "event=": "event", "from=yesterday": "from", "to=": "to",
		"limit=0": "limit", "limit=201": "limit", "limit=x": "limit", "limit=": "limit", "cursor=x": "cursor",
	} {
		c.call("GET", path+"/deliveries?"+query, "").refused(400, "invalid_input", field)
	}
	c.call("GET", path+"/deliveries?to=x&status=x&limit=x&from=x", "").refused(400, "invalid_input", "from", "limit", "status", "to")
	for _, id := range []string{uuid.NewString(), "x", strings.ToUpper(wants[0].id)} {
		c.call("GET", "/api/deliveries/"+id, "").refused(404, "delivery_not_found")
	}
	for _, question := range []string{"/deliveries", "/stats"} {
		c.call("GET", "/api/webhooks/webhook_subscription:"+uuid.NewString()+question, "").refused(404, "subscription_not_found")
		in.as(session.Staff).call("GET", path+question, "").refused(403, "access_denied")
		in.call("GET", path+question, "").refused(401, "not_signed_in")
	}
	in.as(session.Patient).call("GET", "/api/deliveries/"+wants[0].id, "").refused(403, "access_denied")
	in.as(session.Admin).call("GET", "/api/deliveries/"+wants[0].id, "").want(200)
	// What there was is still there when the subscription has gone.
	c.call("DELETE", path, "").want(200)
	c.call("GET", "/api/deliveries/"+wants[0].id, "").want(200)
}

// Without Redis the question can't be answered, and says when to ask again.
func TestDeliveriesUnavailable(t *testing.T) {
	d := deploy(t)
	server := miniredis.RunT(t)
	d.status = &redis.Options{Addr: server.Addr()}
	c := d.start(t, nil).as(session.Admin)
	path := "/api/webhooks/" + c.call("POST", "/api/webhooks", hook("appointment.*", "")).want(201).text("subscription", "id")
	server.SetError("LOADING")
	for _, question := range []string{path + "/deliveries", path + "/stats", "/api/deliveries/" + uuid.NewString()} {
		r := c.call(http.MethodGet, question, "").refused(503, "status_unavailable")
		if r.header.Get("Retry-After") != "1" {
			t.Errorf("%s: Retry-After is %q", question, r.header.Get("Retry-After"))
		}
	}
	server.SetError("")
	c.call("GET", path+"/stats", "").want(200)
}
