package dedupe

import (
	"context"
	"math/bits"
	"time"

	"github.com/redis/go-redis/v9"
)

// giveBack deletes a claim, or the lock of a restore, only if the token still holds it. Of all that this package
// asks of Redis only this needs a script, and only seldom: scripts cost a Redis three times as much as the plain commands
// of a claim and its settling.
const giveBack = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0`

// work carries batches until the queue is closed. While a round trip is under way, the next batch gathers by itself.
func (s *Redis) work() {
	for {
		requests := s.queue.take()
		if requests == nil {
			return
		}
		b := &batch{store: s, requests: requests}
		if err := b.ask(); err != nil {
			// Those who queued meanwhile would only run into the same time-outs, one batch after the other.
			answerAll(append(requests, s.queue.drain()...), err)
			continue
		}
		b.answer()
	}
}

// A batch is one pipelined round trip, and a second one if anything is left to tidy up.
//
// The commands of a pipeline are executed in order but not at one moment; those of other clients come in between. The
// order makes that harmless:
//
//   - Settling writes the mark before it deletes the claim, and claiming takes the claim before it reads the mark. So
//     whoever takes the claim of an attempt also sees whether that attempt is settled.
//   - Everybody reads the epoch last. If it is intact after the marks were read, they were complete when they were read.
type batch struct {
	store    *Redis
	requests []*request

	asked   time.Time     // before the round trip: leases are counted from here
	trusted string        // the epoch that this process trusted then
	lost    bool          // the server no longer has that epoch
	writes  []redis.Cmder // of each request: takes the claim, writes the mark or gives the claim back
	marks   []mark        // of each request that is a claim
}

// ask makes the round trip. Its error concerns the whole batch; those of single writes stay in b.writes.
func (b *batch) ask() error {
	s, ctx := b.store, context.Background() // bounded by the client's time-outs
	if epoch := s.epoch.Load(); epoch != nil {
		b.trusted = *epoch
	}
	b.writes = make([]redis.Cmder, len(b.requests))
	b.asked = time.Now()
	pipe := s.client.Pipeline()

	var settled []string // keys of claims
	for i, r := range b.requests {
		switch r.op {
		case opSettle:
			b.writes[i] = s.writeMark(ctx, pipe, r)
			if r.token != "" {
				settled = append(settled, r.claimKey)
			}
		case opRelease:
			b.writes[i] = pipe.Eval(ctx, giveBack, []string{r.claimKey}, r.token)
		}
	}
	if len(settled) > 0 {
		pipe.Del(ctx, settled...) // its error can be ignored: claims end by themselves
	}
	var keys []string // of marks
	for i, r := range b.requests {
		if r.op == opClaim {
			b.writes[i] = pipe.SetNX(ctx, r.claimKey, r.token, s.cfg.Lease)
			keys = append(keys, r.markKey)
		}
	}
	read := pipe.MGet(ctx, append(keys, s.keys.epoch())...)
	var info *redis.StringCmd
	if runOf(b.trusted) != "" {
		info = pipe.Info(ctx, "server")
	}
	_, _ = pipe.Exec(ctx) // each command keeps its own error

	if read.Err() != nil {
		return unavailable(read.Err())
	}
	run := ""
	if info != nil {
		var err error
		if run, err = runID(info); err != nil {
			return err
		}
	}
	values := read.Val()
	epoch, _ := values[len(keys)].(string)
	b.lost = b.trusted == "" || epoch != b.trusted || runOf(epoch) != run
	b.marks = make([]mark, len(b.requests))
	for i, r := range b.requests {
		if r.op == opClaim {
			value, _ := values[0].(string)
			b.marks[i], values = mark(value), values[1:]
		}
	}
	return nil
}

// writeMark settles r's attempt. A delivery's first mark, most often its only one, takes a single command; that
// writes nothing if there is a mark already, and then addMark must follow.
func (s *Redis) writeMark(ctx context.Context, pipe redis.Pipeliner, r *request) redis.Cmder {
	if r.attempt == 1 {
		return pipe.SetNX(ctx, r.markKey, []byte(mark(nil).with(1, r.outcome)), s.cfg.MarkLife)
	}
	return s.addMark(ctx, pipe, r.markKey, r.attempt, r.outcome)
}

// addMark sets the bit of an outcome in a mark that may exist, and lengthens it if need be.
func (s *Redis) addMark(ctx context.Context, pipe redis.Pipeliner, key string, attempt int, o outcome) redis.Cmder {
	// SETBIT counts from the most significant bit of the first byte.
	bit := 8*attempt - 1 - bits.TrailingZeros8(uint8(o))
	cmd := pipe.SetBit(ctx, key, int64(bit), 1)
	pipe.PExpire(ctx, key, s.cfg.MarkLife)
	return cmd
}

// A verdict is the answer to a request, and what remains to be done in Redis before it is given.
type verdict struct {
	claim Claim
	err   error
	then  func(context.Context, redis.Pipeliner) redis.Cmder // may be nil
}

// judge gives the verdict on request i.
func (b *batch) judge(i int) verdict {
	s, r := b.store, b.requests[i]
	if err := b.writes[i].Err(); err != nil {
		return verdict{err: unavailable(err)}
	}
	var v verdict
	if b.lost {
		v.err = ErrLost
	}
	nx, _ := b.writes[i].(*redis.BoolCmd)
	switch r.op {
	case opSettle:
		if nx != nil && !nx.Val() {
			v.then = func(ctx context.Context, pipe redis.Pipeliner) redis.Cmder {
				return s.addMark(ctx, pipe, r.markKey, r.attempt, r.outcome)
			}
		}
	case opClaim:
		if !b.lost {
			v.claim = b.marks[i].judge(r.attempt, nx.Val())
		}
		switch {
		case v.claim.Verdict == Granted:
			v.claim.Token, v.claim.Deadline = r.token, b.asked.Add(s.cfg.Lease)
		case v.claim.Verdict == Busy:
			v.then = func(ctx context.Context, pipe redis.Pipeliner) redis.Cmder { return pipe.PTTL(ctx, r.claimKey) }
		case v.claim.Verdict == Settled && nx.Val():
			v.then = func(ctx context.Context, pipe redis.Pipeliner) redis.Cmder { return pipe.Del(ctx, r.claimKey) }
		case nx.Val(): // taken too early, or on a server that lost its marks
			v.then = r.giveBack
		}
	}
	return v
}

func (r *request) giveBack(ctx context.Context, pipe redis.Pipeliner) redis.Cmder {
	return pipe.Eval(ctx, giveBack, []string{r.claimKey}, r.token)
}

// answer gives every request its verdict, those that need no more first.
func (b *batch) answer() {
	if b.lost {
		b.store.distrust(b.trusted)
	}
	type rest struct {
		verdict
		r   *request
		cmd redis.Cmder
	}
	var left []rest
	for i, r := range b.requests {
		v := b.judge(i)
		if v.then == nil && !r.answer(v.claim, v.err) && v.claim.Verdict == Granted {
			v.then = r.giveBack // its caller has left
		}
		if v.then != nil {
			left = append(left, rest{verdict: v, r: r})
		}
	}
	if len(left) == 0 {
		return
	}
	ctx := context.Background()
	pipe := b.store.client.Pipeline()
	for i := range left {
		left[i].cmd = left[i].then(ctx, pipe)
	}
	_, _ = pipe.Exec(ctx) // each command keeps its own error
	for _, v := range left {
		switch err := v.cmd.Err(); {
		case v.r.op == opSettle && err != nil:
			v.err = unavailable(err)
		case v.claim.Verdict == Busy:
			v.claim.Wait = b.store.cfg.Lease // unless the server tells
			if ttl := v.cmd.(*redis.DurationCmd); err == nil {
				v.claim.Wait = max(ttl.Val(), 0) // negative: it ended meanwhile
			}
		}
		v.r.answer(v.claim, v.err)
	}
}

// distrust forgets an epoch that turned out lost, unless another one has been adopted meanwhile.
func (s *Redis) distrust(epoch string) {
	if current := s.epoch.Load(); current != nil && *current == epoch {
		s.epoch.CompareAndSwap(current, nil)
	}
}
