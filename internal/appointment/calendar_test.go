package appointment

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// A key is remembered for its time, counted from the event, and then forgotten,
// the oldest first; those that came later stay.
func TestForgetsKeys(t *testing.T) {
	s := &Service{cfg: Config{Topic: "log"}}
	now := time.Now()
	var log []*kgo.Record
	ages := []time.Duration{keyLife + time.Hour, keyLife + time.Minute, keyLife - time.Minute, 0}
	for i, age := range ages {
		create := valid()
		create.ID += string(rune('a' + i))
		create.ProviderID += string(rune('a' + i))
		facts, err := DecideCreate(create, free)
		if err != nil {
			t.Fatal(err)
		}
		e := events.Event{ID: "e", Type: events.Created, Time: now.Add(-age), Idempotency: string(rune('a'+i)) + ".body", Data: facts[0].data}
		r, err := e.Encode(s.cfg.Topic)
		if err != nil {
			t.Fatal(err)
		}
		r.Offset = int64(i)
		log = append(log, r)
	}
	c := newCalendars()
	c.fold(log, now)
	for i, age := range ages {
		key := string(rune('a' + i))
		k, known := c.begin().key(key)
		if known != (age <= keyLife) {
			t.Errorf("a key of age %s is known: %v", age, known)
		}
		if known && (!k.alive(k.at.Add(keyLife)) || k.alive(k.at.Add(keyLife+1))) {
			t.Error("a key lives for another time than it is said to")
		}
	}
	if len(c.byID) != len(ages) {
		t.Errorf("%d appointments are known, want %d", len(c.byID), len(ages))
	}
}
