package sender

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// scripted answers Open and Restore as it is told to, with nil when it has been
// told nothing more.
type scripted struct {
	Claims
	mu     sync.Mutex
	script []error
	calls  []string
}

func (s *scripted) answer(call string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	if len(s.script) == 0 {
		return nil
	}
	err := s.script[0]
	s.script = s.script[1:]
	return err
}

func (s *scripted) Open(context.Context) error { return s.answer("open") }

func (s *scripted) Restore(context.Context, dedupe.Load) error { return s.answer("restore") }

// keeping runs a keeper in virtual time.
func keeping(t *testing.T, script []error, test func(t *testing.T, k *keeper, s *scripted)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{script: script}
		k := newKeeper(s, nil, testenv.Log(t))
		if k.ready() {
			t.Error("ready before it has asked")
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { k.run(ctx) })
		defer running.Wait()
		defer cancel()
		test(t, k, s)
	})
}

func TestKeeperOpens(t *testing.T) {
	unavailable, lost := dedupe.ErrUnavailable, dedupe.ErrLost
	for name, c := range map[string]struct {
		script []error
		calls  []string
		after  time.Duration
	}{
		"at once":                     {nil, []string{"open"}, 0},
		"when Redis answers":          {[]error{unavailable, unavailable}, []string{"open", "open", "open"}, 500 * time.Millisecond},
		"when the marks are restored": {[]error{lost}, []string{"open", "restore"}, 0},
		"after a restore that failed": {[]error{lost, errors.New("no Kafka"), lost}, []string{"open", "restore", "open", "restore"}, 250 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			keeping(t, c.script, func(t *testing.T, k *keeper, s *scripted) {
				began := time.Now()
				if err := k.wait(t.Context()); err != nil || !k.ready() {
					t.Errorf("wait: %v, ready %v", err, k.ready())
				}
				if took := time.Since(began); took != c.after || !slices.Equal(s.calls, c.calls) {
					t.Errorf("opened after %s and %v, want %s and %v", took, s.calls, c.after, c.calls)
				}
			})
		})
	}
}

// However many report the same trouble, and whenever, sending stops once and
// goes on once Redis is mended.
func TestKeeperReports(t *testing.T) {
	keeping(t, nil, func(t *testing.T, k *keeper, s *scripted) {
		if err := k.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.script = []error{dedupe.ErrUnavailable, dedupe.ErrUnavailable}
		s.mu.Unlock()
		for range 100 {
			k.report(dedupe.ErrUnavailable)
		}
		if k.ready() {
			t.Error("ready after a report")
		}
		synctest.Wait()
		k.report(dedupe.ErrUnavailable) // a late one, while it is being mended
		began := time.Now()
		if err := k.wait(t.Context()); err != nil || time.Since(began) != 3*retryEvery {
			t.Errorf("wait: %v after %s, want nil after three waits", err, time.Since(began))
		}
		time.Sleep(time.Minute)
		if !k.ready() || len(s.calls) != 4 {
			t.Errorf("ready %v after %v, want true after four calls", k.ready(), s.calls)
		}
	})
}

func TestKeeperWaitEndsWithItsContext(t *testing.T) {
	keeping(t, slices.Repeat([]error{dedupe.ErrUnavailable}, 1000), func(t *testing.T, k *keeper, _ *scripted) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := k.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v, want the context's error", err)
		}
	})
}
