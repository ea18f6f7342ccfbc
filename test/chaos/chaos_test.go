// Package chaos tries the promises while processes are killed, stalled and
// started again, and brokers and Redis are stopped, emptied and set back.
//
// Each test has two sizes: by default each kind of fault strikes once or twice;
// with CHAOS_DURATION=3m they strike at random for that long. The order of the
// faults, their pace and what the clients do follow from a seed, which is printed;
// CHAOS_SEED repeats it. Without KAFKA_BROKERS and REDIS_URL everything is one
// process on the embedded broker and Redis, and killing that is the only fault.
package chaos

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// recoverLimit bounds how long a deployment may take to work again.
const recoverLimit = 90 * time.Second

// plan is what a run is made of.
type plan struct {
	t    *testing.T
	rand *rand.Rand // for the test's own goroutine; see source
	seed uint64
	long time.Duration // CHAOS_DURATION, 0 for the small size
	took map[string][]time.Duration
}

func newPlan(t *testing.T) *plan {
	t.Helper()
	p := &plan{t: t, seed: uint64(time.Now().UnixNano()), took: map[string][]time.Duration{}}
	var err error
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		if p.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	if text := os.Getenv("CHAOS_DURATION"); text != "" {
		if p.long, err = time.ParseDuration(text); err != nil {
			t.Fatalf("CHAOS_DURATION: %v", err)
		}
	}
	t.Logf("CHAOS_SEED=%d", p.seed)
	p.rand = p.source(0)
	return p
}

// source returns the n-th source of chance; each goroutine has its own.
func (p *plan) source(n uint64) *rand.Rand { return rand.New(rand.NewPCG(p.seed, n)) }

// pick returns one of several.
func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// pace waits for some time between the two: how long a fault lasts, and how far
// it is from the next.
func (p *plan) pace(least, most time.Duration) {
	t := time.NewTimer(least + time.Duration(p.rand.Int64N(int64(most-least)+1)))
	defer t.Stop()
	<-t.C
}

// fault is something that goes wrong and is mended again.
type fault struct {
	name string
	// strike breaks something, calls struck as soon as it is broken, with the keys
	// of the flow that are concerned if not all are, and mends it.
	strike func(struck func(keys ...string))
}

// run strikes: each fault once in a small run, else until the time is up. After
// each it waits until everything flows again, and notes how long that took from
// the moment of the strike. Before each and after the last the clients get some
// work done, however slow the machine is: without it a run would show nothing.
func (p *plan) run(f *flow, w work, faults []fault) {
	p.t.Helper()
	const some = 5
	began := time.Now()
	for round := 0; round == 0 || time.Since(began) < p.long; round++ {
		p.rand.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
		for _, one := range faults {
			if round > 0 && time.Since(began) >= p.long {
				break
			}
			w.await(p.t, some)
			p.pace(300*time.Millisecond, 1200*time.Millisecond)
			var concerned []string
			one.strike(func(keys ...string) { concerned = keys; f.watch() })
			all := f.await(p.t, one.name)
			took := longest(all, concerned)
			p.took[one.name] = append(p.took[one.name], took)
			p.t.Logf("%6.1f s: %s, flowing again after %s; concerned are %v of %v", time.Since(began).Seconds(), one.name, took.Round(time.Millisecond), concerned, all)
		}
	}
	w.await(p.t, some)
	for name, all := range p.took {
		p.t.Logf("%s: %d times, pause p50 %s, max %s", name, len(all), median(all).Round(time.Millisecond), slices.Max(all).Round(time.Millisecond))
	}
}

func median(all []time.Duration) time.Duration {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[len(all)/2]
}

// work hears of what the clients get done.
type work chan struct{}

func newWork() work { return make(work, 1) }

// did tells that one more thing was acknowledged.
func (w work) did() {
	select {
	case w <- struct{}{}:
	default: // nobody counts at the moment
	}
}

// await returns when at least n things more were acknowledged.
func (w work) await(t *testing.T, n int) {
	t.Helper()
	select {
	case <-w: // from before
	default:
	}
	limit := time.NewTimer(recoverLimit)
	defer limit.Stop()
	for done := range n {
		select {
		case <-w:
		case <-limit.C:
			t.Fatalf("the clients got %d of %d things done within %s", done, n, recoverLimit)
		}
	}
}

// flow notices when things happen again after a fault, for each of some keys.
type flow struct {
	keys []string

	mu    sync.Mutex
	since time.Time
	took  map[string]time.Duration // nil while nobody watches
	done  chan struct{}
}

func newFlow(keys ...string) *flow { return &flow{keys: keys} }

// watch begins a measurement: what began before now does not count.
func (f *flow) watch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since, f.took, f.done = time.Now(), map[string]time.Duration{}, make(chan struct{})
}

// watching says whether saw is of interest.
func (f *flow) watching() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.took != nil
}

// saw tells that something that began at origin has come to its end.
func (f *flow) saw(key string, origin time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.took == nil || origin.Before(f.since) || !slices.Contains(f.keys, key) {
		return
	}
	if _, known := f.took[key]; known {
		return
	}
	f.took[key] = time.Since(f.since)
	if len(f.took) == len(f.keys) {
		close(f.done)
	}
}

// await returns when every key has been seen again, and how long each took.
func (f *flow) await(t *testing.T, what string) map[string]time.Duration {
	t.Helper()
	f.mu.Lock()
	done := f.done
	f.mu.Unlock()
	limit := time.NewTimer(recoverLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		f.mu.Lock()
		defer f.mu.Unlock()
		t.Fatalf("after %q some of %v do not flow again within %s: %v do", what, f.keys, recoverLimit, f.took)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	took := f.took
	f.took = nil
	return took
}

// longest returns the longest time that it took one of those that are
// concerned, or any if none is named.
func longest(all map[string]time.Duration, concerned []string) time.Duration {
	var most time.Duration
	for key, took := range all {
		if len(concerned) == 0 || slices.Contains(concerned, key) {
			most = max(most, took)
		}
	}
	return most
}

// kill makes a fault of killing one of the processes as a power cut would, and
// starting it again a little later.
func (p *plan) kill(d *harness.Deployment, what string, of []*harness.Process, concerned func(*harness.Process) []string, restarted func()) fault {
	return fault{"kill -9 of " + what, func(struck func(...string)) {
		victim := pick(p.rand, of)
		var keys []string
		if concerned != nil {
			keys = concerned(victim)
		}
		victim.Kill()
		struck(keys...)
		p.pace(100*time.Millisecond, time.Second)
		d.Restart(victim)
		if restarted != nil {
			restarted()
		}
	}}
}

// brokers returns the fault of killing a broker and starting it again, if that
// can be done.
func (p *plan) brokers() []fault {
	control := harness.KafkaControl()
	if !control.Able() {
		p.t.Log("the brokers can't be stopped here (no KAFKA_CONTROL)")
		return nil
	}
	return []fault{{"kill -9 of a broker", func(struck func(...string)) {
		id := pick(p.rand, harness.BrokerIDs())
		struck()
		control.Do(p.t, "kill", id)
		p.pace(time.Second, 4*time.Second)
		control.Do(p.t, "restart", id)
	}}}
}

// report fails the test with the first few of many violations.
func report(t *testing.T, violations []string) {
	t.Helper()
	const most = 20
	for i, v := range violations {
		if i == most {
			t.Errorf("and %d more violations", len(violations)-most)
			return
		}
		t.Error(v)
	}
}

// address is where the brokers are, for goroutines: in one process it changes
// when that is started again.
type address struct {
	mu   sync.Mutex
	text string
}

func (a *address) set(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text = text
}

func (a *address) get() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Split(a.text, ",")
}
