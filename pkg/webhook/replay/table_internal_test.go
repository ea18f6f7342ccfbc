package replay

import (
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// However far somebody has read the records that remove a replay, it is not open
// again, and as long as its cancellation may be asked for it is known.
func TestBuriedIsNeverOpen(t *testing.T) {
	const topic = "replays"
	table := &Table{byID: map[string]Replay{}, changed: make(chan struct{})}
	table.cfg.Log = slog.New(slog.DiscardHandler)
	id := "0b0f6f0e-7c1e-4a52-9d37-1f1e6a0c5b11"
	table.byID[id] = Replay{
		Request:  &webhook.ReplayRequest{ID: id},
		Progress: &webhook.ReplayProgress{ID: id, State: webhook.ReplayCancelled, UpdatedAt: time.Unix(1, 0)},
		Cancel:   &webhook.ReplayCancel{ID: id},
	}
	if ended := table.ended(time.Now()); len(ended) != 1 {
		t.Fatalf("%d replays have ended, want 1", len(ended))
	}
	for _, rec := range buried(topic, id) {
		if !table.Cancelled(id) {
			t.Error("it is no longer cancelled, and something of it is there")
		}
		table.apply(0, []*kgo.Record{rec})
		if open := table.Open(); len(open) > 0 {
			t.Errorf("it is open again after %s", rec.Key)
		}
	}
	if len(table.byID) > 0 {
		t.Errorf("%d replays are left", len(table.byID))
	}
}
