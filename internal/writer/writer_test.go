package writer_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/internal/writer"
)

func surroundings(t *testing.T) where {
	t.Helper()
	conf := testenv.Kafka(t, nil)
	return where{testenv.Options(t, conf), conf.Topics().Events(), conf.TopicPrefix}
}

// Two processes believe that they own the same partition, as when one has been
// stopped past its session and goes on. The broker refuses the former one; when
// it begins again it knows what the other did.
func TestRefusesTheFormerOwner(t *testing.T) {
	w := surroundings(t)
	a := start(t, w, "a", "a", hooks{})
	a.owns()
	a.mustPut("1")
	b := start(t, w, "b", "b", hooks{})
	b.owns()
	b.mustPut("2", "1")

	if _, err := a.put(deadline(t), "stale"); !errors.Is(err, writer.ErrUnknown) {
		t.Errorf("the former owner's write: %v, want ErrUnknown", err)
	}
	b.mustHold("1", "2")
	a.mustPut("3", "1", "2")
	if _, err := b.put(deadline(t), "stale"); !errors.Is(err, writer.ErrUnknown) {
		t.Errorf("now b is the former owner; its write: %v, want ErrUnknown", err)
	}
	a.mustHold("1", "2", "3")
}

// An answer that writes nothing never meets the broker that would refuse the
// former owner. It must not be given either: it rests on a state that is gone.
func TestRefusesTheFormerOwnersRefusals(t *testing.T) {
	refusal := errors.New("refused")
	for _, c := range []struct {
		name   string
		answer error
	}{{"refusal", refusal}, {"nothing to do", nil}} {
		t.Run(c.name, func(t *testing.T) {
			w := surroundings(t)
			a := start(t, w, "a", "a", hooks{})
			a.owns()
			a.mustPut("1")
			decide := func(p *process) (on []string, err error) {
				err = p.group.Submit(deadline(t), 0, func(_ context.Context, b *batch) ([]*kgo.Record, error) {
					on = b.state()
					return nil, c.answer
				})
				return on, err
			}
			if on, err := decide(a); !errors.Is(err, c.answer) || !slices.Equal(on, []string{"1"}) {
				t.Fatalf("the owner's answer: %v on %v, want %v", err, on, c.answer)
			}
			b := start(t, w, "b", "b", hooks{})
			b.owns()
			b.mustPut("2", "1")
			if _, err := decide(a); !errors.Is(err, writer.ErrNotOwner) {
				t.Errorf("the former owner's answer: %v, want ErrNotOwner", err)
			}
			// It has begun again, and knows.
			if on, err := decide(a); !errors.Is(err, c.answer) || !slices.Equal(on, []string{"1", "2"}) {
				t.Errorf("after it has begun again: %v on %v, want %v", err, on, c.answer)
			}
			b.mustHold("1", "2")
		})
	}
}

// Initialise, sample the end, await, serve: from the moment at which the end is
// sampled, the former owner can't commit what the new one would not know.
func TestFencesBeforeItLooks(t *testing.T) {
	for _, when := range []string{"before the end is sampled", "after the end is sampled", "while it is awaited"} {
		t.Run(when, func(t *testing.T) {
			w := surroundings(t)
			a := start(t, w, "a", "a", hooks{})
			a.owns()
			a.mustPut("1")

			tried := false
			try := func() {
				if tried {
					return
				}
				tried = true
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				if _, err := a.put(ctx, "too late"); !errors.Is(err, writer.ErrUnknown) {
					t.Errorf("the former owner's write: %v, want ErrUnknown", err)
				}
				a.stop() // else it would begin again and fence the new owner
			}
			var h hooks
			switch when {
			case "before the end is sampled":
				h.beforeEnd = try
			case "after the end is sampled":
				h.afterEnd = try
			default:
				h.beforeAwait = try
			}
			b := start(t, w, "b", "b", h)
			b.owns()
			b.mustPut("2", "1")
			b.mustHold("1", "2")
		})
	}
}

// A foreign record on the partition is nothing that the writer knows: it
// commits nothing behind it before it has read it.
func TestCommitsNothingBehindWhatItDoesNotKnow(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	w := where{testenv.Options(t, conf), conf.Topics().Events(), conf.TopicPrefix}
	a := start(t, w, "a", "a", hooks{})
	a.owns()
	a.mustPut("1")
	foreign := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	r := &kgo.Record{Topic: w.topic, Partition: 0, Value: []byte("foreign")}
	if err := foreign.ProduceSync(deadline(t), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.put(deadline(t), "2"); !errors.Is(err, writer.ErrUnknown) {
		t.Errorf("the first write behind a foreign record: %v, want ErrUnknown", err)
	}
	a.mustPut("3", "1", "foreign")
	a.mustHold("1", "foreign", "3")
}

// The members of one group share the partitions; when one goes, the other knows
// all that it did.
func TestHandsOver(t *testing.T) {
	w := surroundings(t)
	a := start(t, w, "g", "a", hooks{})
	a.owns()
	a.mustPut("1")
	b := start(t, w, "g", "b", hooks{})
	a.stop()
	b.owns()
	b.mustPut("2", "1")
	b.mustHold("1", "2")
	if at, err := b.group.Owner(deadline(t), 0, time.Minute); at != "b" || err != nil {
		t.Errorf("the owner is %q (%v), want b", at, err)
	}
	if _, err := a.put(deadline(t), "gone"); !errors.Is(err, writer.ErrNotOwner) {
		t.Errorf("a process that has ended says %v, want ErrNotOwner", err)
	}
}
