package replay_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/follow"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

var errKilled = errors.New("killed")

// Killed at any step, replayers continue without a double or a gap.
func TestKilledBetweenSteps(t *testing.T) {
	w := newWorld(t)
	w.events(7000)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	w.ask(r)
	for _, victim := range []string{"initialised", "begin", "produced", "committed"} {
		for nth := 1; nth <= 2; nth++ {
			n := 0
			err := w.replayer(func(step string) error {
				if step == victim {
					if n++; n == nth || step == "initialised" {
						return errKilled
					}
				}
				return nil
			}).Serve(w.context())
			if !errors.Is(err, errKilled) {
				t.Fatalf("killed at %s %d it ended with %v", victim, nth, err)
			}
		}
	}
	if got, _ := w.replays.Get(r.ID); got.State() != webhook.ReplayRunning {
		t.Fatalf("the replay is %s: the kills came too late", got.State())
	}
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, w.log)
}

// Where a commit may be left half done, no progress is ever there without the
// deliveries that it counts, and who is killed between the two makes them again.
func TestApart(t *testing.T) {
	w := newWorld(t)
	w.events(1500)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	w.ask(r)
	apart := w.config()
	apart.Apart = true
	killed, err := replay.New(apart.WithStep(func(step string) error {
		if step == "committed" {
			return errKilled
		}
		return nil
	}))
	w.check(err)
	if err := killed.Serve(w.context()); !errors.Is(err, errKilled) {
		t.Fatalf("it ended with %v", err)
	}
	first := w.all(w.topics.Backfill())
	w.check(w.replays.Sync(w.context()))
	if got, _ := w.replays.Get(r.ID); len(first) == 0 || got.Progress != nil {
		t.Fatalf("the first commit has %d deliveries and the progress %+v", len(first), got.Progress)
	}
	second, err := replay.New(apart)
	w.check(err)
	w.background(second.Run)
	if got := w.awaitState(r.ID, webhook.ReplayDone); got.Progress.Done != int64(len(w.log)) {
		t.Errorf("%d deliveries are counted, want %d", got.Progress.Done, len(w.log))
	}
	times := map[string]int{}
	for _, rec := range w.all(w.topics.Backfill()) {
		d, err := webhook.ParseDelivery(rec)
		w.check(err)
		times[d.ID]++
	}
	for _, rec := range first {
		d, err := webhook.ParseDelivery(rec)
		w.check(err)
		times[d.ID]--
	}
	for _, e := range w.log {
		if n := times[webhook.DeliveryID(e.ID, r.SubscriptionID, "replay:"+r.ID)]; n != 1 {
			t.Errorf("%d deliveries of the event at %s besides the first commit's", n, e.at)
		}
	}
}

// Of two replayers that both think the replays theirs, the first is fenced: what
// it still writes is never committed.
func TestTwoReplayers(t *testing.T) {
	for _, stalled := range []string{"begin", "produced"} {
		t.Run(stalled, func(t *testing.T) {
			w := newWorld(t)
			w.events(2500)
			w.subscribe("webhook_subscription:1")
			r := w.request("webhook_subscription:1")
			w.ask(r)
			asleep, wake := make(chan struct{}), make(chan struct{})
			once := sync.Once{}
			commits := 0
			ended := make(chan error, 1)
			go func() {
				ended <- w.replayer(func(step string) error {
					switch {
					case step == "committed":
						commits++
					case step == stalled && commits == 1:
						once.Do(func() { close(asleep); <-wake })
					}
					return nil
				}).Serve(w.context())
			}()
			<-asleep
			w.background(w.replayer(nil).Run)
			w.awaitState(r.ID, webhook.ReplayDone)
			close(wake)
			if err := <-ended; err == nil {
				t.Error("the first replayer was not fenced")
			}
			w.made(r, w.log)
		})
	}
}

// A new replayer fences the old one, and only then reads how far the replay is:
// in the other order, or without reading up to the end, it would do again what
// the old one commits in between.
func TestFencesThenReads(t *testing.T) {
	w := newWorld(t)
	w.events(2500)
	w.subscribe("webhook_subscription:1")
	r := w.request("webhook_subscription:1")
	w.ask(r)
	table, stop := w.table()
	asleep, wake, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	begun := 0
	go func() {
		ended <- w.replayer(func(step string) error {
			switch {
			case step == "begin":
				if begun++; begun == 2 {
					close(asleep)
					<-wake
				}
			case step == "committed" && begun == 2:
				return errKilled
			}
			return nil
		}).Serve(w.context())
	}()
	<-asleep
	w.check(table.Sync(w.context()))
	took := sync.OnceFunc(func() {
		// The first goes on, and nothing tells the second of it any more.
		close(wake)
		<-ended
		stop()
	})
	conf := w.config()
	conf.Replays = table
	second, err := replay.New(conf.WithStep(func(step string) error {
		if step == "initialised" || step == "synced" {
			took()
		}
		if step == "round" {
			return errKilled
		}
		return nil
	}))
	w.check(err)
	if err := second.Serve(w.context()); !errors.Is(err, follow.ErrStopped) {
		t.Errorf("the second replayer ended with %v", err)
	}
	w.background(w.replayer(nil).Run)
	w.awaitState(r.ID, webhook.ReplayDone)
	w.made(r, w.log)
}

// The group gives the replays to another process when one leaves.
func TestTakesOver(t *testing.T) {
	w := newWorld(t)
	w.events(300)
	w.subscribe("webhook_subscription:1")
	first, second := w.request("webhook_subscription:1"), w.request("webhook_subscription:1")
	stop := w.background(w.replayer(nil).Run)
	w.ask(first)
	w.awaitState(first.ID, webhook.ReplayDone)
	w.background(w.replayer(nil).Run)
	stop()
	w.ask(second)
	w.awaitState(second.ID, webhook.ReplayDone)
	w.made(first, w.log)
	w.made(second, w.log)
}
