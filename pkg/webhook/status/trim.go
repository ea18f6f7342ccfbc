package status

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// trimEvery is how often the index of a subscription that is written to is
	// rid of what is too old.
	trimEvery = time.Minute
	// trimShare is the share of PerSubscription that may come on top of it before
	// it is trimmed: one in so many.
	trimShare = 64
)

// trim takes what is too old, and the oldest of what is too much, out of an
// index. Too old deliveries have gone by themselves.
//
// KEYS: the index. ARGV: the prefix of all other keys, the first time that is
// kept, how many are, how long the index is kept if nothing more is written (ms).
var trim = redis.NewScript(`
redis.call('zremrangebylex', KEYS[1], '-', '(' .. ARGV[2])
local over = redis.call('zcard', KEYS[1]) - tonumber(ARGV[3])
if over > 0 then
	local gone = redis.call('zpopmin', KEYS[1], over)
	for i = 1, #gone, 2 do
		local id = string.sub(gone[i], 14)
		redis.call('del', ARGV[1] .. 'd:' .. id, ARGV[1] .. 'a:' .. id)
	end
end
redis.call('pexpire', KEYS[1], ARGV[4])
return over
`)

// trimmer bounds the indexes of subscriptions that are written to; the others
// expire.
type trimmer struct {
	p    *Projection
	mu   sync.Mutex
	subs map[string]*trimmed
}

type trimmed struct {
	at    time.Time // of the last time
	since int       // entries written since
}

func newTrimmer(p *Projection) *trimmer { return &trimmer{p: p, subs: map[string]*trimmed{}} }

// wrote tells of entries that were written, and trims those subscriptions whose
// turn it is. Its errors need no answer: the next time covers it.
func (t *trimmer) wrote(ctx context.Context, entries []entry) {
	for _, sub := range t.due(entries) {
		t.trim(ctx, sub)
	}
}

func (t *trimmer) due(entries []entry) []string {
	var due []string
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range entries {
		sub := entries[i].subscription
		last := t.subs[sub]
		if last == nil {
			last = &trimmed{}
			t.subs[sub] = last
		}
		last.since++
		if now.Sub(last.at) >= trimEvery || last.since > t.p.cfg.PerSubscription/trimShare {
			*last = trimmed{at: now}
			due = append(due, sub)
		}
	}
	return due
}

func (t *trimmer) trim(ctx context.Context, sub string) {
	cfg := t.p.cfg
	oldest, err := millis(cfg.Now().Add(-cfg.Retention))
	if err != nil {
		return // a clock that is that wrong trims nothing
	}
	for rank := rankWaiting; rank <= rankDelivered; rank++ {
		if err := trim.Run(ctx, t.p.redis, []string{t.p.indexKey(rank, sub)},
			cfg.Prefix, oldest, cfg.PerSubscription, cfg.Retention.Milliseconds()).Err(); err != nil {
			cfg.Log.Debug("an index of deliveries could not be trimmed", "error", err)
			return
		}
	}
}
