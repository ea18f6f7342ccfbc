package status_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// all follows the cursors of a query to its end.
func (e *env) all(p *status.Projection, q status.Query) (ids []string, pages int) {
	e.t.Helper()
	for {
		page, err := p.Deliveries(e.ctx, q)
		if err != nil {
			e.t.Fatal(err)
		}
		pages++
		if len(page.Deliveries) > q.Limit {
			e.t.Fatalf("a page of %d, want %d at most", len(page.Deliveries), q.Limit)
		}
		for _, d := range page.Deliveries {
			ids = append(ids, d.ID)
		}
		if q.Cursor = page.NextCursor; q.Cursor == "" {
			return ids, pages
		}
	}
}

// Pages come newest first, each delivery once, also where many were made in one
// millisecond and newer ones come in between.
func TestPages(t *testing.T) {
	const n = 60
	e := newEnv(t)
	p := e.projection()
	sub, begin := newSub(), time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
	var deliveries, attempts []*kgo.Record
	var made []*made
	for i := range n {
		m := e.made(sub)
		m.at = begin.Add(time.Duration(i/10) * time.Minute) // ten at once
		if i%3 == 0 {
			m.event = "appointment.updated"
		}
		made = append(made, m)
		deliveries = append(deliveries, m.record())
		if i%2 == 0 {
			attempts = append(attempts, m.attempt(1, webhook.Dead))
		}
	}
	other := e.made(newSub())
	deliveries = append(deliveries, other.record())
	e.write(p, 0, deliveries...)
	e.write(p, 0, attempts...)

	matching := func(keep func(i int, m *madeDelivery) bool) []string {
		var ids []string
		for i, m := range made {
			if keep(i, m) {
				ids = append(ids, m.id)
			}
		}
		slices.Sort(ids)
		return ids
	}
	from, to := begin.Add(time.Minute), begin.Add(3*time.Minute)
	for _, c := range []struct {
		name  string
		query status.Query
		keep  func(i int, m *madeDelivery) bool
	}{
		{"all", status.Query{}, func(int, *madeDelivery) bool { return true }},
		{"dead", status.Query{Status: webhook.Dead}, func(i int, _ *madeDelivery) bool { return i%2 == 0 }},
		{"waiting", status.Query{Status: status.Waiting}, func(i int, _ *madeDelivery) bool { return i%2 == 1 }},
		{"none", status.Query{Status: status.Retrying}, func(int, *madeDelivery) bool { return false }},
		{"event", status.Query{EventType: "appointment.updated"}, func(i int, _ *madeDelivery) bool { return i%3 == 0 }},
		{"time", status.Query{From: from, To: to}, func(i int, _ *madeDelivery) bool { return i >= 10 && i < 30 }},
		{"finer than a millisecond", status.Query{From: from.Add(1), To: to.Add(1)}, func(i int, _ *madeDelivery) bool { return i >= 20 && i < 40 }},
		{"together", status.Query{Status: webhook.Dead, EventType: "appointment.updated", From: from}, func(i int, _ *madeDelivery) bool { return i%6 == 0 && i >= 10 }},
	} {
		for _, limit := range []int{1, 7, status.MaxLimit} {
			t.Run(fmt.Sprintf("%s by %d", c.name, limit), func(t *testing.T) {
				q := c.query
				q.SubscriptionID, q.Limit = sub, limit
				ids, pages := e.all(p, q)
				want := matching(c.keep)
				if max(1, (len(want)+limit-1)/limit) != pages {
					t.Errorf("%d pages for %d deliveries", pages, len(want))
				}
				times := map[string]time.Time{}
				for _, m := range made {
					times[m.id] = m.at
				}
				if !slices.IsSortedFunc(ids, func(a, b string) int { return times[b].Compare(times[a]) }) {
					t.Error("they do not come newest first")
				}
				slices.Sort(ids)
				if !slices.Equal(ids, want) {
					t.Errorf("%d deliveries, want %d", len(ids), len(want))
				}
			})
		}
	}

	first, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Limit: n / 2})
	if err != nil {
		t.Fatal(err)
	}
	e.write(p, n+1, e.made(sub).record())
	rest, _ := e.all(p, status.Query{SubscriptionID: sub, Limit: n, Cursor: first.NextCursor})
	if len(rest) != n/2 {
		t.Errorf("after a newer one came, %d follow, want %d", len(rest), n/2)
	}
	for _, cursor := range []string{"x", "!", first.NextCursor + "A", first.NextCursor[1:]} {
		if _, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Limit: 1, Cursor: cursor}); !errors.Is(err, status.ErrCursor) {
			t.Errorf("cursor %q: %v", cursor, err)
		}
	}
	for _, id := range []string{other.id[1:], "", "x", "{" + other.id + "}"} {
		if _, _, err := p.Delivery(e.ctx, id); !errors.Is(err, status.ErrNotFound) {
			t.Errorf("delivery %q: %v", id, err)
		}
	}
}

type madeDelivery = made

// write writes records of one topic as a batch that begins somewhere.
func (e *env) write(p *status.Projection, from int64, records ...*kgo.Record) {
	e.t.Helper()
	if ok, err := p.Write(e.ctx, from, records...); err != nil || !ok {
		e.t.Fatalf("write: %v, %v", ok, err)
	}
}

// A type of event that is rare among many is found, over pages that may be short.
func TestRareEvent(t *testing.T) {
	const n = 12_000
	e := newEnv(t)
	p := e.projection()
	sub := newSub()
	rare := e.made(sub)
	rare.event, rare.at = "appointment.completed", rare.at.Add(-time.Hour)
	e.write(p, 0, rare.record())
	at := int64(1)
	records := make([]*kgo.Record, 0, n)
	for range n {
		records = append(records, e.made(sub).record())
	}
	for batch := range slices.Chunk(records, 1000) {
		e.write(p, at, batch...)
		at += int64(len(batch))
	}
	ids, pages := e.all(p, status.Query{SubscriptionID: sub, EventType: rare.event, Limit: 10})
	if len(ids) != 1 || ids[0] != rare.id || pages > 3 {
		t.Errorf("%d deliveries on %d pages", len(ids), pages)
	}
}

// Who sends a delivery again finds where its event stands, whichever of its
// records is known.
func TestFind(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	first, replayed, unknown := e.made(newSub()), e.made(newSub()), e.made(newSub())
	replayed.origin = webhook.OriginOf(webhook.OriginReplay, "1")
	e.write(p, 0, first.record())
	e.write(p, 0, replayed.attempt(1, webhook.Dead))
	for _, m := range []*made{first, replayed} {
		want := webhook.Attempt{DeliveryID: m.id, SubscriptionID: m.sub, EventType: m.event, Origin: m.origin, EventPosition: "1/7"}
		if got, ok, err := p.Find(e.ctx, m.id); err != nil || !ok || got != want {
			t.Errorf("found %+v, %t, %v, want %+v", got, ok, err, want)
		}
	}
	for _, id := range []string{unknown.id, "no uuid"} {
		if got, ok, err := p.Find(e.ctx, id); err != nil || ok {
			t.Errorf("found %+v, %t, %v of %q", got, ok, err, id)
		}
	}
}

// What is too old, and too much, is not kept.
func TestBounds(t *testing.T) {
	const keep = 20
	e := newEnv(t)
	now := time.Now()
	p := e.projection(func(c *status.Config) {
		c.PerSubscription, c.Retention = keep, time.Hour
		c.Now = func() time.Time { return now }
	})
	sub := newSub()
	old := e.made(sub)
	old.at = now.Add(-61 * time.Minute)
	e.write(p, 0, old.record())
	if _, _, err := p.Delivery(e.ctx, old.id); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("a record that is too old: %v", err)
	}
	var all []*made
	for i := range 2 * keep {
		m := e.made(sub)
		m.at = now.Add(time.Duration(i-50) * time.Minute)
		all = append(all, m)
		e.write(p, int64(1+i), m.record())
	}
	e.write(p, 0, all[0].attempt(1, webhook.Dead)) // the dead are not pushed out by others
	ids, _ := e.all(p, status.Query{SubscriptionID: sub, Limit: 100})
	if len(ids) != keep+1 || ids[0] != all[len(all)-1].id || ids[keep] != all[0].id {
		t.Fatalf("%d deliveries are kept, want the latest %d and one", len(ids), keep)
	}
	if _, _, err := p.Delivery(e.ctx, all[1].id); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("the oldest is still there: %v", err)
	}
	now = now.Add(20 * time.Minute) // those of the first ten minutes are too old, nothing else is written
	ids, _ = e.all(p, status.Query{SubscriptionID: sub, Limit: 100})
	if s, err := p.Stats(e.ctx, sub); err != nil || len(ids) != keep || s.Waiting != keep {
		t.Errorf("%d deliveries, %+v, %v", len(ids), s, err)
	}
	// Redis forgets by itself.
	for _, pattern := range []string{"d:*", "i:*", "a:*", "m:*", "h:*"} {
		keys := e.db.Scan(e.ctx, 0, e.prefix+pattern, 1000).Iterator()
		for keys.Next(e.ctx) {
			if ttl, err := e.db.TTL(e.ctx, keys.Val()).Result(); err != nil || ttl <= 0 || ttl > 27*time.Hour {
				t.Errorf("%q lives for %v, %v", keys.Val(), ttl, err)
			}
		}
	}
}
