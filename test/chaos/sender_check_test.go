package chaos

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// inFlight bounds the requests that a sender has under way, and unrecorded the
// outcomes that wait to be on record: a kill can have both made twice.
const inFlight, unrecorded = 256, 256

// settling is how long after its answer a request whose outcome is on record may
// still be in flight as far as the sender is concerned: until the record is
// acknowledged and the mark is set. On a machine that brokers, senders and the test
// share it is long.
const settling = 2 * time.Second

// sendingCheck compares what arrived and what the topics say.
type sendingCheck struct {
	endpoints  map[string]int // by subscription
	deliveries map[string]int // by delivery: to which endpoint
	attempts   map[string][]*webhook.Attempt
	dead       map[string]int // by delivery: attempts in the dead letter

	doubles int                    // requests that were made once more
	twins   int                    // attempts that were recorded once more
	unheard int                    // answers of success that came too late, so that the attempt counts as failed
	by      map[string]*struckDown // by fault
	each    map[strike]int         // doubles by strike
	wrong   []string
}

// struckDown is what was in flight at the strikes of one fault: requests that
// were being served, and those that had been answered shortly before.
type struckDown struct {
	served, answered, doubles int
	// woken are the doubles that a process was about to send when it stalled.
	woken  int
	widest time.Duration // from the answer to the strike, of the doubles
}

func newSendingCheck(endpoints map[string]int) *sendingCheck {
	return &sendingCheck{
		endpoints: endpoints, deliveries: map[string]int{}, attempts: map[string][]*webhook.Attempt{}, dead: map[string]int{},
		by: map[string]*struckDown{}, each: map[strike]int{},
	}
}

func (c *sendingCheck) of(s strike) *struckDown {
	if c.by[s.by] == nil {
		c.by[s.by] = &struckDown{}
	}
	return c.by[s.by]
}

func (c *sendingCheck) fail(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// run returns what is wrong.
func (c *sendingCheck) run(visits []visit, strikes []strike) []string {
	byDelivery := map[string][]visit{}
	for _, v := range visits {
		byDelivery[v.delivery] = append(byDelivery[v.delivery], v)
		for _, s := range strikes {
			switch {
			case !v.inFlight(s):
			case v.to.After(s.at):
				c.of(s).served++
			default:
				c.of(s).answered++
			}
		}
		if to, known := c.deliveries[v.delivery]; !known || to != v.endpoint {
			c.fail("delivery %s came to endpoint %d, and was for %d", v.delivery, v.endpoint, to)
		}
	}
	for id, endpoint := range c.deliveries {
		all := byDelivery[id]
		slices.SortFunc(all, func(a, b visit) int { return a.from.Compare(b.from) })
		c.one(id, manners[endpoint], all, strikes)
	}
	for id := range c.attempts {
		if _, known := c.deliveries[id]; !known {
			c.fail("an attempt of delivery %s, which nobody made", id)
		}
	}
	for s, doubles := range c.each {
		if most := s.senders * (inFlight + unrecorded); doubles > most {
			c.fail("%s: %d requests were made once more, and only %d can have been in flight", s.by, doubles, most)
		}
	}
	return c.wrong
}

// inFlight says whether the request was, when a process was struck.
func (v visit) inFlight(s strike) bool {
	end := s.at
	if s.outage {
		end = s.until
	}
	return v.from.Before(end) && v.to.Add(settling).After(s.at)
}

// lost says whether the last of some visits of a delivery is one whose outcome is
// not on record, for it died with the process that was struck after it.
func (c *sendingCheck) lost(visits []visit, s strike) bool {
	v := visits[len(visits)-1]
	var before time.Time // of the same attempt
	for _, o := range visits[:len(visits)-1] {
		if o.attempt == v.attempt {
			before = o.from
		}
	}
	return v.from.Before(s.at) && !slices.ContainsFunc(c.attempts[v.delivery], func(a *webhook.Attempt) bool {
		return a.Attempt == v.attempt && !a.At.Before(before) && !a.At.After(v.from)
	})
}

func (c *sendingCheck) one(id string, m manner, all []visit, strikes []strike) {
	arrived := slices.ContainsFunc(all, func(v visit) bool { return v.status == http.StatusOK })
	// Under load an answer may take longer than the sender waits for it.
	unheard := func(v visit) bool {
		return v.status == http.StatusOK && slices.ContainsFunc(c.attempts[id], func(a *webhook.Attempt) bool {
			return a.Attempt == v.attempt && a.Outcome == webhook.Failed && a.Status == 0
		})
	}
	for i, v := range all {
		if unheard(v) {
			c.unheard++
		}
		// What repeats an attempt, or comes after a success that the sender heard of.
		before := slices.DeleteFunc(slices.Clone(all[:i]), func(o visit) bool {
			return o.attempt != v.attempt && (o.status != http.StatusOK || unheard(o))
		})
		if len(before) == 0 {
			continue
		}
		repeated := before[len(before)-1]
		c.doubles++
		explained := slices.ContainsFunc(strikes, func(s strike) bool {
			switch {
			case v.from.After(s.at) && (repeated.inFlight(s) || c.lost(before, s)):
				c.of(s).doubles++
				c.of(s).widest = max(c.of(s).widest, s.at.Sub(repeated.to))
			case !s.outage && s.until.After(s.at) && v.from.After(s.until) && v.from.Before(s.until.Add(settling)):
				c.of(s).woken++
			default:
				return false
			}
			c.each[s]++
			return true
		})
		if !explained {
			c.fail("attempt %d of delivery %s came at %v although it was not in flight at any strike: %v", v.attempt, id, v.from, all)
		}
	}
	var numbers []int
	ends := map[string]bool{}
	for _, a := range c.attempts[id] {
		if slices.Contains(numbers, a.Attempt) {
			c.twins++
		} else {
			numbers = append(numbers, a.Attempt)
		}
		if a.Outcome != webhook.Failed {
			ends[a.Outcome] = true
		}
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		if n != i+1 {
			c.fail("delivery %s has the attempts %v", id, numbers)
			break
		}
	}
	const most = 6 // attempts
	switch {
	case len(ends) == 0:
		c.fail("delivery %s has no end in the attempts: %v, and came as %v", id, numbers, all)
	case m.always && (!ends[webhook.Dead] || len(ends) > 1 || c.dead[id] != most || len(numbers) != most):
		c.fail("delivery %s can't arrive, and ended as %v after the attempts %v, with %d in its dead letter", id, ends, numbers, c.dead[id])
	case !m.always && (!ends[webhook.Delivered] || len(ends) > 1):
		c.fail("delivery %s can arrive, and ended as %v", id, ends)
	case !m.always && !arrived:
		c.fail("delivery %s ended as delivered and never arrived", id)
	}
}

// The checker sees each kind of violation.
func TestSendingChecker(t *testing.T) {
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	came := func(attempt, from, to, status int) visit {
		return visit{delivery: "d", attempt: attempt, endpoint: 6, from: at(from), to: at(to), status: status}
	}
	struck := strike{by: "kill", at: at(5000), until: at(5000), senders: 1}
	outage := strike{by: "broker", at: at(20000), until: at(30000), outage: true, senders: 2}
	failed, second := came(1, 0, 10, 500), came(2, 100, 110, 200)
	told := func(attempt int, outcome string) *webhook.Attempt {
		return &webhook.Attempt{DeliveryID: "d", Attempt: attempt, Outcome: outcome}
	}
	story := []*webhook.Attempt{told(1, webhook.Failed), told(2, webhook.Delivered)}
	madeAt := func(ms int) []*webhook.Attempt {
		return []*webhook.Attempt{story[0], {DeliveryID: "d", Attempt: 2, Outcome: webhook.Delivered, At: at(ms)}}
	}
	for what, one := range map[string]struct {
		visits   []visit
		attempts []*webhook.Attempt
		want     string
	}{
		"all is well":                   {[]visit{failed, second}, story, ""},
		"a double of one in flight":     {[]visit{failed, came(2, 4990, 5020, 200), came(2, 9000, 9010, 200)}, story, ""},
		"a double of one in an outage":  {[]visit{failed, came(2, 25000, 25010, 200), came(2, 40000, 40010, 200)}, story, ""},
		"a double after an outage":      {[]visit{failed, came(2, 35000, 35010, 200), came(2, 40000, 40010, 200)}, story, "not in flight"},
		"a success came too late":       {[]visit{came(1, 0, 10, 200), second}, story, ""},
		"a double of one not on record": {[]visit{failed, came(2, 1000, 1010, 200), came(2, 9000, 9010, 200)}, madeAt(8999), ""},
		"a double of one on record":     {[]visit{failed, came(2, 1000, 1010, 200), came(2, 9000, 9010, 200)}, madeAt(999), "not in flight"},
		"a double out of the blue":      {[]visit{failed, second, came(2, 9000, 9010, 200)}, story, "not in flight"},
		"a double before the strike":    {[]visit{failed, came(2, 4000, 4010, 200), came(2, 4500, 4510, 200)}, story, "not in flight"},
		"one more after the success":    {[]visit{failed, second, came(3, 9000, 9010, 200)}, story, "not in flight"},
		"it never came":                 {[]visit{failed}, story, "never arrived"},
		"it has no end":                 {[]visit{failed, second}, story[:1], "no end"},
		"an attempt was not recorded":   {[]visit{failed, second}, story[1:], "has the attempts"},
		"it was given up":               {[]visit{failed, second}, []*webhook.Attempt{told(1, webhook.Dead)}, "can arrive"},
		"it has two ends":               {[]visit{failed, second}, append([]*webhook.Attempt{told(3, webhook.Dead)}, story...), "can arrive"},
		"it came to another's address":  {[]visit{failed, {delivery: "d", attempt: 2, endpoint: 5, status: 200, from: at(100), to: at(110)}}, story, "was for"},
	} {
		t.Run(what, func(t *testing.T) {
			c := newSendingCheck(nil)
			c.deliveries["d"], c.attempts["d"] = 6, one.attempts
			expect(t, c.run(one.visits, []strike{struck, outage}), one.want)
		})
	}
	lost := newSendingCheck(nil)
	lost.deliveries["d"], lost.attempts["d"] = 8, []*webhook.Attempt{told(1, webhook.Dead)}
	expect(t, lost.run(nil, nil), "can't arrive")

	many := newSendingCheck(nil)
	var visits []visit
	for i := range inFlight + unrecorded + 1 {
		id := strconv.Itoa(i)
		many.deliveries[id], many.attempts[id] = 0, []*webhook.Attempt{told(1, webhook.Delivered)}
		for _, from := range []int{4990, 9000} {
			visits = append(visits, visit{delivery: id, attempt: 1, status: 200, from: at(from), to: at(from + 20)})
		}
	}
	expect(t, many.run(visits, []strike{struck}), "can have been in flight")
}
