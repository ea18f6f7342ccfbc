package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/test/harness"
)

const (
	// partitions is how many each keyed topic has, in either deployment.
	partitions = 4
	clients    = 20
	// suspension is longer than the session of the group that shares out the
	// partitions: whoever wakes up after it has lost them.
	suspension = 9 * time.Second
)

// An acknowledged command is in the log, once; a refused one is not; versions
// have no gap, nobody is double-booked, and a read shows what was acknowledged
// before: whatever happens to the processes and the brokers meanwhile.
func TestAppointmentsHistory(t *testing.T) {
	p := newPlan(t)
	d := harness.Start(t, harness.Options{Appointments: 3, Routers: -1, Senders: -1})
	h := &historian{t: t, api: newAPI(d.URLs), done: newWork()}
	h.api.signIn(t.Context(), "", d.URL)
	f := newFlow()
	for n := range partitions {
		f.keys = append(f.keys, strconv.Itoa(n))
	}

	c := newCrowd(t)
	for n := range clients {
		one := &historyClient{h: h, rand: p.source(uint64(n) + 1)}
		c.every(25*time.Millisecond, func() { one.act(c.ctx) })
	}
	for n := range partitions {
		for i, url := range d.URLs {
			h.probe(c, f, int32(n), i, url)
		}
	}
	began := time.Now()
	p.run(f, h.done, h.faults(p, d))
	took := time.Since(began)
	c.stop(45 * time.Second)

	var log []logged
	d.Read(t, "appointments.events", recoverLimit, func(r *kgo.Record) {
		e, err := events.Decode(r)
		if err != nil {
			t.Errorf("%d/%d: %v", r.Partition, r.Offset, err)
		}
		log = append(log, logged{e, r.Partition, r.Offset})
	})
	count := tally{codes: map[string]int{}}
	violations := checkHistory(log, h.commands, &count)
	t.Logf("%d events; %d commands in %s (%.0f/s): %d accepted, %d refused (%d of them for a conflict), %d without an end; "+
		"%d tries were answered 503 %v and %d not at all, %d were refused and yet had been carried out by an earlier try",
		len(log), len(h.commands), took.Round(time.Second), float64(len(h.commands))/took.Seconds(),
		count.accepted, count.refused, count.conflicts, count.open, count.unavailable, count.codes, count.broken, count.late)
	t.Logf("%d reads from another instance after an answer", h.reads.Load())
	report(t, violations)
	if count.accepted == 0 || count.conflicts == 0 || h.reads.Load() == 0 {
		t.Error("the run shows nothing: commands must be accepted, conflict and be read back")
	}
}

func (h *historian) faults(p *plan, d *harness.Deployment) []fault {
	if !harness.Real() {
		kill := p.kill(d, "the process", d.Of("appointments"), nil, nil)
		return []fault{kill, kill, kill}
	}
	adm := kadm.NewClient(d.Client(h.t))
	services := d.Of("appointments")
	owned := func(victim *harness.Process) []string {
		url := d.URLs[slices.Index(services, victim)]
		return h.owned(adm, d.Prefix+"appointments", url)
	}
	owners := func() []*harness.Process {
		return slices.DeleteFunc(slices.Clone(services), func(one *harness.Process) bool { return len(owned(one)) == 0 })
	}
	kill := fault{"kill -9 of an owner", func(struck func(...string)) {
		p.kill(d, "", owners(), owned, nil).strike(struck)
	}}
	stall := fault{"SIGSTOP of an owner past its session", func(struck func(...string)) {
		victim := pick(p.rand, owners())
		keys := owned(victim)
		victim.Suspend()
		struck(keys...)
		p.pace(suspension, suspension)
		victim.Resume()
	}}
	overtaken := fault{"SIGSTOP of an owner with commands under way", func(struck func(...string)) {
		h.overtake(p, d, adm, pick(p.rand, owners()), struck)
	}}
	return append([]fault{kill, kill, stall, overtaken}, p.brokers()...)
}

// owned returns the partitions that an instance writes.
func (h *historian) owned(adm *kadm.Client, group, url string) []string {
	ctx, cancel := context.WithTimeout(h.t.Context(), recoverLimit)
	defer cancel()
	for {
		groups, err := adm.DescribeGroups(ctx, group)
		if err == nil {
			err = groups.Error()
		}
		if err == nil {
			var found []string
			for _, m := range groups[group].Members {
				assigned, ok := m.Assigned.AsConsumer()
				if !ok || m.ClientID != url {
					continue
				}
				for _, topic := range assigned.Topics {
					for _, n := range topic.Partitions {
						found = append(found, strconv.Itoa(int(n)))
					}
				}
			}
			return found
		}
		if !wait(ctx, 100*time.Millisecond) {
			h.t.Fatalf("describe group %s: %v", group, err)
		}
	}
}

// historian remembers every command of all clients.
type historian struct {
	t     *testing.T
	api   *api
	reads atomic.Int64
	done  work // hears of each accepted command, if it is there
	// overtaken counts how often an owner was; only the test's own goroutine
	// touches it.
	overtaken int

	mu       sync.Mutex
	commands []*command
	known    []shown // appointments as they were last seen
}

func (h *historian) record(c *command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commands = append(h.commands, c)
}

// saw remembers an appointment for other clients to fight for.
func (h *historian) saw(a shown) {
	const most = 96
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.known, func(k shown) bool { return k.ID == a.ID })
	switch {
	case i >= 0 && h.known[i].Version < a.Version:
		h.known[i] = a
	case i >= 0:
	case len(h.known) < most:
		h.known = append(h.known, a)
	default:
		h.known = append(h.known[1:], a)
	}
}

func (h *historian) some(r *rand.Rand) (shown, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) == 0 {
		return shown{}, false
	}
	return pick(r, h.known), true
}

// command is what a client asked for and every answer to it.
type command struct {
	kind string
	// key is the Idempotency-Key of a POST. A PUT has none: there it is the new
	// value of the notes, by which its event is known.
	key         string
	fingerprint string // of a POST, as the log has it
	id          string // of the appointment that is to be changed
	ifVersion   int    // of a PUT that is meant for one version only
	tries       []try
}

// carryOut sends the command until it has an answer or ctx ends.
func (h *historian) carryOut(ctx context.Context, next func() string, c *command, method, path string, fields map[string]any) shown {
	var body []byte
	if fields != nil {
		body = encode(h.t, fields)
	}
	var headers []string
	if method == http.MethodPost {
		// As the API makes it; the log holds no keys.
		c.fingerprint = appointment.Fingerprint("user:admin", path, c.key, append([]byte(c.key+"\x00"), body...))
		headers = []string{"Idempotency-Key", c.key}
	}
	if c.ifVersion > 0 {
		headers = append(headers, "If-Match", strconv.Quote(strconv.Itoa(c.ifVersion)))
	}
	c.tries = h.api.insist(ctx, next, method, path, body, headers...)
	h.record(c)
	if done := c.accepted(); done != nil {
		h.done.did()
		return done.answer.Appointment
	}
	return shown{}
}

// historyClient is one user, with a source of chance of its own.
type historyClient struct {
	h    *historian
	rand *rand.Rand
	n    int
}

func (c *historyClient) next() string { return pick(c.rand, c.h.api.urls) }

// act carries out one command, and often reads the appointment from another
// instance after it.
func (c *historyClient) act(ctx context.Context) {
	c.n++
	cmd := &command{key: fmt.Sprintf("k-%016x-%d", c.rand.Uint64(), c.n)}
	var after shown
	seen, found := c.h.some(c.rand)
	kind := c.rand.IntN(100)
	path := "/api/appointments/" + seen.ID
	cmd.id = seen.ID
	switch {
	case !found || kind < 35:
		cmd.kind, cmd.id = "create", ""
		date, start, end := c.slot()
		after = c.h.carryOut(ctx, c.next, cmd, http.MethodPost, "/api/appointments", map[string]any{
			"patient_id": "patient:1", "provider_id": providerOf(int32(c.rand.IntN(partitions)), "doctor"),
			"appointment_date": date, "start_time": start, "end_time": end,
		})
	case kind < 65:
		cmd.kind = "move"
		if c.rand.IntN(2) == 0 {
			cmd.ifVersion = seen.Version
		}
		date, start, end := c.slot()
		after = c.h.carryOut(ctx, c.next, cmd, http.MethodPut, path, map[string]any{
			"appointment_date": date, "start_time": start, "end_time": end, "notes": cmd.key,
		})
	case kind < 80:
		cmd.kind = "cancel"
		after = c.h.carryOut(ctx, c.next, cmd, http.MethodPost, path+"/cancel", map[string]any{"reason": cmd.key})
	case kind < 95:
		cmd.kind = "confirm"
		after = c.h.carryOut(ctx, c.next, cmd, http.MethodPost, path+"/confirm", nil)
	default:
		cmd.kind = "complete"
		after = c.h.carryOut(ctx, c.next, cmd, http.MethodPost, path+"/complete", nil)
	}
	if after.ID == "" {
		return
	}
	c.h.saw(after)
	if c.rand.IntN(3) == 0 {
		c.readBack(ctx, after)
	}
}

// slot is a time on one of two days, so that most are taken.
func (c *historyClient) slot() (date, start, end string) {
	at := 9*60 + 15*c.rand.IntN(32)
	to := at + pick(c.rand, []int{15, 30, 45, 60})
	clock := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
	return fmt.Sprintf("2031-03-%02d", 1+c.rand.IntN(2)), clock(at), clock(to)
}

// readBack reads an appointment from any instance: it must be as it was
// answered, or newer.
func (c *historyClient) readBack(ctx context.Context, a shown) {
	url := c.next()
	status, got := c.h.api.do(ctx, url, http.MethodGet, "/api/appointments/"+a.ID, nil)
	switch {
	case status == 0 || status == http.StatusServiceUnavailable || status == http.StatusUnauthorized:
		return
	case status != http.StatusOK:
		c.h.t.Errorf("%s was acknowledged at version %d, and reading it then is answered with %d: %s", a.ID, a.Version, status, got.Error)
	case got.Appointment.Version < a.Version:
		c.h.t.Errorf("%s was acknowledged at version %d and then read at version %d", a.ID, a.Version, got.Appointment.Version)
	}
	c.h.reads.Add(1)
}

// probe keeps changing an appointment of its own in a partition, through one
// instance, and tells the flow when that works. It gives each request up soon:
// one that hangs says nothing of how the next would fare.
func (h *historian) probe(c *crowd, f *flow, partition int32, instance int, url string) {
	const soon = 1500 * time.Millisecond
	var a shown
	n := 0
	there := func() string { return url }
	c.every(10*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(c.ctx, soon)
		defer cancel()
		if a.ID == "" {
			cmd := &command{kind: "create", key: fmt.Sprintf("p-%d-%d", partition, instance)}
			a = h.carryOut(ctx, there, cmd, http.MethodPost, "/api/appointments", map[string]any{
				"patient_id": "patient:1", "provider_id": providerOf(partition, "probe"),
				"appointment_date": fmt.Sprintf("2032-01-%02d", 1+instance), "start_time": "09:00", "end_time": "10:00",
			})
			return
		}
		n++
		cmd := &command{kind: "probe", key: fmt.Sprintf("p-%d-%d-%d", partition, instance, n), id: a.ID}
		h.carryOut(ctx, there, cmd, http.MethodPut, "/api/appointments/"+a.ID, map[string]any{"notes": cmd.key})
		if done := cmd.accepted(); done != nil {
			f.saw(strconv.Itoa(int(partition)), done.sent)
		}
	})
}

// providerOf returns a provider whose calendar is in the partition.
func providerOf(partition int32, kind string) string {
	for n := 0; ; n++ {
		if events.Partition(name(kind, n), partitions) == partition {
			return name(kind, n)
		}
	}
}
