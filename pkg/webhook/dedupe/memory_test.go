package dedupe_test

import (
	"errors"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe/dedupetest"
)

func TestMemory(t *testing.T) {
	dedupetest.Run(t, func(*testing.T) dedupetest.Subject {
		clock := time.Now()
		m := &dedupe.Memory{Now: func() time.Time { return clock }, Lease: dedupetest.Lease}
		return dedupetest.Subject{
			Store:     m,
			EndLeases: func() { clock = clock.Add(dedupetest.Lease) },
			Lose:      m.Lose,
		}
	})
}

func TestMemoryForgetsOldMarks(t *testing.T) {
	clock := time.Now()
	m := &dedupe.Memory{Now: func() time.Time { return clock }, MarkLife: time.Hour}
	err := m.SettleAll(t.Context(), dedupetest.One("a", 1, "", dedupe.Delivered))
	clock = clock.Add(time.Hour)
	c, claimErr := m.Claim(t.Context(), "a", 1)
	if err := errors.Join(err, claimErr); err != nil || c.Verdict != dedupe.Granted {
		t.Errorf("got %+v, %v; want the claim granted", c, err)
	}
}
