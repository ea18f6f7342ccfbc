package watermillkgo_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// Nothing of a partition gets ahead of a nacked message.
func TestOrderUnderNacks(t *testing.T) {
	const n = 300
	e := newEnv(t, 3)
	e.publish(n, "a", "b", "c", "d", "e")
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{}))
	next := map[int32]int64{}
	nacks := rand.New(rand.NewPCG(1, 2))
	for acked := 0; acked < n; {
		m := e.receive(messages)
		partition, offset := position(t, m)
		if offset != next[partition] {
			t.Fatalf("partition %d: received offset %d, want %d", partition, offset, next[partition])
		}
		if nacks.IntN(3) == 0 {
			m.Nack()
			continue
		}
		m.Ack()
		next[partition]++
		acked++
	}
}

// With several messages in flight, those of one key still keep their order, and
// a key whose messages are nacked holds up no other.
func TestOrderWithinKey(t *testing.T) {
	keys := []string{"stuck", "a", "b", "c"}
	const n = 200
	e := newEnv(t, 1)
	e.publish(n, keys...)
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{MaxInFlight: n}))
	next := map[string]int{"stuck": 0, "a": 1, "b": 2, "c": 3}
	var stuck *message.Message
	nacks := rand.New(rand.NewPCG(1, 2))
	for acked := 0; acked < n; {
		if acked == n/len(keys)*3 {
			// All others are through: its turn has come.
			stuck.Ack()
			next["stuck"] += len(keys)
			acked++
		}
		m := e.receive(messages)
		key, number := m.Metadata["key"], number(t, m)
		if number != next[key] {
			t.Fatalf("key %s: received message %d, want %d", key, number, next[key])
		}
		switch {
		case key == "stuck" && stuck == nil:
			stuck = m
		case nacks.IntN(3) == 0:
			m.Nack()
		default:
			m.Ack()
			next[key] += len(keys)
			acked++
		}
	}
}

func number(t *testing.T, m *message.Message) int {
	t.Helper()
	n, err := strconv.Atoi(string(m.Payload))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// As many messages of a partition are in flight as was asked for.
func TestInFlight(t *testing.T) {
	const n = 10
	e := newEnv(t, 1)
	e.publish(2 * n)
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{MaxInFlight: n}))
	var inFlight []int
	var last *message.Message
	for range n {
		last = e.receive(messages)
		inFlight = append(inFlight, number(t, last))
	}
	slices.Sort(inFlight)
	for i, got := range inFlight {
		if got != i {
			t.Fatalf("in flight are %d, want the first %d", inFlight, n)
		}
	}
	last.Ack()
	if got := number(t, e.receive(messages)); got != n {
		t.Errorf("after one ack came message %d, want %d", got, n)
	}
}

// Every partition goes on although a message of each other is not acked.
func TestPartitionsConcurrently(t *testing.T) {
	const partitions = 5
	e := newEnv(t, partitions)
	publisher := e.publisher(watermillkgo.PublisherConfig{
		ClientOptions: []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())},
		Marshal: func(topic string, m *message.Message) (*kgo.Record, error) {
			p, err := strconv.Atoi(m.Metadata["partition"])
			return &kgo.Record{Topic: topic, Partition: int32(p)}, err
		},
	})
	for p := range partitions {
		for range 2 {
			m := message.NewMessage("", nil)
			m.Metadata["partition"] = fmt.Sprint(p)
			if err := publisher.Publish(e.topic, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{}))
	seen := map[int32]bool{}
	for range partitions {
		partition, offset := position(t, e.receive(messages))
		if offset != 0 || seen[partition] {
			t.Fatalf("received offset %d of partition %d, want the first of each partition", offset, partition)
		}
		seen[partition] = true
	}
}

// bufferHook counts the records that have been taken from the client.
// bufferHook tells where records are that were polled. Those of a partition that
// has just been paused are thrown away, and polled once more later.
type bufferHook struct{ polled chan int64 }

func (h bufferHook) OnFetchRecordUnbuffered(r *kgo.Record, polled bool) {
	if polled {
		h.polled <- r.Offset
	}
}

// What is read ahead is bounded, and nothing is lost or reordered by pausing.
func TestBuffer(t *testing.T) {
	const n, bound = 500, 4 << 10
	e := newEnv(t, 1)
	producer := e.publisher(watermillkgo.PublisherConfig{})
	for i := range n { // one batch each, so that a fetch can be small
		if err := producer.Publish(e.topic, message.NewMessage("", fmt.Append(nil, i))); err != nil {
			t.Fatal(err)
		}
	}
	hook := bufferHook{make(chan int64, 100*n)}
	messages := e.subscribe(e.subscriber(watermillkgo.SubscriberConfig{
		BufferBytes: bound,
		ClientOptions: []kgo.Opt{
			kgo.WithHooks(hook), kgo.FetchMaxPartitionBytes(bound), kgo.FetchMaxBytes(bound),
		},
	}))
	// A record counts more than 256 bytes; in a fetch it takes more than 60. When the
	// bound is met one fetch may have come already and another be under way, and one
	// record is in hand.
	const most = bound/256 + 2*(bound/60) + 1
	var polled int64 // up to there
	for i := range n {
		m := e.receive(messages)
		if got := number(t, m); got != i {
			t.Fatalf("received message %d, want %d", got, i)
		}
		if i == 0 { // who is not slow gets all that there is meanwhile
			others := e.subscribe(e.reader(watermillkgo.SubscriberConfig{}))
			for range n {
				e.receive(others).Ack()
			}
		}
		for len(hook.polled) > 0 {
			polled = max(polled, <-hook.polled+1)
		}
		if ahead := polled - int64(i); ahead > most {
			t.Fatalf("%d records have been read ahead, want %d at most", ahead, most)
		}
		m.Ack()
	}
}
