package appointment

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// asked tells when something was asked for of the log.
type asked struct {
	once  sync.Once
	fetch chan struct{}
}

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (a *asked) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	const fetch = 1
	if key == fetch {
		a.once.Do(func() { close(a.fetch) })
	}
}

// A read that the log does not answer holds up nobody past their time, and no read
// of another partition at all.
func TestSlowReadHoldsUpNobody(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e := events.Event{ID: uuid.NewString(), Type: events.Created, Time: time.Now().UTC(), Data: events.Data{
		AppointmentID: "appointment:1", PatientID: "patient:1", ProviderID: "provider:1", AppointmentDate: "2030-05-06",
		StartTime: "10:00", EndTime: "10:30", AppointmentType: DefaultType, Status: string(Scheduled), Version: 1,
	}}
	r, err := e.Encode(topic)
	if err != nil {
		t.Fatal(err)
	}
	full := events.Partition(e.Data.ProviderID, testenv.Partitions)
	empty := (full + 1) % testenv.Partitions
	client := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	r.Partition = full
	if err := client.ProduceSync(deadline, r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	seen := &asked{fetch: make(chan struct{})}
	h := newHistory(append(testenv.Options(t, conf), kgo.WithHooks(seen)), topic, testenv.Partitions)
	defer h.close()

	// What nobody has written yet is not answered.
	slow, stop := context.WithCancel(deadline)
	ended := make(chan error, 1)
	go func() {
		_, err := h.read(slow, empty, []int64{0})
		ended <- err
	}()
	select {
	case <-seen.fetch:
	case <-deadline.Done():
		t.Fatal("the log was never asked")
	}
	over, end := context.WithCancel(deadline)
	end()
	if _, err := h.read(over, empty, []int64{0}); !errors.Is(err, context.Canceled) || slow.Err() != nil {
		t.Errorf("a read of the same partition whose time is over: %v, and of the slow one %v", err, slow.Err())
	}
	if found, err := h.read(deadline, full, []int64{0}); err != nil || len(found) != 1 || found[0].ID != e.ID || slow.Err() != nil {
		t.Errorf("a read of another partition: %v, %v, and of the slow one %v", found, err, slow.Err())
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow read ended with %v", err)
	}
}
