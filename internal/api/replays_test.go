package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/schemas"
)

// replayer carries replays out until the test ends.
func (d *deployment) replayer(t *testing.T) {
	t.Helper()
	opts, topics := testenv.Options(t, d.kafka), d.kafka.Topics()
	table, err := replay.NewTable(replay.TableConfig{Kafka: opts, Topic: topics.Replays(), Log: d.log})
	check(t, err)
	reg, err := registry.New(registry.Config{Kafka: opts, Topic: topics.Subscriptions(), Log: d.log})
	check(t, err)
	r, err := replay.New(replay.Config{
		Kafka: opts, Topics: topics, Group: d.kafka.TopicPrefix + "replayer", TransactionalID: d.kafka.TopicPrefix + "r",
		Readers: d.kafka.TopicPrefix + "sender", Replays: table, Subscriptions: reg, Log: d.log,
	})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	for _, run := range []func(context.Context) error{table.Run, reg.Run, r.Run} {
		g.Go(func() error { return run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		check(t, g.Wait())
	})
}

// awaitReplay asks until a replay is in a state.
func (c *caller) awaitReplay(path, state string) *reply {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r := c.call("GET", path, "").want(200)
		if r.text("replay", "state") == state {
			return r
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("the replay is not %s: %s", state, r.raw)
		}
	}
}

// nextMilli returns a time that everything before lies before, and everything
// after not.
func nextMilli() string {
	at := time.Now().Truncate(time.Millisecond).Add(time.Millisecond)
	for time.Now().Before(at) {
	}
	return at.UTC().Format(time.RFC3339Nano)
}

func TestReplays(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Admin)
	first := c.book("patient:1", "provider:1", "10:00", "10:30")
	c.book("patient:1", "provider:2", "10:00", "10:30")
	c.call("POST", "/api/appointments/"+first+"/cancel", "").want(200)
	middle := nextMilli()
	c.book("patient:1", "provider:1", "11:00", "11:30")
	c.book("patient:1", "provider:1", "12:00", "12:30")
	noShow := c.book("patient:1", "provider:1", "13:00", "13:30")
	c.call("POST", "/api/appointments/"+noShow+"/no-show", "").want(200)
	end := nextMilli()
	id := c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(201).text("subscription", "id")
	path := "/api/webhooks/" + id + "/replays"

	at := map[string][]string{} // positions by partition
	for _, r := range testenv.Read(t, d.kafka, d.kafka.Topics().Events(), 7) {
		p := fmt.Sprint(r.Partition)
		at[p] = append(at[p], fmt.Sprintf("%d/%d", r.Partition, r.Offset))
	}
	one := at[fmt.Sprint(events.Partition("provider:2", testenv.Partitions))]
	for _, dry := range []struct {
		ask  string
		want int
	}{
		{`"from":"earliest"`, 5},
		{`"from":"earliest","event_names":["appointment.*"]`, 6},
		{`"from":"earliest","event_names":["appointment.cancelled"]`, 1},
		{`"from":"earliest","event_names":["appointment.cancelled","appointment.created"]`, 6},
		{`"from":"earliest","provider_id":"provider:2"`, 1},
		{`"from":"earliest","provider_id":"provider:3"`, 0},
		{`"from":"earliest","to":"` + middle + `"`, 2},
		{`"from":"` + middle + `"`, 3},
		{`"from":"` + middle + `","to":"` + end + `","rate":5`, 3},
		{`"from":"` + end + `"`, 0},
		{`"from":"2000-01-01T00:00:00+02:00","to":"2100-01-01T00:00:00Z"`, 5},
		{`"from":"latest"`, 0},
		{`"from":"` + one[0] + `","to":"latest","provider_id":"provider:2"`, 1},
		{`"from":"earliest","to":"` + one[0] + `","provider_id":"provider:2"`, 0},
		{`"from":"0/0, 1/0,2/0","to":"0/9999,1/9999,2/9999"`, 5},
	} {
		r := c.call("POST", path, `{"dry_run":true,`+dry.ask+`}`).want(200)
		if r.text("count") != fmt.Sprint(dry.want) || r.body["estimated"] != nil || r.body["replay"] != nil {
			t.Errorf("%s: %s, want %d", dry.ask, r.raw, dry.want)
		}
	}
	for _, wrong := range []struct {
		ask   string
		field []string
	}{
		{`{}`, []string{"from"}},
		{`{"from":""}`, []string{"from"}},
		{`{"from":"yesterday","to":"0/1,0/2","event_names":["appointment.no_show"],"rate":-1}`, []string{"from", "to", "event_names", "rate"}},
		{`{"from":"earliest","to":"7/1"}`, []string{"to"}},
		{`{"from":"0/5","to":"0/4"}`, []string{"to"}},
		{`{"from":"` + end + `","to":"` + middle + `"}`, []string{"to"}},
		{`{"from":"earliest","rate":1.5}`, []string{"rate"}},
		{`{"from":"earliest","rate":100001}`, []string{"rate"}},
		{`{"from":"earliest","event_names":"appointment.*"}`, []string{"event_names"}},
		{`{"from":"earliest","dry_run":"yes"}`, []string{"dry_run"}},
		{`{"from":"earliest","speed":1}`, []string{"speed"}},
		{`{"from":"earliest","provider_id":"` + strings.Repeat("x", 201) + `"}`, []string{"provider_id"}},
	} {
		c.call("POST", path, wrong.ask).refused(400, "invalid_input", wrong.field...)
	}
	if r := c.call("GET", path, "").want(200); r.text("total") != "0" || r.text("replays") != "[]" {
		t.Errorf("refused and dry runs left %s", r.raw)
	}

	ask := `{"from":"earliest","event_names":["appointment.*","appointment.*"],"provider_id":"provider:1"}`
	made := c.call("POST", path, ask, "Idempotency-Key", "k").want(201)
	for name, want := range map[string]string{
		"subscription_id": id, "state": "waiting", "total": "5", "done": "0", "rate": "0", "per_second": "0", "provider_id": "provider:1",
		"event_names": `["appointment.*"]`, "created_by": "user:admin", "source": "events", "from": "0/0,1/0,2/0",
	} {
		if got := made.text("replay", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	replayPath := path + "/" + made.text("replay", "id")
	if r := c.call("GET", replayPath, "").want(200); r.text("replay") != made.text("replay") {
		t.Errorf("it is %s", r.raw)
	}
	d.replayer(t)
	done := c.awaitReplay(replayPath, "done")
	if done.text("replay", "done") != "5" || done.text("replay", "to") != made.text("replay", "to") {
		t.Errorf("at the end it is %s", done.raw)
	}
	// A repeat is answered as the first, also at another instance.
	if r := d.start(t, nil).as(session.Admin).call("POST", path, ask, "Idempotency-Key", "k").want(201); r.raw != made.raw {
		t.Errorf("the repeat is answered %s, the first was %s", r.raw, made.raw)
	}
	c.call("POST", path, `{"from":"earliest"}`, "Idempotency-Key", "k").refused(409, "idempotency_key_reused")
	if n := len(d.backfill(t, 5)); n != 5 {
		t.Errorf("%d deliveries, want 5", n)
	}

	// One that is slow enough to be cancelled.
	slow := c.call("POST", path, `{"from":"earliest","rate":1}`).want(201).text("replay", "id")
	if r := c.call("DELETE", path+"/"+slow, "").want(200); r.text("replay", "state") != "cancelled" || r.text("message") == "" {
		t.Errorf("answer %s", r.raw)
	}
	c.awaitReplay(path+"/"+slow, "cancelled")
	c.call("DELETE", path+"/"+slow, "").want(200)

	ids := []string{slow, made.text("replay", "id")}
	for range 2 {
		ids = append([]string{c.call("POST", path, `{"from":"latest"}`).want(201).text("replay", "id")}, ids...)
	}
	var listed []string
	for cursor := ""; ; {
		var page struct {
			Replays    []struct{ ID string }
			Total      int
			NextCursor string `json:"next_cursor"`
		}
		check(t, json.Unmarshal([]byte(c.call("GET", path+"?limit=3&cursor="+cursor, "").want(200).raw), &page))
		for _, one := range page.Replays {
			listed = append(listed, one.ID)
		}
		if page.Total != 4 || len(page.Replays) > 3 {
			t.Errorf("page %+v", page)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if !slices.Equal(listed, ids) {
		t.Errorf("listed are %v, want %v", listed, ids)
	}
	c.call("GET", path+"?limit=0", "").refused(400, "invalid_input", "limit")
	c.call("GET", path+"?cursor=x", "").refused(400, "invalid_input", "cursor")

	other := c.call("POST", "/api/webhooks", hook("appointment.created", `,"enabled":false`)).want(201).text("subscription", "id")
	c.call("POST", "/api/webhooks/"+other+"/replays", `{"from":"earliest"}`).refused(409, "subscription_disabled")
	c.call("POST", "/api/webhooks/"+other+"/replays", `{"from":"earliest","dry_run":true}`).want(200)
	for _, method := range []string{"GET", "DELETE"} {
		c.call(method, "/api/webhooks/"+other+"/replays/"+slow, "").refused(404, "replay_not_found")
		c.call(method, path+"/"+uuid.NewString(), "").refused(404, "replay_not_found")
	}
	c.call("DELETE", "/api/webhooks/"+other, "").want(200)
	c.call("POST", "/api/webhooks/"+other+"/replays", `{"from":"earliest"}`).refused(404, "subscription_not_found")
	c.call("GET", "/api/webhooks/"+other+"/replays", "").refused(404, "subscription_not_found")
	for role := range users {
		if role == session.Admin || role == session.Integrator {
			continue
		}
		nobody := in.as(role)
		for _, call := range [][2]string{
			{"POST", path}, {"GET", path}, {"GET", replayPath}, {"DELETE", replayPath}, {"POST", "/api/webhooks/" + id + "/recover"},
			{"POST", "/api/webhooks/" + id + "/test"}, {"POST", "/api/deliveries/" + uuid.NewString() + "/resend"},
		} {
			nobody.call(call[0], call[1], "").refused(403, "access_denied")
		}
	}
	in.as(session.Integrator).call("GET", replayPath, "").want(200)
}

// backfill returns the first n deliveries that were asked for.
func (d *deployment) backfill(t *testing.T, n int) []*webhook.Delivery {
	t.Helper()
	var found []*webhook.Delivery
	for _, r := range testenv.Read(t, d.kafka, d.kafka.Topics().Backfill(), n) {
		one, err := webhook.ParseDelivery(r)
		check(t, err)
		check(t, schemas.Validate("webhooks.backfill", r.Value))
		found = append(found, one)
	}
	return found
}

// attempt writes down that a delivery of the event at the end of the log came to
// something, and returns its id.
func (d *deployment) attempt(t *testing.T, subscriptionID, outcome string, rec *kgo.Record) string {
	t.Helper()
	e, err := events.Decode(rec)
	check(t, err)
	a := webhook.Attempt{
		DeliveryID: webhook.DeliveryID(e.ID, subscriptionID, ""), SubscriptionID: subscriptionID, EventType: e.Type, Attempt: 1,
		EventPosition: webhook.Position{Partition: rec.Partition, Offset: rec.Offset}.String(), At: time.Now().UTC(), Outcome: outcome,
	}
	value, err := json.Marshal(a)
	check(t, err)
	d.produce(t, &kgo.Record{Topic: d.kafka.Topics().Attempts(), Key: []byte(subscriptionID), Value: value})
	return a.DeliveryID
}

func (d *deployment) produce(t *testing.T, r *kgo.Record) {
	t.Helper()
	check(t, testenv.Client(t, d.kafka).ProduceSync(t.Context(), r).FirstErr())
}

func TestResend(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Admin)
	id := c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(201).text("subscription", "id")
	c.book("patient:1", "provider:1", "10:00", "10:30")
	rec := testenv.Read(t, d.kafka, d.kafka.Topics().Events(), 1)[0]
	e, err := events.Decode(rec)
	check(t, err)
	payload, err := webhook.Render(e)
	check(t, err)

	// One that was attempted, one that waits, one that is a dead letter and nothing else.
	attempted := d.attempt(t, id, webhook.Delivered, rec)
	event := webhook.Position{Partition: rec.Partition, Offset: rec.Offset}
	waits := &webhook.Delivery{ID: uuid.NewString(), SubscriptionID: id, EventType: e.Type, Event: event, Attempt: 1}
	waits.Body = payload.Body(waits.ID)
	r, err := waits.Encode(d.kafka.Topics().Deliveries())
	check(t, err)
	d.produce(t, r)
	dead := webhook.DeadLetter{Reason: webhook.ReasonExhausted, At: time.Now(), Delivery: &webhook.DeadDelivery{
		DeliveryID: uuid.NewString(), SubscriptionID: id, EventType: e.Type, EventPosition: event.String(), Body: "{}",
	}}
	r, err = dead.Encode(d.kafka.Topics().DeadLetters())
	check(t, err)
	d.produce(t, r)

	made := map[string]bool{}
	for _, from := range []string{attempted, waits.ID, dead.Delivery.DeliveryID, attempted} {
		again := c.call("POST", "/api/deliveries/"+from+"/resend", "").want(202)
		made[again.text("delivery_id")] = true
	}
	keyed := c.call("POST", "/api/deliveries/"+attempted+"/resend", "{}", "Idempotency-Key", "k").want(202)
	made[keyed.text("delivery_id")] = true
	if r := d.start(t, nil).as(session.Admin).call("POST", "/api/deliveries/"+attempted+"/resend", "{}", "Idempotency-Key", "k").want(202); r.raw != keyed.raw {
		t.Errorf("the repeat is answered %s, the first was %s", r.raw, keyed.raw)
	}
	if len(made) != 5 || made[attempted] {
		t.Errorf("new deliveries are %v, want 5", made)
	}
	// Also one that a resend made.
	again := c.call("POST", "/api/deliveries/"+keyed.text("delivery_id")+"/resend", "").want(202).text("delivery_id")
	made[again] = true
	for _, got := range d.backfill(t, 7) {
		if !made[got.ID] || !strings.HasPrefix(got.Origin, "resend:") || got.SubscriptionID != id || got.Event != event || got.EventType != e.Type ||
			string(got.Body) != string(payload.Body(got.ID)) {
			t.Errorf("delivery %+v", got)
		}
	}

	test := c.call("POST", "/api/webhooks/"+id+"/test", "").want(202).text("delivery_id")
	c.call("POST", "/api/deliveries/"+test+"/resend", "").refused(409, "delivery_is_a_test")
	for _, unknown := range []string{uuid.NewString(), "x", strings.ToUpper(attempted), "urn:uuid:" + attempted} {
		c.call("POST", "/api/deliveries/"+unknown+"/resend", "").refused(404, "delivery_not_found")
	}
	c.call("POST", "/api/deliveries/"+attempted+"/resend", `{"now":true}`).refused(400, "invalid_input", "now")
	c.call("PUT", "/api/webhooks/"+id, `{"enabled":false}`).want(200)
	c.call("POST", "/api/deliveries/"+attempted+"/resend", "").refused(409, "subscription_disabled")
	c.call("DELETE", "/api/webhooks/"+id, "").want(200)
	c.call("POST", "/api/deliveries/"+attempted+"/resend", "").refused(404, "subscription_not_found")
}

func TestSendTest(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Integrator)
	kinds := map[string]string{"appointment.cancelled": "appointment.cancelled", "appointment.*": "appointment.created"}
	want := map[string]string{}
	for name, kind := range kinds {
		id := c.call("POST", "/api/webhooks", hook(name, "")).want(201).text("subscription", "id")
		r := c.call("POST", "/api/webhooks/"+id+"/test", "", "Idempotency-Key", "k").want(202)
		if again := c.call("POST", "/api/webhooks/"+id+"/test", "", "Idempotency-Key", "k").want(202); again.raw != r.raw {
			t.Errorf("the repeat is answered %s, the first was %s", again.raw, r.raw)
		}
		if again := c.call("POST", "/api/webhooks/"+id+"/test", "").want(202); again.raw == r.raw {
			t.Error("two tests are one delivery")
		} else {
			want[again.text("delivery_id")] = kind
		}
		want[r.text("delivery_id")] = kind
	}
	for _, got := range d.backfill(t, 6) {
		if got.EventType != want[got.ID] || !got.Test() || !strings.Contains(string(got.Body), `"test":true`) {
			t.Errorf("delivery %+v", got)
		}
	}
	c.call("POST", "/api/webhooks/webhook_subscription:none/test", "").refused(404, "subscription_not_found")
}

func TestRecover(t *testing.T) {
	d := deploy(t)
	in := d.start(t, nil)
	c := in.as(session.Admin)
	id := c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(201).text("subscription", "id")
	path := "/api/webhooks/" + id + "/recover"
	for i := range 4 {
		c.book("patient:1", "provider:1", fmt.Sprintf("1%d:00", i), fmt.Sprintf("1%d:30", i))
	}
	log := testenv.Read(t, d.kafka, d.kafka.Topics().Events(), 4)
	d.attempt(t, id, webhook.Dead, log[0])
	since := nextMilli()
	d.attempt(t, id, webhook.Dead, log[1])
	d.attempt(t, id, webhook.Discarded, log[2])
	d.attempt(t, id, webhook.Delivered, log[3])
	for _, wrong := range []string{`{}`, `{"since":"yesterday"}`, `{"since":"2100-01-01T00:00:00Z"}`} {
		c.call("POST", path, wrong).refused(400, "invalid_input", "since")
	}
	made := c.call("POST", path, `{"since":"`+since+`"}`, "Idempotency-Key", "k").want(http.StatusCreated)
	if made.text("replay", "total") != "2" || made.text("replay", "source") != "attempts" || made.text("replay", "since") == "" {
		t.Errorf("answer %s", made.raw)
	}
	if again := c.call("POST", path, `{"since":"`+since+`"}`, "Idempotency-Key", "k").want(201); again.raw != made.raw {
		t.Errorf("the repeat is answered %s, the first was %s", again.raw, made.raw)
	}
	d.replayer(t)
	c.awaitReplay("/api/webhooks/"+id+"/replays/"+made.text("replay", "id"), "done")
	var got []int64
	for _, one := range d.backfill(t, 2) {
		got = append(got, one.Event.Offset)
		if one.Replay() != made.text("replay", "id") {
			t.Errorf("origin %s", one.Origin)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []int64{log[1].Offset, log[2].Offset}) {
		t.Errorf("sent again are the events at %v", got)
	}
}
