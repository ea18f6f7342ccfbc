package sender

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// linesPerSecond is how many attempts are logged one by one; the others of a
// second share a line, so that logging never is what deliveries wait for.
const linesPerSecond = 100

// attemptLog logs attempts: those that delivered at INFO, the others at WARN.
type attemptLog struct {
	log *slog.Logger

	mu     sync.Mutex
	began  time.Time // of the second that is being counted
	lines  int
	unsaid map[string]int // by outcome
}

func newAttemptLog(log *slog.Logger) *attemptLog {
	return &attemptLog{log: log, unsaid: map[string]int{}}
}

// levelOf returns the level that an outcome is logged at.
func levelOf(kind string) slog.Level {
	if kind == webhook.Delivered {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// attempt logs an attempt, or counts it.
func (l *attemptLog) attempt(d *webhook.Delivery, o outcome) {
	level := levelOf(o.kind)
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	if !l.line(o.kind) {
		return
	}
	attrs := []slog.Attr{
		slog.String("delivery_id", d.ID), slog.String("subscription_id", d.SubscriptionID),
		slog.String("event", d.EventType), slog.Int("attempt", d.Attempt), slog.String("outcome", o.kind),
		slog.Duration("latency", o.latency.Round(10*time.Microsecond)),
	}
	if o.status != 0 {
		attrs = append(attrs, slog.Int("status", o.status))
	}
	if o.kind != webhook.Delivered {
		attrs = append(attrs, slog.String("error", o.cause()))
	}
	if o.kind == webhook.Failed {
		attrs = append(attrs, slog.Time("next_attempt_at", o.due.UTC()))
	}
	l.log.LogAttrs(context.Background(), level, "delivery attempt", attrs...)
}

// line says whether there is a line left for an attempt; if not it is counted.
func (l *attemptLog) line(kind string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.began) >= time.Second {
		l.sum()
	}
	if l.lines < linesPerSecond {
		l.lines++
		return true
	}
	l.unsaid[kind]++
	return false
}

// flush logs what was counted in a second that is over.
func (l *attemptLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unsaid) > 0 && time.Since(l.began) >= time.Second {
		l.sum()
	}
}

// sum logs what was counted and begins a second; l.mu is held.
func (l *attemptLog) sum() {
	for kind, n := range l.unsaid {
		l.log.LogAttrs(context.Background(), levelOf(kind), "more delivery attempts",
			slog.String("outcome", kind), slog.Int("count", n), slog.Duration("within", time.Since(l.began).Round(time.Millisecond)))
	}
	clear(l.unsaid)
	l.began, l.lines = time.Now(), 0
}
