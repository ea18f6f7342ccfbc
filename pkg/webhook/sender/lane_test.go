package sender

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
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
