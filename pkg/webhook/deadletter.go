package webhook

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Encode returns the dead letter as a record for the topic.
func (d *DeadLetter) Encode(topic string) (*kgo.Record, error) {
	value, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode dead letter of %s[%d]@%d: %w", d.Source.Topic, d.Source.Partition, d.Source.Offset, err)
	}
	r := &kgo.Record{Topic: topic, Value: value}
	switch {
	case d.Delivery != nil:
		r.Key = []byte(d.Delivery.SubscriptionID)
	case d.Record != nil:
		r.Key = d.Record.Key
	}
	return r, nil
}

// SourceOf returns where a record stands.
func SourceOf(r *kgo.Record) Source { return Source{r.Topic, r.Partition, r.Offset} }

// maxLetter bounds a dead letter, in bytes of its record. A broker takes a little
// more by default.
const maxLetter = 900 << 10

// Unreadable makes the dead letter of a record that could not be read. Of one
// that is too large for that, only the position is kept.
func Unreadable(topic string, r *kgo.Record, cause error, now time.Time) (*kgo.Record, error) {
	d := DeadLetter{
		Reason: ReasonUnreadable, Error: cause.Error(), At: now.UTC(), Source: SourceOf(r),
		Record: &RawRecord{Key: r.Key, Value: r.Value, Headers: map[string][]byte{}},
	}
	for _, h := range r.Headers {
		d.Record.Headers[h.Key] = h.Value
	}
	letter, err := d.Encode(topic)
	if err == nil && len(letter.Key)+len(letter.Value) > maxLetter {
		d.Record = &RawRecord{}
		return d.Encode(topic)
	}
	return letter, err
}
