package webhook_test

import (
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/schemas"
)

// Each kind of record is as the schema says and comes back as it was.
func TestReplayRecords(t *testing.T) {
	id, now := uuid.NewString(), time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	request := &webhook.ReplayRequest{
		ID: id, SubscriptionID: subscriptionID, Source: webhook.SourceAttempts, From: []int64{1, 0}, To: []int64{9, 0},
		EventNames: []string{"appointment.*"}, ProviderID: "provider:1", Since: &now, Rate: 5, Total: 8, Estimated: true, CreatedAt: now, CreatedBy: "user:1",
	}
	cancel := &webhook.ReplayCancel{ID: id, At: now, By: "user:1"}
	progress := &webhook.ReplayProgress{
		ID: id, State: webhook.ReplayFailed, Reason: webhook.ReplayOutOfRange, Positions: []int64{3, 0}, To: []int64{9, 0},
		Request: request, Done: 2, Unreadable: 1, StartedAt: now, UpdatedAt: now,
	}
	for kind, c := range map[string]struct {
		record interface {
			Encode(topic string) (*kgo.Record, error)
		}
		parse func(string, []byte) (any, error)
	}{
		webhook.ReplayKindRequest:  {request, func(id string, v []byte) (any, error) { return webhook.ParseReplayRequest(id, v) }},
		webhook.ReplayKindCancel:   {cancel, func(id string, v []byte) (any, error) { return webhook.ParseReplayCancel(id, v) }},
		webhook.ReplayKindProgress: {progress, func(id string, v []byte) (any, error) { return webhook.ParseReplayProgress(id, v) }},
	} {
		r, err := c.record.Encode("webhooks.replays")
		if err != nil {
			t.Fatal(err)
		}
		if err := schemas.Validate(r.Topic, r.Value); err != nil {
			t.Error(err)
		}
		gotID, gotKind, err := webhook.ParseReplayKey(r.Key)
		if err != nil || gotID != id || gotKind != kind {
			t.Errorf("the key %s is of %s of %s, %v", r.Key, gotKind, gotID, err)
		}
		got, err := c.parse(id, r.Value)
		if err != nil || !reflect.DeepEqual(got, c.record) {
			t.Errorf("%+v became %+v, %v", c.record, got, err)
		}
		for _, wrong := range []struct{ id, value string }{{uuid.NewString(), string(r.Value)}, {id, "{}"}, {id, `{"id":"` + id + `"`}} {
			if got, err := c.parse(wrong.id, []byte(wrong.value)); err == nil {
				t.Errorf("%s %s is taken for %+v", wrong.id, wrong.value, got)
			}
		}
	}
	for _, key := range []string{"", "/request", id, id + "/", id + "/requests"} {
		if _, _, err := webhook.ParseReplayKey([]byte(key)); err == nil {
			t.Errorf("the key %q is taken", key)
		}
	}
}

// An example is a valid body of its type and says what it is, in the body and in
// a header; nothing else says so.
func TestExampleOfEachEvent(t *testing.T) {
	for _, kind := range events.Catalogue() {
		p, err := webhook.RenderTest(kind.Value, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		d := webhook.Delivery{
			SubscriptionID: subscriptionID, EventType: kind.Value, Origin: webhook.OriginOf(webhook.OriginTest, "1"), Attempt: 1,
			ID: webhook.DeliveryID("", subscriptionID, webhook.OriginOf(webhook.OriginTest, "1")),
		}
		d.Body = p.Body(d.ID)
		if err := schemas.ValidateBody(d.Body); err != nil {
			t.Error(err)
		}
		if body := string(d.Body); body[len(body)-len(`,"test":true}`):] != `,"test":true}` {
			t.Errorf("%s does not end in the mark of a test", body)
		}
		h := http.Header{}
		webhook.NewSigner("s").Sign(h.Set, &d, time.Now())
		if h.Get("X-Webhook-Test") != "true" {
			t.Error("the request is not marked as a test")
		}
	}
	if h, _ := signed("s", time.Now()); h.Get("X-Webhook-Test") != "" {
		t.Error("a delivery of an event is marked as a test")
	}
}
