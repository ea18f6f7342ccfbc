package status

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Latencies are counted in buckets, each 15 % wider than the one before: so far a
// percentile can be off.
const (
	leastLatency  = 0.25 // ms; the first bucket ends there
	bucketGrowth  = 1.15
	latencies     = 93 // buckets; the last begins at 84 s and has no end
	firstBucket   = '!'
	figuresKept   = 25 * time.Hour // of a minute or an hour, after its end
	minutesOfHour = 60
)

// bucketName names the bucket of a latency, in milliseconds: one character that
// is no space.
func bucketName(ms float64) byte {
	n := 0
	if ms > leastLatency {
		n = min(int(math.Ceil(math.Log(ms/leastLatency)/math.Log(bucketGrowth))), latencies-1)
	}
	return firstBucket + byte(n)
}

// bucketEnd is the greatest latency in a bucket, in milliseconds.
func bucketEnd(n int) float64 { return leastLatency * math.Pow(bucketGrowth, float64(n)) }

// Stats are figures of a subscription.
type Stats struct {
	FiveMinutes, Hour, Day Figures
	// Waiting and Retrying are how many deliveries stand so now.
	Waiting, Retrying int
	// Behind is how many records are not projected yet.
	Behind int
}

// Figures are of the attempts that began in some whole minutes and in the one
// that is under way.
type Figures struct {
	Delivered int // attempts that delivered
	Failed    int // attempts that failed and are repeated
	Dead      int // attempts that failed for the last time
	Discarded int // deliveries that were not sent any more
	latency   [latencies]int
}

// Attempts is how many requests were made.
func (f *Figures) Attempts() int { return f.Delivered + f.Failed + f.Dead }

// SuccessRate is the share of requests that delivered, false if there were none.
func (f *Figures) SuccessRate() (float64, bool) {
	if f.Attempts() == 0 {
		return 0, false
	}
	return float64(f.Delivered) / float64(f.Attempts()), true
}

// Latency returns the latency that a share of the requests, 0 to 1, did not
// exceed, failed ones included; false if there were none.
func (f *Figures) Latency(share float64) (time.Duration, bool) {
	total := 0
	for _, n := range f.latency {
		total += n
	}
	if total <= 0 {
		return 0, false
	}
	rank, seen := share*float64(total), 0.0
	for i, n := range f.latency {
		if n > 0 && seen+float64(n) >= rank {
			begin := 0.0
			if i > 0 {
				begin = bucketEnd(i - 1)
			}
			ms := begin + (bucketEnd(i)-begin)*(rank-seen)/float64(n)
			return time.Duration(ms * float64(time.Millisecond)).Round(10 * time.Microsecond), true
		}
		seen += float64(n)
	}
	return 0, false
}

// add counts what a minute or an hour had.
func (f *Figures) add(fields map[string]string) error {
	for name, value := range fields {
		n, err := strconv.Atoi(value)
		if err != nil || len(name) != 2 {
			return fmt.Errorf("figures as Redis has them can't be read")
		}
		switch name[0] - '0' {
		case rankRetrying:
			f.Failed += n
		case rankDead:
			f.Dead += n
		case rankDelivered:
			f.Delivered += n
		case rankDiscarded:
			f.Discarded += n
			continue // no request, no latency
		default:
			continue // a newer version's
		}
		if b := int(name[1]) - firstBucket; b >= 0 && b < latencies {
			f.latency[b] += n
		}
	}
	return nil
}

// Stats returns the figures of a subscription. Errors: ErrUnavailable, or that of
// ctx.
func (p *Projection) Stats(ctx context.Context, subscriptionID string) (*Stats, error) {
	known, keys, err := p.lookUp(ctx)
	if err != nil {
		return nil, err
	}
	sub, now := shorten(subscriptionID), p.cfg.Now()
	pipe := p.redis.TxPipeline()
	var at *redis.SliceCmd
	if len(keys) > 0 {
		at = pipe.MGet(ctx, keys...)
	}
	oldest := "[" + bound(now.Add(-p.cfg.Retention))
	waiting := pipe.ZLexCount(ctx, p.indexKey(rankWaiting, sub), oldest, "+")
	retrying := pipe.ZLexCount(ctx, p.indexKey(rankRetrying, sub), oldest, "+")
	spans := spansOf(now)
	for i := range spans {
		spans[i].fields = pipe.HGetAll(ctx, p.cfg.Prefix+spans[i].key+sub)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, unavailable("read figures", err)
	}
	s := &Stats{Waiting: int(waiting.Val()), Retrying: int(retrying.Val())}
	if at != nil {
		s.Behind = missing(known, parsePositions(keys, at.Val()))
	}
	for _, span := range spans {
		for _, in := range []struct {
			is bool
			f  *Figures
		}{{span.five, &s.FiveMinutes}, {span.hour, &s.Hour}, {span.day, &s.Day}} {
			if !in.is {
				continue
			}
			if err := in.f.add(span.fields.Val()); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// span is a minute or an hour, and the windows that it is counted in.
type span struct {
	key             string
	five, hour, day bool
	fields          *redis.MapStringStringCmd
}

// spansOf returns the minutes and hours that make up the windows that end now: the
// day is whole hours, and minutes at both ends.
func spansOf(now time.Time) []span {
	minute := now.Unix() / 60
	oldest := minute - 24*minutesOfHour
	firstHour, lastHour := oldest/minutesOfHour+1, minute/minutesOfHour // whole: first up to, and without, last
	var spans []span
	add := func(m int64) {
		spans = append(spans, span{
			key: "m:" + strconv.FormatInt(m, 10), five: m >= minute-5, hour: m >= minute-minutesOfHour,
			day: m < firstHour*minutesOfHour || m >= lastHour*minutesOfHour,
		})
	}
	for m := oldest; m < firstHour*minutesOfHour; m++ {
		add(m)
	}
	for m := min(minute-minutesOfHour, lastHour*minutesOfHour); m <= minute; m++ {
		add(m)
	}
	for h := firstHour; h < lastHour; h++ {
		spans = append(spans, span{key: "h:" + strconv.FormatInt(h, 10), day: true})
	}
	return spans
}
