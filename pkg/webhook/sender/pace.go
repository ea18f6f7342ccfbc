package sender

import "time"

// pace is how many requests at a time an endpoint is given, and when. It grows
// while answers come as fast as usual and shrinks when they don't, as TCP's
// congestion window does (Jacobson 1988): doubling up to where it last went wrong,
// then by one for each round of answers, and by half when the endpoint is
// overloaded. What is usual follows slowly, as in Netflix's gradient limits, so
// that an endpoint which always takes its time is not taken for an overloaded one.
// An endpoint that fails and fails is left alone for a while and then given a
// single request (a circuit breaker).
//
// It knows no clock and no lock of its own.
type pace struct {
	most      float64 // its bound
	limit     float64 // at least 1
	threshold float64 // up to which the limit doubles

	usual   time.Duration // what answers have taken on average, of late
	recent  time.Duration // and just now
	answers int           // that these are made from, up to settled
	last    time.Time     // when the last of them came
	shrunk  time.Time     // requests begun before say nothing new

	failures int           // since the last success
	breakAt  int           // so many leave the endpoint alone
	until    time.Time     // it is left alone
	rest     time.Duration // for how long
}

const (
	// firstLimit is what an endpoint gets of which nothing is known.
	firstLimit = 8
	// slack is what answers may take beyond twice the usual time: queues of our own
	// make that much.
	slack = 10 * time.Millisecond
	// settled is how many answers make an average, to begin with; usually is how
	// far back it reaches later on, and lately how many answers are recent.
	settled = 64
	usually = 30 * time.Second
	lately  = 16
	// firstRest and longestRest bound how long a failing endpoint is left alone.
	firstRest   = time.Second
	longestRest = time.Minute
)

func newPace(most, breakAt int) pace {
	m := float64(most)
	return pace{most: m, limit: min(firstLimit, m), threshold: m, breakAt: breakAt}
}

// allowed returns how many requests may be under way, and when that changes by
// itself; zero if it does not.
func (p *pace) allowed(now time.Time) (n int, again time.Time) {
	if p.failures < p.breakAt {
		return int(p.limit), time.Time{}
	}
	if now.Before(p.until) {
		return 0, p.until
	}
	return 1, time.Time{}
}

// broken says whether the endpoint is left alone but for single requests.
func (p *pace) broken() bool { return p.failures >= p.breakAt }

// succeeded tells of an answer that was a success; full says whether all
// allowed requests were under way.
func (p *pace) succeeded(began, now time.Time, latency time.Duration, full bool) {
	if p.broken() {
		p.limit, p.rest = 1, 0
	}
	p.failures = 0
	p.note(now, latency)
	switch {
	case p.recent > 2*p.usual+slack:
		p.shrink(began, now, 0.9)
	case !full:
	case p.limit < p.threshold:
		p.limit = min(p.limit+1, p.most)
	default:
		p.limit = min(p.limit+1/p.limit, p.most)
	}
}

// note takes an answer into the averages.
func (p *pace) note(now time.Time, latency time.Duration) {
	p.answers = min(p.answers+1, settled)
	p.recent += (latency - p.recent) / time.Duration(min(p.answers, lately))
	if p.answers < settled {
		p.usual += (latency - p.usual) / time.Duration(p.answers)
	} else {
		share := min(now.Sub(p.last).Seconds()/usually.Seconds(), 1)
		p.usual += time.Duration(share * float64(latency-p.usual))
	}
	if p.usual > 2*p.recent { // it has become faster, which is soon believed
		p.usual -= p.usual / 16
	}
	p.last = now
}

// failed tells of an attempt that was none; overload says whether that is a sign
// of too many requests.
func (p *pace) failed(began, now time.Time, overload bool) {
	if overload {
		p.shrink(began, now, 0.5)
	}
	if p.failures++; p.failures < p.breakAt || now.Before(p.until) {
		return
	}
	p.rest = min(max(2*p.rest, firstRest), longestRest)
	p.until = now.Add(p.rest)
}

// shrink makes the limit smaller, once for all requests that were under way
// together.
func (p *pace) shrink(began, now time.Time, factor float64) {
	if began.Before(p.shrunk) {
		return
	}
	p.shrunk = now
	p.limit = max(1, p.limit*factor)
	p.threshold = p.limit
}
