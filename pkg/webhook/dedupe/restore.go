package dedupe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lockLife is how long a restore holds its lock without renewing it: how long the others wait if it dies.
	lockLife = 10 * time.Second
	// lockPoll is how often those who wait look whether they still must.
	lockPoll = 100 * time.Millisecond
	// progressEvery is how often a restore logs how far it has come.
	progressEvery = 5 * time.Second
	// chunkSize is the number of marks that a restore writes in a round trip.
	chunkSize = 1000
)

// renewLock and openEpoch do their work only while the lock is the token's own.
const (
	renewLock = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0`
	openEpoch = `if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[2])
return redis.call('del', KEYS[1])`
)

// errLockLost is why a load is cancelled whose lock somebody else may hold by now.
var errLockLost = errors.New("dedupe: lost the lock of the restore")

// Load feeds every settled attempt it knows to yield, in any order, and returns yield's error if there is one. The
// sender's reads webhooks.attempts from its beginning to an end that it samples after it has been called.
type Load = func(ctx context.Context, yield func(id string, attempt int, outcome string) error) error

// Restore makes the store usable after ErrLost: it calls load, writes the marks, waits until the claims that were lost
// too have ended, and opens a new epoch. Of all processes one does this, holding a lock, and the others wait
// for it; if it dies they begin anew. A store that is not lost is opened, and load is not called.
//
// Marks are only added to, so senders may go on settling meanwhile. Errors: load's, ErrUnavailable, ErrClosed, or that
// of ctx. After an error Restore can be called again.
func (s *Redis) Restore(ctx context.Context, load Load) error {
	for {
		if err := s.Open(ctx); !errors.Is(err, ErrLost) {
			return err
		}
		token := s.newToken()
		locked, err := s.client.SetNX(ctx, s.keys.lock(), token, lockLife).Result()
		if err != nil {
			return unavailable(err)
		}
		if !locked {
			if err := pause(ctx, lockPoll); err != nil {
				return err
			}
			continue
		}
		// When this was not enough the loop finds out and begins again: the lock was lost, or Redis was, once more.
		if err := s.restore(ctx, token, load); err != nil && !errors.Is(err, errLockLost) {
			return err
		}
	}
}

// restore does what Restore says while holding the lock, and gives it up.
func (s *Redis) restore(ctx context.Context, token string, load Load) error {
	// After a success the lock is gone already. On a shutdown the others should not have to wait for it to expire.
	defer s.client.Eval(context.WithoutCancel(ctx), giveBack, []string{s.keys.lock()}, token)

	epoch, run, err := s.look(ctx)
	if err != nil {
		return err
	}
	if epoch != "" && runOf(epoch) == run {
		return nil // somebody else finished between our look and our lock
	}
	began := time.Now() // every claim was granted before
	log := s.cfg.Logger.With("component", "dedupe")
	if s.cfg.Sole { // its Redis may well begin empty each time
		log.InfoContext(ctx, "rebuilding marks from the attempts")
	} else {
		log.WarnContext(ctx, "redis has lost its marks: rebuilding them from the attempts; sending waits meanwhile")
	}

	writer := markWriter{store: s, log: log, logged: began, marks: make(map[string]mark, chunkSize)}
	err = s.holdLock(ctx, token, func(ctx context.Context) error {
		if err := load(ctx, func(id string, attempt int, outcome string) error {
			return writer.add(ctx, id, attempt, outcome)
		}); err != nil {
			return fmt.Errorf("dedupe: load marks: %w", err)
		}
		if err := writer.flush(ctx); err != nil || s.cfg.Sole {
			return err
		}
		return s.pause(ctx, s.cfg.Lease-time.Since(began))
	})
	if err != nil {
		return err
	}
	opened, err := s.client.Eval(ctx, openEpoch, []string{s.keys.lock(), s.keys.epoch()}, token, newEpoch(run)).Int()
	if err != nil {
		return unavailable(err)
	}
	if opened == 0 {
		return errLockLost
	}
	log.InfoContext(ctx, "marks are restored", "attempts", writer.count, "seconds", time.Since(began).Seconds())
	return nil
}

// holdLock runs work while renewing the lock, and cancels it with errLockLost once the lock is somebody else's.
func (s *Redis) holdLock(ctx context.Context, token string, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() {
		tick := time.NewTicker(lockLife / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			held, err := s.client.Eval(ctx, renewLock, []string{s.keys.lock()}, token, lockLife.Milliseconds()).Int()
			if err == nil && held == 0 { // after an error the next tick may still be in time, and openEpoch looks again
				cancel(errLockLost)
				return
			}
		}
	})
	err := work(ctx)
	cancel(nil)
	renewing.Wait()
	if context.Cause(ctx) == errLockLost { //nolint:errorlint // set above, never wrapped
		return errLockLost
	}
	return err
}

// A markWriter gathers settled attempts and writes them in chunks.
type markWriter struct {
	store  *Redis
	log    *slog.Logger
	marks  map[string]mark // by delivery
	count  int             // attempts so far
	logged time.Time
}

func (w *markWriter) add(ctx context.Context, id string, attempt int, outcome string) error {
	if err := check(ctx, id, attempt); err != nil {
		return err
	}
	o, err := parseOutcome(outcome)
	if err != nil {
		return err
	}
	w.marks[id] = w.marks[id].with(attempt, o)
	w.count++
	if len(w.marks) < chunkSize {
		return nil
	}
	return w.flush(ctx)
}

// flush writes the gathered marks: whole where there is none yet, bit by bit where there is.
func (w *markWriter) flush(ctx context.Context) error {
	s := w.store
	pipe := s.client.Pipeline()
	created := make(map[string]*redis.BoolCmd, len(w.marks))
	for id, m := range w.marks {
		created[id] = pipe.SetNX(ctx, s.keys.mark(id), []byte(m), s.cfg.MarkLife)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return unavailable(err)
	}
	for id, m := range w.marks {
		if created[id].Val() {
			continue
		}
		for i, bits := range m {
			for o := bitFailed; o <= bitDelivered; o <<= 1 {
				if bits&byte(o) != 0 {
					s.addMark(ctx, pipe, s.keys.mark(id), i+1, o)
				}
			}
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return unavailable(err)
	}
	clear(w.marks)
	if time.Since(w.logged) >= progressEvery {
		w.logged = time.Now()
		w.log.InfoContext(ctx, "restoring marks", "attempts", w.count)
	}
	return nil
}

// pause waits for d, or returns the error of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
