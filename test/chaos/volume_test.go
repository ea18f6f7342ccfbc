package chaos

import (
	"bytes"
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// volume appends events to the log by itself, more than clients of the API could
// make. It keeps out of partition 0, whose calendars are written by the API: a
// writer goes back to the beginning when it finds that another has written.
type volume struct {
	t       *testing.T
	brokers *address
	topic   string
	client  *kgo.Client
	at      string // where client is connected to
	made    int
	// acknowledged counts the events that are surely in the log.
	acknowledged atomic.Int64
	done         work // hears of each, if it is there
}

// append appends up to n events and waits until that is acknowledged. What is
// not is left alone: nobody knows whether it is in the log, and the same event
// must not be there twice.
func (v *volume) append(ctx context.Context, n int) {
	brokers := v.brokers.get()
	if v.client == nil || v.at != brokers[0] {
		v.close()
		var err error
		v.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ProducerLinger(0),
			kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RecordDeliveryTimeout(15*time.Second))
		if err != nil {
			v.t.Errorf("connect to Kafka: %v", err)
			return
		}
		v.at = brokers[0]
	}
	if !harness.Real() {
		// The only broker may have gone, and its successor is elsewhere. The client
		// would try for ever, for it can't take back what it has sent.
		const enough = 500 * time.Millisecond
		client := v.client
		giveUp := time.AfterFunc(enough, client.Close)
		defer func() {
			if !giveUp.Stop() {
				v.client = nil
			}
		}()
	}
	var records []*kgo.Record
	for range (n + 1) / 2 {
		records = append(records, v.pair()...)
	}
	for _, result := range v.client.ProduceSync(ctx, records...) {
		if result.Err == nil {
			v.acknowledged.Add(1)
			v.done.did()
		}
	}
}

func (v *volume) close() {
	if v.client != nil {
		v.client.Close()
		v.client = nil
	}
}

// pair is an appointment that is made and then changed.
func (v *volume) pair() []*kgo.Record {
	n := v.made
	v.made++
	partition := int32(1 + n%(partitions-1))
	now := time.Now()
	data := events.Data{
		AppointmentID: "appointment:" + uuid.NewString(),
		// The time is for whoever receives the webhook, see madeAt.
		PatientID: madeAtPrefix + strconv.FormatInt(now.UnixMicro(), 10), ProviderID: providerOf(partition, "volume"),
		AppointmentDate: now.AddDate(1, 0, n%3000).Format(time.DateOnly), StartTime: "09:00", EndTime: "09:30",
		AppointmentType: "consultation", Status: "scheduled", Version: 1,
	}
	var records []*kgo.Record
	add := func(kind string) {
		e := events.Event{ID: uuid.NewString(), Type: kind, Time: now.UTC().Truncate(time.Millisecond),
			Actor: "user:volume", Command: uuid.NewString(), Data: data}
		r, err := e.Encode(v.topic)
		if err != nil {
			v.t.Errorf("encode an event: %v", err)
			return
		}
		r.Partition = partition
		records = append(records, r)
	}
	add(events.Created)
	data.Version = 2
	switch n % 3 {
	case 0:
		data.StartTime, data.Changes = "09:15", map[string]string{"start_time": "09:15"}
		add(events.Updated)
	case 1:
		data.Status = "cancelled"
		add(events.Cancelled)
	case 2:
		data.Status = "completed"
		add(events.Completed)
	}
	return records
}

const madeAtPrefix = "patient:at-"

// madeAt returns when the event of a webhook's body was made, if volume made it,
// and in which partition.
func madeAt(body []byte) (time.Time, int32, bool) {
	field := func(name string) []byte {
		_, rest, _ := bytes.Cut(body, []byte(`"`+name+`":"`))
		value, _, _ := bytes.Cut(rest, []byte(`"`))
		return value
	}
	text, ok := bytes.CutPrefix(field("patient_id"), []byte(madeAtPrefix))
	if !ok {
		return time.Time{}, 0, false
	}
	micros, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return time.Time{}, 0, false
	}
	return time.UnixMicro(micros), events.Partition(string(field("provider_id")), partitions), true
}
