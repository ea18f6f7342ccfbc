package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// change is a change of a subscription as the client knows it: what the
// subscription then is, and where the log of events ended, by partition, before
// it was asked for and after it was answered.
type change struct {
	id, eventName   string
	enabled, gone   bool
	version         int // 0 if the answer has none, as after a deletion
	before, after   []int64
	changesMatching bool
}

// changer makes, edits, disables, enables and deletes subscriptions through the
// API, and remembers what was acknowledged when.
type changer struct {
	t       *testing.T
	api     *api
	rand    *rand.Rand
	brokers *address
	topic   string
	target  string
	done    work // hears of each change, if it is there
	fixed   int  // that many of the first subscriptions are left alone

	changes []change
	now     []change // the subscriptions that exist, as they are
	client  *kgo.Client
	at      string
	n       int
}

func (ch *changer) next() string { return pick(ch.rand, ch.api.urls) }

// ends returns the high watermarks of the log of events, or nil if ctx ends.
func (ch *changer) ends(ctx context.Context) []int64 {
	for {
		brokers := ch.brokers.get()
		if ch.client == nil || ch.at != brokers[0] {
			if ch.client != nil {
				ch.client.Close()
			}
			var err error
			if ch.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...)); err != nil {
				ch.t.Errorf("connect to Kafka: %v", err)
				return nil
			}
			ch.t.Cleanup(ch.client.Close)
			ch.at = brokers[0]
		}
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		listed, err := kadm.NewClient(ch.client).ListEndOffsets(short, ch.topic)
		cancel()
		if err == nil {
			err = listed.Error()
		}
		if err == nil && len(listed[ch.topic]) == partitions {
			ends := make([]int64, partitions)
			listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
			return ends
		}
		if !wait(ctx, 50*time.Millisecond) {
			return nil
		}
	}
}

// ask sends a command until it has an answer, between two looks at the log's
// ends; ok is false if there is none.
func (ch *changer) ask(ctx context.Context, method, path string, fields map[string]any, headers ...string) (last try, before, after []int64, ok bool) {
	var body []byte
	if fields != nil {
		body = encode(ch.t, fields)
	}
	before = ch.ends(ctx)
	tries := ch.api.insist(ctx, ch.next, method, path, body, headers...)
	after = ch.ends(ctx)
	if len(tries) == 0 || before == nil || after == nil {
		return try{}, nil, nil, false
	}
	last = tries[len(tries)-1]
	return last, before, after, last.clear()
}

func (ch *changer) create(ctx context.Context, eventName string, enabled bool) {
	ch.n++
	last, before, after, ok := ch.ask(ctx, http.MethodPost, "/api/webhooks", map[string]any{
		"event_name": eventName, "target_url": ch.target, "secret": "test-secret", "enabled": enabled,
	}, "Idempotency-Key", fmt.Sprintf("s-%016x-%d", ch.rand.Uint64(), ch.n))
	if !ok {
		return
	}
	if last.status != http.StatusCreated {
		ch.t.Errorf("creating a subscription is answered with %d: %s", last.status, last.answer.Error)
		return
	}
	made := change{id: last.answer.Subscribed.ID, eventName: eventName, enabled: enabled,
		version: last.answer.Subscribed.Version, before: before, after: after, changesMatching: true}
	ch.acknowledged(made)
	ch.now = append(ch.now, made)
}

// act makes one change.
func (ch *changer) act(ctx context.Context) {
	const most = 5
	names := []string{events.Created, events.Updated, events.Cancelled, events.Completed, "appointment.*"}
	if len(ch.now)-ch.fixed < 2 || len(ch.now)-ch.fixed < most && ch.rand.IntN(6) == 0 {
		ch.create(ctx, pick(ch.rand, names), ch.rand.IntN(4) > 0)
		return
	}
	i := ch.fixed + ch.rand.IntN(len(ch.now)-ch.fixed)
	was := ch.now[i]
	path := "/api/webhooks/" + was.id
	if ch.rand.IntN(8) == 0 {
		last, before, after, ok := ch.ask(ctx, http.MethodDelete, path, nil)
		ch.now = append(ch.now[:i:i], ch.now[i+1:]...)
		// An earlier try may have done it.
		if ok && last.status != http.StatusOK && last.status != http.StatusNotFound {
			ch.t.Errorf("deleting a subscription is answered with %d: %s", last.status, last.answer.Error)
		}
		if ok {
			ch.acknowledged(change{id: was.id, eventName: was.eventName, gone: true, before: before, after: after, changesMatching: true})
		}
		return
	}
	is := was
	fields := map[string]any{}
	switch ch.rand.IntN(5) {
	case 0:
		is.eventName = pick(ch.rand, names)
		fields["event_name"] = is.eventName
	case 1:
		fields["target_url"] = fmt.Sprintf("%s/%d", ch.target, ch.n)
		ch.n++
	default:
		is.enabled = !was.enabled
		fields["enabled"] = is.enabled
	}
	last, before, after, ok := ch.ask(ctx, http.MethodPut, path, fields)
	if !ok {
		// Nobody knows what it is now.
		ch.now = append(ch.now[:i:i], ch.now[i+1:]...)
		return
	}
	if last.status != http.StatusOK {
		ch.t.Errorf("changing a subscription to %v is answered with %d: %s", fields, last.status, last.answer.Error)
		return
	}
	is.version, is.before, is.after = last.answer.Subscribed.Version, before, after
	is.changesMatching = is.enabled != was.enabled || is.eventName != was.eventName
	ch.now[i] = is
	ch.acknowledged(is)
}

func (ch *changer) acknowledged(c change) {
	ch.changes = append(ch.changes, c)
	ch.done.did()
}

// checkChanges compares the subscriptions' records with what was acknowledged:
// each change is there, and it begins at a position between the log's ends before
// it was asked for and after it was answered. It returns the rules of each
// subscription, all that it ever had.
func checkChanges(changes []change, versions map[string]map[int]*webhook.Subscription) (map[string][]webhook.Rule, []string) {
	var wrong []string
	rules := map[string][]webhook.Rule{}
	begins := map[string]map[int]webhook.Rule{} // by version, those that begin a rule
	for id, all := range versions {
		begins[id] = map[int]webhook.Rule{}
		for v := 1; v <= len(all); v++ {
			s := all[v]
			if s == nil {
				wrong = append(wrong, fmt.Sprintf("%s has %d records and none of version %d", id, len(all), v))
				continue
			}
			last := s.Rules[len(s.Rules)-1]
			if known := rules[id]; len(known) == 0 || !sameRule(known[len(known)-1], last) {
				rules[id] = append(known, last)
				begins[id][v] = last
			}
		}
	}
	for _, c := range changes {
		version := c.version
		if c.gone {
			version = len(versions[c.id]) // the last
		}
		s := versions[c.id][version]
		switch {
		case s == nil:
			wrong = append(wrong, fmt.Sprintf("version %d of %s was acknowledged and is not in the topic", version, c.id))
			continue
		case s.Deleted != c.gone || !c.gone && (s.Enabled != c.enabled || s.EventName != c.eventName):
			wrong = append(wrong, fmt.Sprintf("version %d of %s was acknowledged as %+v and is %s, enabled %v, deleted %v",
				version, c.id, c, s.EventName, s.Enabled, s.Deleted))
		}
		if !c.changesMatching {
			continue // or it is the version that it was already
		}
		rule, begun := begins[c.id][version]
		if !begun {
			if !c.gone { // what was disabled matched nothing before
				wrong = append(wrong, fmt.Sprintf("version %d of %s, %+v, begins no rule", version, c.id, c))
			}
			continue
		}
		for p, from := range rule.From {
			if from < c.before[p] || from > c.after[p] {
				wrong = append(wrong, fmt.Sprintf("version %d of %s begins at %d/%d; the log ended at %d before it was asked for and at %d after it was answered",
					version, c.id, p, from, c.before[p], c.after[p]))
			}
		}
	}
	return rules, wrong
}

func sameRule(a, b webhook.Rule) bool {
	return fmt.Sprint(a) == fmt.Sprint(b)
}
