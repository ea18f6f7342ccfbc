package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/time/rate"

	"github.com/arsmedicatech/webhooks/pkg/transaction"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

const (
	// maxMade and maxRead bound a transaction, and so what is gone through again
	// after a crash: the deliveries in it, and the records between two marks of
	// progress where few are wanted.
	maxMade = 1000
	maxRead = 20_000
	// longest is how long one replay works before it is the next one's turn.
	longest = 500 * time.Millisecond
	// shortPoll is how long a replay waits for records while others have work.
	shortPoll = 50 * time.Millisecond
	// lookAgain is how soon replays that have to wait are looked at again.
	lookAgain = 50 * time.Millisecond
	sweepEach = time.Hour
)

// session is one time of owning the replays. It ends with the first error.
type session struct {
	*Replayer
	client  *kgo.Client // of the transactions
	backlog *backlog
	jobs    map[string]*job
	swept   time.Time
}

func newSession(r *Replayer, client *kgo.Client) *session {
	return &session{
		Replayer: r, client: client, jobs: map[string]*job{},
		backlog: newBacklog(client, r.cfg.Topics.Backfill(), r.cfg.Readers),
	}
}

func (s *session) close() {
	s.metrics.open.Set(0)
	for _, j := range s.jobs {
		j.close()
	}
}

// run goes round the open replays until ctx ends.
func (s *session) run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := s.cfg.Replays.Changed()
		worked, open, err := s.round(ctx)
		if err != nil {
			return err
		}
		if err := s.sweep(ctx); err != nil {
			return err
		}
		if worked {
			continue
		}
		// Replays that wait for their rate, the senders or the log are looked at
		// soon; where there are none, something has to come first.
		wait := sweepEach
		if open > 0 {
			wait = lookAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// round gives each open replay a turn, and says whether any of them got on.
func (s *session) round(ctx context.Context) (worked bool, open int, err error) {
	replays := s.cfg.Replays.Open()
	s.metrics.open.Set(float64(len(replays)))
	for _, r := range replays {
		if ctx.Err() != nil {
			return worked, open, nil
		}
		j := s.jobs[r.Request.ID]
		if j == nil {
			if j, err = s.newJob(ctx, r); err != nil {
				return worked, open, err
			}
			s.jobs[r.Request.ID] = j
		}
		if j.progress.Ended() {
			continue // the table will know in a moment
		}
		open++
		moved, err := s.turn(ctx, j, r.Cancel != nil)
		if err != nil {
			return worked, open, fmt.Errorf("replay %s: %w", r.Request.ID, err)
		}
		worked = worked || moved
	}
	if len(s.jobs) > len(replays) {
		s.forget(replays)
	}
	return worked, open, s.cfg.step("round")
}

// forget drops what the table knows to be over.
func (s *session) forget(open []Replay) {
	still := map[string]bool{}
	for _, r := range open {
		still[r.Request.ID] = true
	}
	for id, j := range s.jobs {
		if !still[id] {
			j.close()
			delete(s.jobs, id)
		}
	}
}

// job is a replay that is being worked on.
type job struct {
	request  *webhook.ReplayRequest
	progress webhook.ReplayProgress // as committed
	limiter  *rate.Limiter
	reader   *reader
	// pending are records that were read and whose turn has not come.
	pending []*kgo.Record
	// seen holds the events that a recovery has come across: several deliveries of
	// one event may have failed, and it is sent again once.
	seen map[webhook.Position]bool
}

func (s *session) newJob(ctx context.Context, r Replay) (*job, error) {
	j := &job{request: r.Request, limiter: limiterOf(r.Request.Rate)}
	if r.Progress != nil {
		j.progress = *r.Progress
	} else {
		now := s.cfg.Now().UTC()
		j.progress = webhook.ReplayProgress{
			ID: r.Request.ID, State: webhook.ReplayRunning, Positions: r.Request.From, To: r.Request.To, StartedAt: now, UpdatedAt: now,
		}
	}
	j.progress.Request = r.Request
	if r.Cancel != nil || r.Request.Source != webhook.SourceAttempts {
		return j, nil
	}
	j.seen = map[webhook.Position]bool{}
	topic := s.cfg.Topics.Attempts()
	starts, _, err := Bounds(ctx, s.backlog.adm, topic)
	if err != nil {
		return nil, err
	}
	// Of what has expired since it was gone through nothing is remembered; if an
	// event of it is met again, the same delivery is made again.
	passed := Range{topic, slices.Clone(r.Request.From), j.progress.Positions}
	for p, start := range starts[:min(len(starts), len(passed.From))] {
		passed.From[p] = max(passed.From[p], start)
	}
	return j, Scan(ctx, s.cfg.Kafka, func(rec *kgo.Record) bool {
		if c, ok := candidateOf(j.request, rec); ok {
			j.seen[c.at] = true
		}
		return true
	}, passed)
}

func (j *job) close() {
	if j.reader != nil {
		j.reader.close()
	}
}

// limiterOf returns the limiter of a rate, nil for none. It lets twice the least
// that is made at once accumulate, so that the rate is met although it is asked
// now and then only.
func limiterOf(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), 2*leastOf(perSecond))
}

// leastOf returns how many deliveries of a rate are made at once at least: each
// transaction leaves a record of progress, and of those there should not be many.
func leastOf(perSecond int) int { return max(1, perSecond/4) }

// turn does a part of a replay in a transaction, and says whether it got on.
func (s *session) turn(ctx context.Context, j *job, cancelled bool) (bool, error) {
	if cancelled {
		return true, s.commit(ctx, j, part{positions: j.progress.Positions, state: webhook.ReplayCancelled})
	}
	// First, for it costs little: replays that have to wait are asked often.
	most, err := s.allowed(ctx, j)
	if err != nil || most == 0 {
		return false, err
	}
	if err := s.cfg.Subscriptions.Sync(ctx); err != nil {
		return false, err
	}
	sub, ok := s.cfg.Subscriptions.Get(j.request.SubscriptionID)
	if !ok || sub.Subscription.Deleted {
		return true, s.commit(ctx, j, part{positions: j.progress.Positions, state: webhook.ReplayFailed, reason: webhook.ReplaySubscriptionDeleted})
	}
	p, err := s.read(ctx, j, most)
	switch {
	case errors.Is(err, ErrOutOfRange):
		return true, s.commit(ctx, j, part{positions: j.progress.Positions, state: webhook.ReplayFailed, reason: webhook.ReplayOutOfRange})
	case err != nil:
		return false, err
	case !p.moved && p.state == webhook.ReplayRunning:
		return false, nil
	}
	if err := s.render(ctx, j, &p, sub); err != nil {
		return false, err
	}
	if err := s.commit(ctx, j, p); err != nil {
		return false, err
	}
	made := len(p.deliveries)
	if made > 0 {
		s.backlog.added(p.deliveries[made-1])
	}
	if j.limiter != nil {
		j.limiter.AllowN(s.cfg.Now(), made)
	}
	s.metrics.deliveries.Add(float64(made))
	s.metrics.unreadable.Add(float64(p.unreadable))
	return true, nil
}

// allowed says how many deliveries can be made now.
func (s *session) allowed(ctx context.Context, j *job) (int, error) {
	most := maxMade
	if j.limiter != nil {
		tokens := int(j.limiter.TokensAt(s.cfg.Now()))
		if tokens < leastOf(j.request.Rate) {
			return 0, nil
		}
		most = min(most, tokens)
	}
	waiting, err := s.backlog.waiting(ctx, j.request.SubscriptionID)
	if err != nil {
		return 0, err
	}
	return max(0, min(most, s.cfg.Ahead-int(min(waiting, int64(s.cfg.Ahead))))), nil
}

// part is what one transaction does of a replay.
type part struct {
	candidates []candidate
	deliveries []*kgo.Record
	unreadable int64
	positions  []int64 // after it
	moved      bool
	state      string // after it
	reason     string
}

// read goes on until there are as many candidates as can be delivered, it has
// read or taken long enough, or there is nothing more yet.
func (s *session) read(ctx context.Context, j *job, most int) (part, error) {
	p := part{positions: slices.Clone(j.progress.Positions), state: webhook.ReplayRunning}
	if j.reader == nil {
		var err error
		if j.reader, err = newReader(s.cfg.Kafka, j.left(s.cfg.Topics)); err != nil {
			return p, err
		}
	}
	began := time.Now()
	for n := 0; len(p.candidates) < most && n < maxRead && time.Since(began) < longest; {
		if len(j.pending) == 0 {
			if j.reader.done() {
				break
			}
			poll, cancel := context.WithTimeout(ctx, shortPoll)
			records, err := j.reader.poll(poll)
			cancel()
			if err != nil {
				return p, err
			}
			if j.pending = records; len(records) == 0 && !j.reader.done() {
				break
			}
			continue
		}
		rec := j.pending[0]
		j.pending = j.pending[1:]
		n++
		p.moved, p.positions[rec.Partition] = true, rec.Offset+1
		c, ok := candidateOf(j.request, rec)
		if ok && j.seen != nil {
			ok, j.seen[c.at] = !j.seen[c.at], true
		}
		if ok {
			p.candidates = append(p.candidates, c)
		}
	}
	if len(j.pending) == 0 && j.reader.done() {
		p.state, p.positions = webhook.ReplayDone, j.progress.To
	}
	return p, nil
}

// left returns what there is still to be gone through.
func (j *job) left(topics webhook.Topics) Range {
	return Range{rangeOf(topics, j.request).Topic, j.progress.Positions, j.progress.To}
}

// render makes the deliveries of the candidates.
func (s *session) render(ctx context.Context, j *job, p *part, sub webhook.Registered) error {
	var missing []webhook.Position
	for _, c := range p.candidates {
		if c.record == nil {
			missing = append(missing, c.at)
		}
	}
	found, err := Lookup(ctx, s.cfg.Kafka, s.cfg.Topics.Events(), missing)
	if err != nil {
		return err
	}
	origin := webhook.OriginOf(webhook.OriginReplay, j.request.ID)
	for _, c := range p.candidates {
		rec := c.record
		if rec == nil {
			rec = found[c.at]
		}
		if rec == nil || !concerns(j.request, rec) {
			p.unreadable++ // the attempt told of an event that is not there
			continue
		}
		d, err := Deliver(rec, sub, origin)
		if err != nil {
			// The router has made a dead letter of it.
			p.unreadable++
			s.cfg.Log.Debug("unreadable event passed over", "replay", j.request.ID, "position", c.at.String(), "error", err)
			continue
		}
		out, err := d.Encode(s.cfg.Topics.Backfill())
		if err != nil {
			return err
		}
		p.deliveries = append(p.deliveries, out)
	}
	return nil
}

// commit writes deliveries and the progress that they are in one transaction, or
// apart. All deliveries of a replay are in one partition.
func (s *session) commit(ctx context.Context, j *job, p part) error {
	after := j.progress
	after.State, after.Reason, after.Positions = p.state, p.reason, p.positions
	after.Done += int64(len(p.deliveries))
	after.Unreadable += p.unreadable
	after.UpdatedAt = s.cfg.Now().UTC()
	record, err := after.Encode(s.cfg.Topics.Replays())
	if err != nil {
		return err
	}
	records := append(slices.Clip(p.deliveries), record)
	if s.cfg.Apart && len(p.deliveries) > 0 {
		if err := s.transact(ctx, p.deliveries); err != nil {
			return err
		}
		records = records[len(p.deliveries):]
	}
	if err := s.transact(ctx, records); err != nil {
		return err
	}
	j.progress = after
	if after.Ended() {
		s.cfg.Log.Info("replay ended", "replay", j.request.ID, "state", after.State, "reason", after.Reason,
			"deliveries", after.Done, "unreadable", after.Unreadable)
	}
	return nil
}

// transact writes records in one transaction. After an error its outcome is
// unknown; initialising again ends it.
func (s *session) transact(ctx context.Context, records []*kgo.Record) error {
	// Losing the partition does not interrupt a transaction; its time-out does.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := s.cfg.step("begin"); err != nil {
		return err
	}
	if err := s.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := s.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	if err := transaction.Known(ctx, s.client, records...); err != nil {
		return err
	}
	if err := s.cfg.step("produced"); err != nil {
		return err
	}
	if err := s.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	return s.cfg.step("committed")
}

// sweep removes the records of replays that ended long ago.
func (s *session) sweep(ctx context.Context) error {
	now := s.cfg.Now()
	if now.Sub(s.swept) < sweepEach {
		return nil
	}
	s.swept = now
	var tombstones []*kgo.Record
	for _, r := range s.cfg.Replays.ended(now.Add(-s.cfg.Keep)) {
		tombstones = append(tombstones, buried(s.cfg.Topics.Replays(), r.Request.ID)...)
	}
	if len(tombstones) == 0 {
		return nil
	}
	return s.transact(ctx, tombstones)
}

// buried returns the records that remove a replay. The request goes first: a request of which nothing else is known
// would be open again, and made anew, for whoever reads so far.
func buried(topic, id string) []*kgo.Record {
	var tombstones []*kgo.Record
	for _, kind := range []string{webhook.ReplayKindRequest, webhook.ReplayKindProgress, webhook.ReplayKindCancel} {
		tombstones = append(tombstones, &kgo.Record{Topic: topic, Key: webhook.ReplayKey(id, kind)})
	}
	return tombstones
}
