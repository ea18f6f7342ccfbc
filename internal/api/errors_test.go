package api

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/arsmedicatech/webhooks/internal/redelivery"
)

// Who has no turn in time is told so, and not that the log is away.
func TestBusyIsSaid(t *testing.T) {
	p := explain(fmt.Errorf("count: %w: %w", redelivery.ErrBusy, context.DeadlineExceeded))
	if p.status != http.StatusServiceUnavailable || p.code != "too_busy" || p.wait == 0 {
		t.Errorf("%d %s, again after %v; want 503 too_busy, and again after a moment", p.status, p.code, p.wait)
	}
}
