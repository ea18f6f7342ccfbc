package status_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// Records can come in any order, twice, and in batches of any size: the answers
// are the same. Attempts of one number that disagree, as a sender leaves them that
// stalled past its lease, are among them.
func TestAnyOrder(t *testing.T) {
	e := newEnv(t)
	kinds := []string{webhook.Failed, webhook.Delivered, webhook.Dead, webhook.Discarded}
	rapid.Check(t, func(rt *rapid.T) {
		subs := []string{newSub(), "other"}
		var records []*kgo.Record
		var ids []string
		for i := range rapid.IntRange(1, 4).Draw(rt, "deliveries") {
			m := e.made(subs[i%2])
			m.at = m.at.Add(-time.Duration(2+i) * time.Minute) // none of its attempts is in the future
			ids = append(ids, m.id)
			if rapid.IntRange(0, 9).Draw(rt, "known") > 0 {
				records = append(records, m.record())
			}
			for range rapid.IntRange(0, 6).Draw(rt, "attempts") {
				n := rapid.IntRange(1, 3).Draw(rt, "number")
				late := time.Duration(rapid.IntRange(0, 2).Draw(rt, "late")) * time.Minute
				records = append(records, m.attempt(n, rapid.SampledFrom(kinds).Draw(rt, "outcome"), func(a *webhook.Attempt) {
					a.At = a.At.Add(late)
					a.Answer += fmt.Sprint(late)
				}))
			}
		}
		if len(records) == 0 {
			return
		}
		again := append(slices.Clone(records), rapid.SliceOf(rapid.SampledFrom(records)).Draw(rt, "again")...)
		shuffled := rapid.Permutation(again).Draw(rt, "order")
		now := time.Now() // which minutes count depends on it
		straight, other := e.answers(rt, now, records, len(records), ids, subs), e.answers(rt, now, shuffled, rapid.IntRange(1, 5).Draw(rt, "batch"), ids, subs)
		if straight != other {
			rt.Fatalf("in order:\n%s\nshuffled:\n%s", straight, other)
		}
	})
}

// answers writes records in batches into a part of Redis of their own, and
// returns all that can be asked then.
func (e *env) answers(rt *rapid.T, now time.Time, records []*kgo.Record, size int, ids, subs []string) string {
	p := e.projection(func(c *status.Config) {
		c.Prefix = e.prefix + uuid.NewString()
		c.Now = func() time.Time { return now }
	})
	next := map[string]int64{}
	for batch := range slices.Chunk(records, size) {
		byTopic := map[string][]*kgo.Record{}
		for _, r := range batch {
			byTopic[r.Topic] = append(byTopic[r.Topic], r)
		}
		for topic, rs := range byTopic {
			if ok, err := p.Write(e.ctx, next[topic], rs...); err != nil || !ok {
				rt.Fatalf("write: %v, %v", ok, err)
			}
			next[topic] += int64(len(rs))
		}
	}
	var all []any
	for _, id := range ids {
		d, _, err := p.Delivery(e.ctx, id)
		if err != nil && !errors.Is(err, status.ErrNotFound) {
			rt.Fatal(err)
		}
		all = append(all, d)
	}
	for _, sub := range subs {
		for _, state := range []string{"", status.Waiting, status.Retrying, webhook.Delivered, webhook.Dead, webhook.Discarded} {
			page, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Status: state, Limit: 100})
			if err != nil {
				rt.Fatal(err)
			}
			all = append(all, state, page.Deliveries)
		}
		s, err := p.Stats(e.ctx, sub)
		if err != nil {
			rt.Fatal(err)
		}
		all = append(all, fmt.Sprint(s.FiveMinutes, s.Hour, s.Day), s.Waiting, s.Retrying)
	}
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		rt.Fatal(err)
	}
	return string(text)
}

// What Redis has and was not told of a batch's begin is never passed over, and a
// batch that was written already is not counted again.
func TestPosition(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	m := e.made(newSub())
	write := func(from int64, want bool) {
		t.Helper()
		if ok, err := p.Write(e.ctx, from, m.record()); err != nil || ok != want {
			t.Fatalf("a batch from %d: %v, %v", from, ok, err)
		}
	}
	write(0, true)
	write(0, true)  // the answer was lost
	write(2, false) // the one in between was
	write(1, true)
	write(0, true) // comes late, from who has lost the partition
	write(2, true) // and takes nothing back
	e.empty()
	write(3, false)
	if _, _, err := p.Delivery(e.ctx, m.id); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("something was written behind a gap: %v", err)
	}
}

func TestStates(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	sub := newSub()
	attempts := int64(0)
	for i, c := range []struct {
		state    string
		outcomes []string
	}{
		{status.Waiting, nil},
		{status.Retrying, []string{webhook.Failed, webhook.Failed}},
		{webhook.Dead, []string{webhook.Failed, webhook.Dead}},
		{webhook.Discarded, []string{webhook.Failed, webhook.Discarded}},
		{webhook.Delivered, []string{webhook.Failed, webhook.Delivered}},
		{webhook.Delivered, []string{webhook.Delivered, webhook.Dead}}, // the receiver has it
	} {
		m := e.made(sub)
		if _, err := p.Write(e.ctx, int64(i), m.record()); err != nil {
			t.Fatal(err)
		}
		for n, o := range c.outcomes {
			if _, err := p.Write(e.ctx, attempts, m.attempt(n+1, o)); err != nil {
				t.Fatal(err)
			}
			attempts++
		}
		d, _, err := p.Delivery(e.ctx, m.id)
		if err != nil || d.Status != c.state || len(d.Attempts) != len(c.outcomes) || (c.state == status.Retrying) != !d.NextAttemptAt.IsZero() {
			t.Errorf("%v: %+v, %v", c.outcomes, d, err)
		}
		page, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Status: c.state, Limit: 1})
		if err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].ID != m.id {
			t.Errorf("%s: %+v, %v", c.state, page, err)
		}
	}
	s, err := p.Stats(e.ctx, sub)
	if err != nil || s.Waiting != 1 || s.Retrying != 1 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if f := s.Hour; f.Failed != 5 || f.Dead != 2 || f.Discarded != 1 || f.Delivered != 2 || f.Attempts() != 9 {
		t.Errorf("figures %+v", f)
	}
}

// Records that say nothing are passed over, and said of without what is in them.
func TestUnreadable(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	e.run(p)
	m := e.made(newSub())
	topic := e.topics.Attempts()
	e.produce(
		&kgo.Record{Topic: topic, Key: []byte(m.sub), Value: []byte("{")},
		&kgo.Record{Topic: e.topics.Deliveries(), Key: []byte(m.sub), Value: []byte("private")},
		m.attempt(1, "lost"), // of a newer version
		m.attempt(1, webhook.Delivered, func(a *webhook.Attempt) { a.DeliveryID = "1" }),
		m.attempt(1, webhook.Delivered, func(a *webhook.Attempt) { a.At = time.Time{} }),
		m.attempt(1, webhook.Delivered, func(a *webhook.Attempt) { a.LatencyMS = -1 }),
		m.attempt(2, webhook.Delivered),
	)
	d := e.delivery(p, m.id, func(d *status.Delivery) bool { return len(d.Attempts) > 0 })
	if len(d.Attempts) != 1 || d.Attempts[0].Number != 2 || d.Status != webhook.Delivered || !d.CreatedAt.Equal(m.at.Add(2*time.Second)) {
		t.Errorf("%+v", d)
	}
}
