package status_test

import (
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// A delivery is shown from when it is made to its end, with its attempts.
func TestLife(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	e.run(p)
	m := e.made(newSub())
	e.produce(m.record())
	d := e.delivery(p, m.id, func(*status.Delivery) bool { return true })
	if d.ID != m.id || d.SubscriptionID != m.sub || d.EventType != m.event || d.EventPosition != "1/7" || d.Origin != "" ||
		d.Status != status.Waiting || !d.CreatedAt.Equal(m.at) || len(d.Attempts) != 0 || !d.NextAttemptAt.IsZero() {
		t.Errorf("made: %+v", d)
	}
	e.produce(m.attempt(1, webhook.Failed, func(a *webhook.Attempt) { a.Answer = strings.Repeat("é", 300) }))
	d = e.delivery(p, m.id, func(d *status.Delivery) bool { return d.Status != status.Waiting })
	if d.Status != status.Retrying || !d.CreatedAt.Equal(m.at) || !d.NextAttemptAt.Equal(m.at.Add(2*time.Second)) || len(d.Attempts) != 1 {
		t.Fatalf("failed once: %+v", d)
	}
	if a := d.Attempts[0]; a.Number != 1 || !a.At.Equal(m.at.Add(time.Second)) || a.Outcome != webhook.Failed || a.Status != 500 || a.Error != "status" ||
		a.Latency != 12345*time.Microsecond || !a.NextAttemptAt.Equal(d.NextAttemptAt) || a.Answer != strings.Repeat("é", 128) {
		t.Errorf("the first attempt: %+v", a)
	}
	e.produce(m.attempt(2, webhook.Delivered))
	d = e.delivery(p, m.id, func(d *status.Delivery) bool { return d.Status != status.Retrying })
	if d.Status != webhook.Delivered || !d.NextAttemptAt.IsZero() || len(d.Attempts) != 2 || d.Attempts[1].Answer != "" || d.Attempts[1].Status != 200 {
		t.Errorf("delivered: %+v", d)
	}
	page, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: m.sub, Limit: 10})
	if err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].ID != m.id || page.NextCursor != "" {
		t.Errorf("page %+v, %v", page, err)
	}
	s, err := p.Stats(e.ctx, m.sub)
	if err != nil || s.FiveMinutes.Attempts() != 2 || s.Day.Delivered != 1 || s.Hour.Failed != 1 || s.Waiting != 0 || s.Retrying != 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	e.await("nothing is behind", func() bool { n, err := p.Behind(e.ctx); return err == nil && n == 0 })
}
