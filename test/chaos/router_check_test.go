package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// routed is an event as far as routing looks at it.
type routed struct {
	at   webhook.Position
	id   string
	kind string
}

// routingCheck compares the deliveries with those that must be there.
type routingCheck struct {
	events map[webhook.Position]routed
	rules  map[string][]webhook.Rule
	names  []string
	number map[string]int32
	seen   map[pair]int32

	deliveries, repeated int
	wrong                []string
}

// pair is an event and a subscription.
type pair struct {
	at           webhook.Position
	subscription int32
}

func newRoutingCheck(log []routed, rules map[string][]webhook.Rule) *routingCheck {
	c := &routingCheck{events: map[webhook.Position]routed{}, rules: rules, number: map[string]int32{}, seen: map[pair]int32{}}
	for _, e := range log {
		c.events[e.at] = e
	}
	for id := range rules {
		c.number[id] = int32(len(c.names))
		c.names = append(c.names, id)
	}
	return c
}

// matches is the promise, said once more: the rule that counts is the last that
// begins at or before the event.
func matches(rules []webhook.Rule, e routed) bool {
	var counts *webhook.Rule
	for i := range rules {
		if rules[i].From[e.at.Partition] <= e.at.Offset {
			counts = &rules[i]
		}
	}
	if counts == nil || !counts.Active || e.kind == events.NoShow {
		return false
	}
	return counts.EventName == "appointment.*" || counts.EventName == e.kind
}

// saw takes one delivery record.
func (c *routingCheck) saw(d *webhook.Delivery) {
	e, known := c.events[d.Event]
	n, subscribed := c.number[d.SubscriptionID]
	switch {
	case !known:
		c.fail("a delivery of an event that the log does not have at %v", d.Event)
		return
	case !subscribed:
		c.fail("a delivery of %v to %s, which nobody made", d.Event, d.SubscriptionID)
		return
	case d.ID != webhook.DeliveryID(e.id, d.SubscriptionID, ""):
		c.fail("the delivery of %v to %s has the id %s, which is not derived from the two", d.Event, d.SubscriptionID, d.ID)
	case d.EventType != e.kind:
		c.fail("the delivery of %v says it is %s, and the event is %s", d.Event, d.EventType, e.kind)
	}
	c.seen[pair{d.Event, n}]++
	c.deliveries++
}

func (c *routingCheck) fail(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// end returns what is wrong. If not exactly, a record may be there more than
// once.
func (c *routingCheck) end(exactly bool) []string {
	for at, e := range c.events {
		for id, rules := range c.rules {
			n := c.seen[pair{at, c.number[id]}]
			switch want := matches(rules, e); {
			case want && n == 0:
				c.fail("the %s at %v was not routed to %s, rules %v", e.kind, at, id, rules)
			case !want && n > 0:
				c.fail("the %s at %v was routed to %s, which does not match there: rules %v", e.kind, at, id, rules)
			case n > 1:
				c.repeated += int(n - 1)
				if exactly {
					c.fail("the %s at %v was routed to %s %d times", e.kind, at, id, n)
				}
			}
		}
	}
	return c.wrong
}

// between counts the events whose answer no client could tell for sure: they
// stand between the ends of the log before and after a change.
func (c *routingCheck) between(changes []change) int {
	n := 0
	for _, ch := range changes {
		for p := range ch.before {
			for o := ch.before[p]; o < ch.after[p]; o++ {
				if _, event := c.events[webhook.Position{Partition: int32(p), Offset: o}]; event {
					n++
				}
			}
		}
	}
	return n
}

// The checkers see each kind of violation.
func TestRoutingChecker(t *testing.T) {
	at := func(offset int64) webhook.Position { return webhook.Position{Offset: offset} }
	rule := func(from int64, name string, active bool) webhook.Rule {
		return webhook.Rule{From: []int64{from, 0, 0, 0}, EventName: name, Active: active}
	}
	log := []routed{{at(0), "e0", events.Created}, {at(5), "e5", events.Created}, {at(9), "e9", events.Cancelled}}
	rules := map[string][]webhook.Rule{"s": {rule(3, events.Created, true), rule(7, "appointment.*", true), rule(9, "appointment.*", false)}}
	delivery := func(offset int64, event, kind string) *webhook.Delivery {
		return &webhook.Delivery{ID: webhook.DeliveryID(event, "s", ""), SubscriptionID: "s", EventType: kind, Event: at(offset)}
	}
	right := delivery(5, "e5", events.Created)
	for what, one := range map[string]struct {
		deliveries []*webhook.Delivery
		want       string
	}{
		"all is well":       {[]*webhook.Delivery{right}, ""},
		"one is missing":    {nil, "was not routed"},
		"one is repeated":   {[]*webhook.Delivery{right, right}, "2 times"},
		"one is too early":  {[]*webhook.Delivery{right, delivery(0, "e0", events.Created)}, "does not match"},
		"one is too late":   {[]*webhook.Delivery{right, delivery(9, "e9", events.Cancelled)}, "does not match"},
		"one has a new id":  {[]*webhook.Delivery{delivery(5, "other", events.Created)}, "not derived"},
		"one has no event":  {[]*webhook.Delivery{right, delivery(6, "e5", events.Created)}, "does not have"},
		"one says it wrong": {[]*webhook.Delivery{delivery(5, "e5", events.Updated)}, "says it is"},
	} {
		t.Run(what, func(t *testing.T) {
			c := newRoutingCheck(log, rules)
			for _, d := range one.deliveries {
				c.saw(d)
			}
			expect(t, c.end(true), one.want)
		})
	}

	version := func(v int, last webhook.Rule) *webhook.Subscription {
		return &webhook.Subscription{ID: "s", Version: v, EventName: last.EventName, Enabled: last.Active, Rules: []webhook.Rule{last}}
	}
	versions := map[string]map[int]*webhook.Subscription{"s": {1: version(1, rules["s"][0]), 2: version(2, rules["s"][1])}}
	made := change{id: "s", eventName: events.Created, enabled: true, version: 1, before: []int64{2, 0, 0, 0}, after: []int64{3, 0, 0, 0}, changesMatching: true}
	edit := func(f func(*change)) []change { c := made; f(&c); return []change{c} }
	for what, one := range map[string]struct {
		changes []change
		want    string
	}{
		"all is well":          {[]change{made}, ""},
		"a change is lost":     {edit(func(c *change) { c.version = 3 }), "not in the topic"},
		"it begins too early":  {edit(func(c *change) { c.before = []int64{4, 0, 0, 0} }), "begins at"},
		"it begins too late":   {edit(func(c *change) { c.after = []int64{2, 0, 0, 0} }), "begins at"},
		"it says otherwise":    {edit(func(c *change) { c.enabled = false }), "was acknowledged as"},
		"a deletion is undone": {edit(func(c *change) { c.gone = true }), "was acknowledged as"},
	} {
		t.Run(what, func(t *testing.T) {
			_, wrong := checkChanges(one.changes, versions)
			expect(t, wrong, one.want)
		})
	}
}

// expect wants a violation that says so, or none if it is "".
func expect(t *testing.T, wrong []string, want string) {
	t.Helper()
	switch {
	case want == "" && len(wrong) > 0:
		t.Errorf("it finds %q", wrong)
	case want != "" && !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, want) }):
		t.Errorf("it does not find %q: %q", want, wrong)
	}
}
