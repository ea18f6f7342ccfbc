package sender

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const fast = time.Millisecond

// round lets an endpoint answer as many requests as it is given at a time, and
// returns how many it is given next.
func (p *pace) round(now *time.Time, answer func(began, ended time.Time)) int {
	n, _ := p.allowed(*now)
	began := *now
	*now = now.Add(time.Second)
	for range n {
		answer(began, *now)
	}
	n, _ = p.allowed(*now)
	return n
}

func (p *pace) well(began, ended time.Time)      { p.succeeded(began, ended, fast, true) }
func (p *pace) overloads(began, ended time.Time) { p.failed(began, ended, true) }

func TestPaceGrowsShrinksAndGrowsMoreSlowly(t *testing.T) {
	p, now := newPace(256, 1000), time.Now()
	for _, want := range []int{16, 32, 64, 128} {
		if got := p.round(&now, p.well); got != want {
			t.Fatalf("%d requests at a time, want %d", got, want)
		}
	}
	for _, want := range []int{64, 32} { // once for each round, not for each failure
		if got := p.round(&now, p.overloads); got != want {
			t.Fatalf("%d requests at a time after a bad round, want %d", got, want)
		}
	}
	for range 10 {
		p.round(&now, p.well)
	}
	if got, _ := p.allowed(now); got < 40 || got > 43 {
		t.Errorf("%d requests at a time after ten good rounds, want about 42", got)
	}
}

func TestPaceNoticesSlowAnswers(t *testing.T) {
	p, now := newPace(64, 1000), time.Now()
	for range 20 {
		p.round(&now, p.well)
	}
	slow := func(began, ended time.Time) { p.succeeded(began, ended, 200*time.Millisecond, true) }
	for range 3 {
		p.round(&now, slow)
	}
	if got, _ := p.allowed(now); got > 50 {
		t.Errorf("%d requests at a time after three slow rounds, want fewer than 50", got)
	}
	// If it stays so, it is what is usual.
	for range 300 {
		p.round(&now, slow)
	}
	if got, _ := p.allowed(now); got < 60 {
		t.Errorf("%d requests at a time after 300 slow rounds, want as before", got)
	}
}

// An endpoint whose answers take now long, now short, is not overloaded.
func TestPaceKnowsWhatIsUsual(t *testing.T) {
	p, now := newPace(64, 1000), time.Now()
	rnd := rand.New(rand.NewPCG(1, 2))
	varied := func(began, ended time.Time) {
		p.succeeded(began, ended, time.Duration(rnd.IntN(400))*time.Millisecond, true)
	}
	for range 100 {
		if got := p.round(&now, varied); got < firstLimit {
			t.Fatalf("%d requests at a time, want no fewer than at first", got)
		}
	}
}

// Requests that do not fill what is allowed say nothing about more.
func TestPaceGrowsOnlyWhenItIsUsed(t *testing.T) {
	p, now := newPace(256, 1000), time.Now()
	p.succeeded(now, now, fast, false)
	if got, _ := p.allowed(now); got != firstLimit {
		t.Errorf("%d requests at a time, want %d", got, firstLimit)
	}
}

func TestPaceBreaks(t *testing.T) {
	p, now := newPace(256, 3), time.Now()
	for range 3 {
		p.failed(now, now, false)
	}
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
		rest := time.Duration(seconds) * time.Second
		if n, again := p.allowed(now); n != 0 || !again.Equal(now.Add(rest)) {
			t.Fatalf("%d requests, again in %s; want none for %s", n, again.Sub(now), rest)
		}
		now = now.Add(rest)
		if n, _ := p.allowed(now); n != 1 {
			t.Fatalf("%d requests after %s, want one", n, rest)
		}
		p.failed(now, now, false)
	}
	now = now.Add(time.Minute)
	p.well(now, now)
	if n, _ := p.allowed(now); n < 1 || p.broken() {
		t.Errorf("%d requests after a success", n)
	}
	p.failed(now, now, false)
	p.failed(now, now, false)
	p.failed(now, now, false)
	if _, again := p.allowed(now); !again.Equal(now.Add(time.Second)) {
		t.Errorf("left alone for %s after another success, want 1s", again.Sub(now))
	}
}

// Whatever happens, there is never less than one request at a time, unless for a
// bounded time, and never more than the bound.
func TestPaceIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 300).Draw(t, "most")
		p, now := newPace(most, rapid.IntRange(1, 20).Draw(t, "breakAt")), time.Now()
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			began := now
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			if rapid.Bool().Draw(t, "ok") {
				p.succeeded(began, now, now.Sub(began), rapid.Bool().Draw(t, "full"))
			} else {
				p.failed(began, now, rapid.Bool().Draw(t, "overload"))
			}
			n, again := p.allowed(now)
			if n > most || n < 1 && (!again.After(now) || again.Sub(now) > longestRest) {
				t.Fatalf("%d requests at a time, again in %s", n, again.Sub(now))
			}
		}
	})
}

// However many lanes take all that they may, one more finds a place, until a
// fourth of all places are taken by lanes that have a single one.
func TestSlotsLeaveSome(t *testing.T) {
	const size = 1024
	s := slots{size: size}
	for n := range size / share {
		ln, has := &lane{}, 0
		for s.take(ln, has) {
			has++
		}
		if has == 0 || n == 0 && has > size/share+1 {
			t.Fatalf("lane %d gets %d places", n+1, has)
		}
	}
}

// A lane that was first and took all that it might has no more than another in
// the end: it gives up what it could not take any more.
func TestSlotsBecomeEven(t *testing.T) {
	s := slots{size: 1024}
	first, has := &lane{}, 0
	for s.take(first, has) {
		has++
	}
	second, had := &lane{}, 0
	for change := true; change; {
		change = false
		if s.take(second, had) {
			had++
			change = true
		}
		if !s.keep(has) {
			s.give()
			has--
			change = true
		}
	}
	if diff := has - had; diff < -1 || diff > 1 || has < s.size/share/2 {
		t.Errorf("the first lane has %d places, the second %d", has, had)
	}
	for range 10 {
		if !s.keep(has) || !s.keep(had) || s.take(second, had) {
			t.Error("places that are even don't stay where they are")
		}
	}
}

func TestSlotsAreGivenInTurn(t *testing.T) {
	s := slots{size: 1}
	holder, first, second := &lane{}, &lane{}, &lane{}
	s.take(holder, 0)
	for _, ln := range []*lane{first, second, first} {
		if s.take(ln, 0) {
			t.Fatal("there is a second place")
		}
	}
	if s.keep(1) {
		t.Error("the place is kept although others stand in line")
	}
	if s.next() != nil {
		t.Error("somebody gets a place although there is none")
	}
	s.give()
	for i, want := range []*lane{first, second, nil} {
		if got := s.next(); got != want {
			t.Errorf("turn %d is somebody else's", i+1)
		}
	}
}
