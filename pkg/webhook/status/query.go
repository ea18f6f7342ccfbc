package status

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Delivery is what is known of a delivery.
type Delivery struct {
	ID             string
	SubscriptionID string
	EventType      string
	EventPosition  string // a test has none
	Origin         string
	Status         string
	CreatedAt      time.Time // in milliseconds
	// NextAttemptAt is when the next attempt is due; only while it is Retrying.
	NextAttemptAt time.Time
	// Attempts are those that ended, the oldest first.
	Attempts []Attempt
}

// Attempt is one that ended.
type Attempt struct {
	Number  int // 1, 2, 3 …
	At      time.Time
	Outcome string // as of webhook.Attempt
	Status  int    // of the answer, 0 if there was none
	Error   string
	Latency time.Duration
	// Answer is the beginning of a failed attempt's answer. It comes with a question
	// for one delivery only.
	Answer        string
	NextAttemptAt time.Time
}

// Query asks for deliveries of a subscription. Fields that are zero ask for all.
type Query struct {
	SubscriptionID string // required
	Status         string
	EventType      string
	From, To       time.Time // when it was made; To itself is not included
	Limit          int       // 1 to MaxLimit
	Cursor         string    // NextCursor of the page before
}

// MaxLimit is how many deliveries a page has at most.
const MaxLimit = 200

// maxLook is how many deliveries are looked at for one page: of a type of event
// that is rare among many, a page can be short and still not the last.
const maxLook = 10_000

// Page is a part of a list, the newest first.
type Page struct {
	Deliveries []Delivery
	// NextCursor asks for the page after; empty after the last.
	NextCursor string
	// Behind is how many records are not projected yet.
	Behind int
}

// memberSize is the length of an index's members: a time in milliseconds and the
// bytes of an id. They sort by time, and all have the same score.
const memberSize = millisDigits + 16

// Deliveries lists deliveries of a subscription. Errors: ErrCursor,
// ErrUnavailable, or that of ctx.
func (p *Projection) Deliveries(ctx context.Context, q Query) (*Page, error) {
	known, keys, err := p.lookUp(ctx)
	if err != nil {
		return nil, err
	}
	upper, lower, err := p.bounds(q)
	if err != nil {
		return nil, err
	}
	ranks := []int{rankWaiting, rankRetrying, rankDiscarded, rankDead, rankDelivered}
	if q.Status != "" {
		ranks = []int{rankOf(q.Status)}
	}
	page := &Page{Deliveries: []Delivery{}}
	ask := q.Limit + 1
	for looked := 0; ; ask = min(10*ask, 1000) {
		members, positions, err := p.members(ctx, shorten(q.SubscriptionID), ranks, upper, lower, ask, keys)
		if err != nil {
			return nil, err
		}
		if looked == 0 {
			page.Behind = missing(known, positions)
		}
		found, err := p.load(ctx, members)
		if err != nil {
			return nil, err
		}
		for i, d := range found {
			// Between the two looks it may have gone, or gone on.
			if d == nil || q.EventType != "" && d.EventType != q.EventType || q.Status != "" && d.Status != q.Status {
				continue
			}
			if len(page.Deliveries) == q.Limit {
				return page, nil
			}
			page.Deliveries = append(page.Deliveries, *d)
			page.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(members[i]))
		}
		looked += len(members)
		switch {
		case len(members) < ask:
			page.NextCursor = ""
			return page, nil
		case looked >= maxLook:
			page.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(members[len(members)-1]))
			return page, nil
		}
		upper = "(" + members[len(members)-1]
	}
}

// bounds returns the range of an index that a query is about.
func (p *Projection) bounds(q Query) (upper, lower string, err error) {
	oldest := p.cfg.Now().Add(-p.cfg.Retention)
	if q.From.After(oldest) {
		oldest = q.From
	}
	lower, upper = "["+bound(oldest), "+"
	if !q.To.IsZero() {
		upper = "(" + bound(q.To)
	}
	if q.Cursor != "" {
		member, err := base64.RawURLEncoding.DecodeString(q.Cursor)
		if err != nil || len(member) != memberSize {
			return "", "", ErrCursor
		}
		if after := "(" + string(member); upper == "+" || after < upper {
			upper = after
		}
	}
	return upper, lower, nil
}

// bound writes a time, to the millisecond or after, as members begin with it.
func bound(t time.Time) string {
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	return strconv.FormatInt(min(max(ms, leastMillis), greatestMillis), 10)
}

// members returns the newest of some indexes, n at most, and the positions that
// they were projected up to.
func (p *Projection) members(ctx context.Context, sub string, ranks []int, upper, lower string, n int, keys []string) ([]string, map[string]int64, error) {
	pipe := p.redis.TxPipeline() // no delivery is between two states
	var at *redis.SliceCmd
	if len(keys) > 0 {
		at = pipe.MGet(ctx, keys...)
	}
	lists := make([]*redis.StringSliceCmd, len(ranks))
	for i, rank := range ranks {
		lists[i] = pipe.ZRevRangeByLex(ctx, p.indexKey(rank, sub), &redis.ZRangeBy{Min: lower, Max: upper, Count: int64(n)})
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, nil, unavailable("list deliveries", err)
	}
	var all []string
	for _, l := range lists {
		all = append(all, l.Val()...)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(b, a) })
	positions := map[string]int64{}
	if at != nil {
		positions = parsePositions(keys, at.Val())
	}
	return all[:min(len(all), n)], positions, nil
}

// load returns the deliveries of members; nil for those that have gone.
func (p *Projection) load(ctx context.Context, members []string) ([]*Delivery, error) {
	if len(members) == 0 {
		return nil, nil
	}
	pipe := p.redis.Pipeline()
	all := make([]*redis.MapStringStringCmd, len(members))
	for i, m := range members {
		all[i] = pipe.HGetAll(ctx, p.deliveryKey(m[millisDigits:]))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, unavailable("read deliveries", err)
	}
	found := make([]*Delivery, len(members))
	for i, m := range members {
		if len(all[i].Val()) == 0 {
			continue
		}
		d, err := decodeDelivery(m[millisDigits:], all[i].Val())
		if err != nil {
			return nil, err
		}
		found[i] = d
	}
	return found, nil
}

// Delivery returns a delivery with the answers to its failed attempts, and how
// many records are not projected yet. Errors: ErrNotFound, ErrUnavailable, or that
// of ctx.
func (p *Projection) Delivery(ctx context.Context, id string) (*Delivery, int, error) {
	short, err := shortID(id)
	if err != nil {
		return nil, 0, ErrNotFound
	}
	known, keys, err := p.lookUp(ctx)
	if err != nil {
		return nil, 0, err
	}
	positions, err := p.positions(ctx, keys) // before: at least as much is known as it says
	if err != nil {
		return nil, 0, err
	}
	pipe := p.redis.TxPipeline()
	values, answers := pipe.HGetAll(ctx, p.deliveryKey(short)), pipe.HGetAll(ctx, p.answersKey(short))
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, 0, unavailable("read a delivery", err)
	}
	behind := missing(known, positions)
	if len(values.Val()) == 0 {
		return nil, behind, ErrNotFound
	}
	d, err := decodeDelivery(short, values.Val())
	if err != nil {
		return nil, 0, err
	}
	for i := range d.Attempts {
		d.Attempts[i].Answer = answers.Val()[strconv.Itoa(d.Attempts[i].Number)]
	}
	return d, behind, nil
}

// Find returns what does not change of a delivery, for who sends it again: its
// ids, its type of event and its origin, and the event's position, which only a
// test has not. It returns false if the delivery is not known here, and does not
// look at how far the projection is: who wants to be sure asks the topics.
// Errors: ErrUnavailable, or that of ctx.
func (p *Projection) Find(ctx context.Context, deliveryID string) (webhook.Attempt, bool, error) {
	short, err := shortID(deliveryID)
	if err != nil {
		return webhook.Attempt{}, false, nil
	}
	values, err := p.redis.HGetAll(ctx, p.deliveryKey(short)).Result()
	if err != nil {
		return webhook.Attempt{}, false, unavailable("read a delivery", err)
	}
	if len(values) == 0 {
		return webhook.Attempt{}, false, nil
	}
	d, err := decodeDelivery(short, values)
	if err != nil {
		return webhook.Attempt{}, false, err
	}
	return webhook.Attempt{
		DeliveryID: d.ID, SubscriptionID: d.SubscriptionID, EventType: d.EventType, Origin: d.Origin, EventPosition: d.EventPosition,
	}, true, nil
}

// decodeDelivery reads what merge wrote.
func decodeDelivery(short string, values map[string]string) (*Delivery, error) {
	d := &Delivery{ID: longID(short), Attempts: []Attempt{}}
	for name, value := range values {
		var err error
		switch name {
		case "s":
			d.SubscriptionID = lengthen(value)
		case "e":
			d.EventType = value
		case "p":
			d.EventPosition = value
		case "o":
			d.Origin = value
		case "c":
			var ms int64
			if ms, err = strconv.ParseInt(value[min(1, len(value)):], 10, 64); err == nil {
				d.CreatedAt = time.UnixMilli(ms).UTC()
			}
		case "t":
			var rank int
			if rank, err = strconv.Atoi(value); err == nil && rank >= rankWaiting && rank <= rankDelivered {
				d.Status = states[rank]
			}
		default:
			var number int
			if number, err = strconv.Atoi(name); err != nil {
				continue // a newer version's
			}
			var a Attempt
			if a, err = decodeAttempt(number, value); err == nil {
				d.Attempts = append(d.Attempts, a)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("delivery %s as Redis has it: %w", d.ID, err)
		}
	}
	slices.SortFunc(d.Attempts, func(a, b Attempt) int { return a.Number - b.Number })
	if n := len(d.Attempts); n > 0 && d.Status == Retrying {
		d.NextAttemptAt = d.Attempts[n-1].NextAttemptAt
	}
	return d, nil
}
