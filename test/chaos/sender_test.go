package chaos

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// Every delivery arrives or ends as a dead letter, webhooks.attempts tells of it,
// and no request is made twice but those that were in flight when a process died
// or stalled: whatever happens to senders, brokers and Redis meanwhile.
func TestSending(t *testing.T) {
	p := newPlan(t)
	d := harness.Start(t, harness.Options{Senders: senders, Env: []string{
		"REQUEST_TIMEOUT=2s", "BREAK_AFTER=1000000", "IN_FLIGHT=" + strconv.Itoa(inFlight), "UNRECORDED=" + strconv.Itoa(unrecorded),
	}})
	f := newFlow()
	sink := newReceiver(t, f, p.source(1))
	a := newAPI(d.URLs)
	a.signIn(t.Context(), "", d.URL)
	brokers := &address{}
	brokers.set(d.Brokers)
	ch := &changer{t: t, api: a, rand: p.source(2), brokers: brokers, topic: d.Prefix + "appointments.events"}
	endpoints := map[string]int{} // by subscription
	for n := range manners {
		ch.target = sink.server.URL + "/" + strconv.Itoa(n)
		ch.create(t.Context(), "appointment.*", true)
		if len(ch.now) != n+1 {
			t.Fatal("a subscription could not be made")
		}
		endpoints[ch.now[n].id] = n
		if manners[n].healthy() {
			f.keys = append(f.keys, strconv.Itoa(n))
		}
	}

	c := newCrowd(t)
	v := &volume{t: t, brokers: brokers, topic: d.Prefix + "appointments.events", done: newWork()}
	defer v.close()
	c.every(100*time.Millisecond, func() { v.append(c.ctx, 2) })
	began := time.Now()
	p.run(f, v.done, sink.faults(p, d, brokers))
	c.stop(45 * time.Second)
	d.Routed(t, recoverLimit)
	d.Sent(t, 2*recoverLimit)
	took := time.Since(began)

	check := newSendingCheck(endpoints)
	events := 0
	d.Read(t, "appointments.events", recoverLimit, func(*kgo.Record) { events++ })
	d.Read(t, "webhooks.deliveries", recoverLimit, func(r *kgo.Record) {
		delivery, err := webhook.ParseDelivery(r)
		if err != nil {
			t.Errorf("delivery at %d/%d: %v", r.Partition, r.Offset, err)
			return
		}
		check.deliveries[delivery.ID] = endpoints[delivery.SubscriptionID]
	})
	d.Read(t, "webhooks.attempts", recoverLimit, func(r *kgo.Record) {
		attempt, err := webhook.ParseAttempt(r.Value)
		if err != nil {
			t.Errorf("attempt at %d/%d: %v", r.Partition, r.Offset, err)
			return
		}
		check.attempts[attempt.DeliveryID] = append(check.attempts[attempt.DeliveryID], attempt)
	})
	d.Read(t, "webhooks.dead-letters", recoverLimit, func(r *kgo.Record) {
		var letter webhook.DeadLetter
		if err := json.Unmarshal(r.Value, &letter); err != nil || letter.Delivery == nil {
			t.Errorf("dead letter at %d/%d: %s, %v", r.Partition, r.Offset, letter.Reason, err)
			return
		}
		check.dead[letter.Delivery.DeliveryID] = len(letter.Delivery.Attempts)
	})
	violations := check.run(sink.visits, sink.strikes)
	if want := events * len(manners); len(check.deliveries) != want {
		t.Errorf("%d events made %d deliveries, want %d", events, len(check.deliveries), want)
	}
	t.Logf("%d deliveries in %s, %d requests; %d made twice; %d attempts recorded twice, "+
		"%d answers came after the sender's time-out",
		len(check.deliveries), took.Round(time.Second), len(sink.visits), check.doubles, check.twins, check.unheard)
	for by, o := range check.by {
		t.Logf("%s: %d requests were being served, %d answered in the %s before; %d of them were made twice, the first answered %s before the strike; "+
			"%d had not left a process that stalled, and did when it was woken up",
			by, o.served, o.answered, settling, o.doubles, o.widest.Round(time.Millisecond), o.woken)
	}
	report(t, violations)
	if len(check.deliveries) < 100 {
		t.Error("the run shows nothing: there were too few deliveries")
	}
}

// senders is how many there are.
const senders = 2

// manner is how an endpoint behaves.
type manner struct {
	slow   time.Duration // at most that long until it answers
	fails  int           // so many attempts at each delivery, with 500
	always bool          // or all
}

func (m manner) healthy() bool { return m.fails == 0 && !m.always }

// manners are those of the endpoints, each of a subscription.
var manners = []manner{
	{}, {slow: 5 * time.Millisecond}, {slow: 20 * time.Millisecond}, {slow: 50 * time.Millisecond}, {slow: 100 * time.Millisecond},
	{slow: 400 * time.Millisecond}, {fails: 1}, {fails: 3, slow: 20 * time.Millisecond}, {always: true}, {slow: 30 * time.Millisecond},
}

// visit is a request as the receiver saw it.
type visit struct {
	delivery string
	attempt  int
	endpoint int
	from, to time.Time
	status   int
}

// strike is when a process was killed, or stalled until it was woken up, or when
// the log could not be written, and by which fault.
type strike struct {
	by        string
	at, until time.Time
	// outage says that what was answered until then could not be written down: who
	// takes a partition over in the meantime does not know of it.
	outage  bool
	senders int // how many of them it can have struck
}

// receiver are all endpoints.
type receiver struct {
	t      *testing.T
	flow   *flow
	server *httptest.Server

	mu      sync.Mutex
	rand    *rand.Rand
	visits  []visit
	strikes []strike
}

func newReceiver(t *testing.T, f *flow, r *rand.Rand) *receiver {
	s := &receiver{t: t, flow: f, rand: r}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := visit{delivery: r.Header.Get("X-Delivery-Id"), from: time.Now(), status: http.StatusOK}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut off before it was whole: this is no delivery yet
	}
	v.attempt, _ = strconv.Atoi(r.Header.Get("X-Delivery-Attempt"))
	v.endpoint, _ = strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	m := manners[v.endpoint]
	if m.slow > 0 {
		s.mu.Lock()
		slow := time.Duration(s.rand.Int64N(int64(m.slow)))
		s.mu.Unlock()
		wait(context.Background(), slow)
	}
	if m.always || v.attempt <= m.fails {
		v.status = http.StatusInternalServerError
	}
	w.WriteHeader(v.status)
	v.to = time.Now()
	s.mu.Lock()
	s.visits = append(s.visits, v)
	s.mu.Unlock()
	if origin, _, ok := madeAt(body); ok {
		s.flow.saw(strconv.Itoa(v.endpoint), origin)
	}
}

func (s *receiver) struck(st strike) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strikes = append(s.strikes, st)
}

// faults are those of senders, and of what they stand on.
func (s *receiver) faults(p *plan, d *harness.Deployment, brokers *address) []fault {
	if !harness.Real() {
		kill := s.noted(p.kill(d, "the process", d.Of("webhook-sender"), nil, func() { brokers.set(d.Brokers) }))
		return []fault{kill, kill, kill}
	}
	kill := s.noted(p.kill(d, "a sender", d.Of("webhook-sender"), nil, nil))
	const stalled = "SIGSTOP of a sender past its session and its leases"
	stall := fault{stalled, func(struck func(...string)) {
		victim := pick(p.rand, d.Of("webhook-sender"))
		victim.Suspend()
		at := time.Now()
		struck()
		p.pace(12*time.Second, 12*time.Second)
		s.struck(strike{by: stalled, at: at, until: time.Now(), senders: 1})
		victim.Resume()
	}}
	return append(append([]fault{kill, kill, stall}, s.redis(p)...), s.outages(p.brokers())...)
}

// outages remembers how long faults kept the log from being written: until the
// broker was back, and the senders had noticed.
func (s *receiver) outages(faults []fault) []fault {
	const noticing = 15 * time.Second
	for i, f := range faults {
		faults[i] = fault{f.name, func(struck func(...string)) {
			at := time.Now()
			f.strike(struck)
			s.struck(strike{by: f.name, at: at, until: time.Now().Add(noticing), outage: true, senders: senders})
		}}
	}
	return faults
}

// noted remembers when a fault that ends a process struck.
func (s *receiver) noted(f fault) fault {
	return fault{f.name, func(struck func(...string)) {
		f.strike(func(keys ...string) {
			now := time.Now()
			s.struck(strike{by: f.name, at: now, until: now, senders: 1})
			struck(keys...)
		})
	}}
}

// redis are the faults of Redis, if the tests have one of their own.
func (s *receiver) redis(p *plan) []fault {
	control := harness.RedisControl()
	if !control.Able() {
		p.t.Log("Redis can't be stopped or emptied here (no REDIS_CONTROL)")
		return nil
	}
	opts, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		p.t.Fatal("REDIS_URL can't be read")
	}
	client := redis.NewClient(opts)
	p.t.Cleanup(func() { _ = client.Close() })
	must := func(what string, err error) {
		if err != nil {
			p.t.Fatalf("%s: %v", what, err)
		}
	}
	return []fault{
		{"FLUSHALL", func(struck func(...string)) {
			must("FLUSHALL", client.FlushAll(p.t.Context()).Err())
			struck()
		}},
		{"Redis set back to an old snapshot", func(struck func(...string)) {
			must("SAVE", client.Save(p.t.Context()).Err())
			p.pace(time.Second, 2*time.Second) // marks that the snapshot lacks
			control.Do(p.t, "kill")
			struck()
			control.Do(p.t, "restart")
		}},
		{"Redis stopped and started empty", func(struck func(...string)) {
			must("SAVE", client.FlushAll(p.t.Context()).Err())
			must("SAVE", client.Save(p.t.Context()).Err()) // of nothing
			control.Do(p.t, "kill")
			struck()
			p.pace(time.Second, 3*time.Second)
			control.Do(p.t, "restart")
		}},
	}
}
