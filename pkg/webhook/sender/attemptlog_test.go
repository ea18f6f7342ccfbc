package sender

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Under load most attempts of a second share a line; none is left out.
func TestAttemptLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newAttemptLog(slog.New(slog.NewTextHandler(&out, nil)))
		d := &webhook.Delivery{ID: "d", SubscriptionID: "s", EventType: "appointment.created", Attempt: 1}
		for range linesPerSecond + 50 {
			l.attempt(d, outcome{kind: webhook.Delivered, status: 200})
		}
		for range 7 {
			l.attempt(d, outcome{kind: webhook.Failed, status: 500, err: "status"})
		}
		if n := strings.Count(out.String(), `msg="delivery attempt"`); n != linesPerSecond {
			t.Errorf("%d lines in a second, want %d", n, linesPerSecond)
		}
		out.Reset()
		l.flush()
		if out.Len() > 0 {
			t.Errorf("the second is not over: %s", &out)
		}
		time.Sleep(time.Second)
		l.flush()
		for _, want := range []string{"level=INFO msg=\"more delivery attempts\" outcome=delivered count=50", "level=WARN msg=\"more delivery attempts\" outcome=failed count=7"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is not in %q", want, &out)
			}
		}
		out.Reset()
		l.attempt(d, outcome{kind: webhook.Delivered, status: 200})
		if !strings.Contains(out.String(), `msg="delivery attempt"`) {
			t.Errorf("a new second begins without a line: %q", &out)
		}
	})
}
