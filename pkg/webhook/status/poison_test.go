package status_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// letters returns the first n dead letters.
func (e *env) letters(n int) []webhook.DeadLetter {
	e.t.Helper()
	letters := make([]webhook.DeadLetter, n)
	for i, r := range testenv.Read(e.t, e.kafka, e.topics.DeadLetters(), n) {
		if err := json.Unmarshal(r.Value, &letters[i]); err != nil {
			e.t.Fatal(err)
		}
	}
	return letters
}

// count returns how many records a topic has.
func (e *env) count(topic string) int64 {
	e.t.Helper()
	ends, err := kadm.NewClient(e.client).ListEndOffsets(e.ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		e.t.Fatal(err)
	}
	n := int64(0)
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

// heard is a log that tells of a line with a text in its error.
type heard struct {
	slog.Handler
	text string
	once chan struct{}
}

func (h *heard) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if strings.Contains(a.Value.String(), h.text) {
			select {
			case h.once <- struct{}{}:
			default:
			}
		}
		return true
	})
	return h.Handler.Handle(ctx, r)
}

func (h *heard) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &heard{h.Handler.WithAttrs(attrs), h.text, h.once}
}

// What can't be projected becomes a dead letter, once, and costs no record beside
// it its status; nor does it come again after a restart.
func TestPoison(t *testing.T) {
	for name, c := range map[string]struct {
		// spoil makes a record that can't be projected.
		spoil func(*env) *kgo.Record
		says  string
	}{
		"an attempt that is no JSON": {
			func(e *env) *kgo.Record {
				return &kgo.Record{Topic: e.topics.Attempts(), Key: []byte("sub"), Value: []byte(`{"outcome":`)}
			},
			"can't be read",
		},
		"an attempt at nothing": {
			func(e *env) *kgo.Record {
				return e.made(newSub()).attempt(1, webhook.Delivered, func(a *webhook.Attempt) { a.DeliveryID = "17" })
			},
			"not a UUID",
		},
		"a delivery that Redis has something else of": {
			func(e *env) *kgo.Record {
				m := e.made(newSub())
				id := uuid.MustParse(m.id)
				if err := e.db.Set(e.ctx, e.prefix+"d:"+string(id[:]), "no hash", 0).Err(); err != nil {
					e.t.Fatal(err)
				}
				return m.record()
			},
			"WRONGTYPE",
		},
		"a delivery whose state makes no sense": {
			func(e *env) *kgo.Record {
				m := e.made(newSub())
				id := uuid.MustParse(m.id)
				if err := e.db.HSet(e.ctx, e.prefix+"d:"+string(id[:]), "t", "no rank").Err(); err != nil {
					e.t.Fatal(err)
				}
				return m.record()
			},
			"ERR",
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			sub := newSub()
			bad := c.spoil(e)
			bad.Key = []byte(sub) // what is of one key is in one partition
			// One batch, with the bad one in the middle of it, and another as the last.
			var good []*kgo.Record
			for range 10 {
				m := e.made(sub)
				good = append(good, m.record(), m.attempt(1, webhook.Failed), m.attempt(2, webhook.Delivered))
			}
			twin := *bad
			e.produce(append(append(good[:15:15], bad), append(good[15:], &twin)...)...)

			p := e.projection()
			stop := e.run(p)
			e.complete(p, sub, 10)
			letters := e.letters(2)
			for _, l := range letters {
				if l.Reason != webhook.ReasonUnreadable || l.Source.Topic != bad.Topic || !strings.Contains(l.Error, c.says) || string(l.Record.Value) != string(bad.Value) {
					t.Errorf("dead letter %+v", l)
				}
			}
			if letters[0].Source == letters[1].Source {
				t.Errorf("%+v became a dead letter twice", letters[0].Source)
			}
			stop()
			again := e.projection()
			e.run(again)
			e.fill(1, sub)
			e.complete(again, sub, 11)
			if n := e.count(e.topics.DeadLetters()); n != 2 {
				t.Errorf("%d dead letters, want 2", n)
			}
		})
	}
}

// A delivery that can't be read is a dead letter of the sender's already.
func TestUnreadableDelivery(t *testing.T) {
	e := newEnv(t)
	sub := newSub()
	e.produce(&kgo.Record{Topic: e.topics.Deliveries(), Key: []byte(sub), Value: []byte("no delivery")})
	e.fill(1, sub)
	p := e.projection()
	e.run(p)
	e.complete(p, sub, 1)
	if n := e.count(e.topics.DeadLetters()); n != 0 {
		t.Errorf("%d dead letters, want none", n)
	}
}

// A position that can't be written is no record's fault: nothing becomes a dead
// letter of it, and projecting goes on when it can.
func TestPositionRefused(t *testing.T) {
	e := newEnv(t)
	refused := &heard{Handler: testenv.Log(t).Handler(), text: "WRONGTYPE", once: make(chan struct{}, 1)}
	p := e.projection(func(c *status.Config) { c.Log = slog.New(refused) })
	m := e.made(newSub())
	r := m.record()
	e.produce(r)
	key := p.PositionKey(r.Topic, r.Partition)
	if err := e.db.HSet(e.ctx, key, "no", "position").Err(); err != nil {
		t.Fatal(err)
	}
	e.run(p)
	select {
	case <-refused.once:
	case <-e.ctx.Done():
		t.Fatal("nothing was logged of it")
	}
	if err := e.db.Del(e.ctx, key).Err(); err != nil {
		t.Fatal(err)
	}
	e.delivery(p, m.id, func(*status.Delivery) bool { return true })
	if n := e.count(e.topics.DeadLetters()); n != 0 {
		t.Errorf("%d dead letters, want none", n)
	}
}
