package sender

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// keeper keeps deliveries from being sent while Redis can't say what has been
// sent: until it answers, and until its marks are rebuilt if they were lost.
type keeper struct {
	claims Claims
	load   dedupe.Load
	log    *slog.Logger
	wake   chan error // why it was reported

	mu   sync.Mutex
	open chan struct{} // closed while claims can be made
}

func newKeeper(claims Claims, load dedupe.Load, log *slog.Logger) *keeper {
	return &keeper{claims: claims, load: load, log: log, wake: make(chan error, 1), open: make(chan struct{})}
}

// wait returns when claims can be made.
func (k *keeper) wait(ctx context.Context) error {
	k.mu.Lock()
	open := k.open
	k.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready says whether claims can be made.
func (k *keeper) ready() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.open:
		return true
	default:
		return false
	}
}

// report tells of a failed call and stops all sending until it is mended.
func (k *keeper) report(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.open:
		k.open = make(chan struct{})
	default: // stopped already
	}
	select {
	case k.wake <- err:
	default:
	}
}

func (k *keeper) resume() {
	k.mu.Lock()
	defer k.mu.Unlock()
	// What was reported meanwhile is mended too; if not, it will be met again.
	select {
	case <-k.wake:
	default:
	}
	select {
	case <-k.open: // never stopped: the report was of an older trouble
	default:
		close(k.open)
	}
}

// retryEvery is how often Redis is tried while it does not answer.
const retryEvery = 250 * time.Millisecond

// run mends until ctx ends.
func (k *keeper) run(ctx context.Context) {
	for k.mend(ctx) {
		select {
		case err := <-k.wake:
			k.log.Error("sending pauses: Redis is needed to send nothing twice", "error", err)
			// A Redis that can be read but takes no writes looks mended at once.
			if !sleep(ctx, retryEvery) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// mend returns true when claims can be made, false when ctx has ended.
func (k *keeper) mend(ctx context.Context) bool {
	said := false
	for {
		err := k.claims.Open(ctx)
		if errors.Is(err, dedupe.ErrLost) {
			err = k.claims.Restore(ctx, k.load)
		}
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			k.resume()
			if said {
				k.log.Info("sending goes on")
			}
			return true
		case !said:
			k.log.Warn("waiting for Redis", "error", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retryEvery):
		}
	}
}
