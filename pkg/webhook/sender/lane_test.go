package sender

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// A lane is kept as long as something that was drawn is open, though nothing waits
// and nothing is under way: commits would pass it.
func TestLaneOfWhatIsBeingRecorded(t *testing.T) {
	ln := &lane{sh: &shard{}}
	if ln.used() {
		t.Fatal("an empty lane is used")
	}
	r := &kgo.Record{Offset: 3}
	for c := range ln.backlogs {
		tracker := checkpoint.New()
		ln.backlogs[c].tracker = tracker
		tracker.Begin(r)
		if !ln.used() {
			t.Errorf("of class %d one is open, and the lane is not used", c)
		}
		tracker.Settle(r.Offset)
		if ln.used() {
			t.Errorf("of class %d nothing is open, and the lane is used", c)
		}
	}
}

// A lane is blocked by its endpoint if it has as many requests as it may, and most of
// them are there: else they wait for Redis or Kafka.
func TestBlockedByTheEndpoint(t *testing.T) {
	const most = 8
	now := time.Now()
	for _, one := range []struct {
		running, asking int
		blocked         bool
	}{
		{0, 0, false}, {most - 1, most - 1, false}, {most, 0, false}, {most, most / 2, false}, {most, most - 2, true}, {most, most, true},
	} {
		ln := &lane{pace: newPace(most, 100), running: one.running}
		for range one.asking {
			ln.wire.asked()
		}
		if got := ln.blocked(live, now); got != one.blocked {
			t.Errorf("blocked is %v with %d of %d requests under way, %d of them at the endpoint", got, one.running, most, one.asking)
		}
	}
}

// An endpoint is silent if it has a request and has answered nothing for as long as
// one of its deliveries waits.
func TestSilentEndpoint(t *testing.T) {
	came := time.Now()
	then, now := came.Add(time.Second), came.Add(2*time.Second)
	ln := &lane{pace: newPace(8, 100), running: 2, fresh: []*job{{since: came, d: &webhook.Delivery{}}}}
	if ln.silent(then, now) {
		t.Error("nothing is asked of it, and it is silent")
	}
	ln.wire.asked()
	ln.wire.asked()
	if !ln.silent(then, now) {
		t.Error("it has answered nothing, and is not silent")
	}
	if ln.silent(came, now) {
		t.Error("nothing has waited for long, and it is silent")
	}
	ln.wire.ended(then)
	if ln.silent(then, now) {
		t.Error("it has answered since, and is silent")
	}
}

// What is drawn shares no memory with the fetch that it came with.
func TestClone(t *testing.T) {
	fetched := []byte("keyvalueheader")
	r := &kgo.Record{Key: fetched[:3:3], Value: fetched[3:8], Headers: []kgo.RecordHeader{{Key: "h", Value: fetched[8:]}}, Offset: 5}
	own := clone(r)
	clear(fetched)
	if string(own.Key) != "key" || string(own.Value) != "value" || string(own.Headers[0].Value) != "header" || own.Headers[0].Key != "h" || own.Offset != 5 {
		t.Errorf("it is %+v", own)
	}
	if own := clone(&kgo.Record{}); own.Key != nil || own.Value != nil {
		t.Errorf("what has nothing is %+v", own)
	}
}

// A fetch that comes when its partition has gone leaves its shard in the drawer's
// line: the partition may be back, with lanes that have asked.
func TestFeedOfAPartitionThatIsGone(t *testing.T) {
	s := &Sender{work: t.Context()}
	sh := newShard(s, 0)
	p := newPartition(s, sh, topicPartition{})
	p.stopIntake()
	sh.drawing = true
	if !sh.feed(p, nil, 0, 1) || !sh.drawing {
		t.Error("the shard left the drawer's line")
	}
}
