package harness

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/schemas"
)

// Client returns a Kafka client that is closed with the test.
func (d *Deployment) Client(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(strings.Split(d.Brokers, ",")...), kgo.FetchMaxWait(100 * time.Millisecond)}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// Produce appends a record to a topic, whose name is given without the prefix.
func (d *Deployment) Produce(tb testing.TB, topic string, key, value []byte) {
	tb.Helper()
	client := d.Client(tb)
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: d.Prefix + topic, Key: key, Value: value}).FirstErr(); err != nil {
		tb.Fatalf("produce to %s: %v", topic, err)
	}
}

// AwaitRecords returns the committed records of a topic once there are n.
func (d *Deployment) AwaitRecords(tb testing.TB, topic string, n int) []*kgo.Record {
	tb.Helper()
	client := d.Client(tb, kgo.ConsumeTopics(d.Prefix+topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			tb.Fatalf("read %s: want %d records, have %d: %v", topic, n, len(records), err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// Topic returns all committed records of a topic as it is now.
func (d *Deployment) Topic(tb testing.TB, topic string) []*kgo.Record {
	tb.Helper()
	var records []*kgo.Record
	d.Read(tb, topic, startLimit, func(r *kgo.Record) { records = append(records, r) })
	return records
}

// Read calls each for all committed records of a topic as it is now, those of a
// partition in order, within the limit.
func (d *Deployment) Read(tb testing.TB, topic string, limit time.Duration, each func(*kgo.Record)) {
	tb.Helper()
	client := d.Client(tb, kgo.ConsumeTopics(d.Prefix+topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	defer client.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	defer cancel()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, d.Prefix+topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		tb.Fatalf("find the end of %s: %v", topic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			tb.Fatalf("read %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, wanted := left[r.Partition]
			if !wanted {
				return
			}
			// The end may lie within a transaction that was aborted since: of that, only
			// the marker behind the end is shown.
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
			if r.Offset < end && !r.Attrs.IsControl() {
				each(r)
			}
		})
	}
}

// Drained returns when the routers and then the senders have committed past
// every record that is for them.
func (d *Deployment) Drained(tb testing.TB) {
	tb.Helper()
	d.Routed(tb, startLimit)
	d.Sent(tb, startLimit)
}

// Routed returns when the routers have committed past every event.
func (d *Deployment) Routed(tb testing.TB, limit time.Duration) {
	tb.Helper()
	d.passed(tb, "webhook-router", "appointments.events", limit)
}

// Sent returns when the senders have committed past every delivery that is there
// now and its retries.
func (d *Deployment) Sent(tb testing.TB, limit time.Duration) {
	tb.Helper()
	topics := []string{"webhooks.deliveries", "webhooks.backfill", "webhooks.parked"}
	for delay := range strings.SplitSeq(d.Schedule, ",") {
		topics = append(topics, "webhooks.retry."+delay, "webhooks.parked")
	}
	for _, topic := range topics {
		d.passed(tb, "webhook-sender", topic, limit)
	}
}

// passed returns when a group has committed past the last record of each
// partition of a topic. The log's end won't do: it lies behind markers that
// nobody commits.
func (d *Deployment) passed(tb testing.TB, group, topic string, limit time.Duration) {
	tb.Helper()
	last := map[int32]int64{}
	d.Read(tb, topic, limit, func(r *kgo.Record) { last[r.Partition] = max(last[r.Partition], r.Offset) })
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	defer cancel()
	client := d.Client(tb)
	defer client.Close()
	adm := kadm.NewClient(client)
	for {
		committed, err := adm.FetchOffsets(ctx, d.Prefix+group)
		behind := ""
		for p, offset := range last {
			if o, ok := committed.Lookup(d.Prefix+topic, p); !ok || o.At <= offset {
				behind = fmt.Sprintf("%s[%d] is committed to %d, its last record is at %d", topic, p, o.At, offset)
			}
		}
		if err == nil && behind == "" {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("%s is not drained: %s, error %v", group, behind, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// CheckSchemas validates every record of every topic.
func (d *Deployment) CheckSchemas(tb testing.TB) {
	tb.Helper()
	client := d.Client(tb)
	topics, err := kadm.NewClient(client).ListTopics(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	checked := 0
	for _, name := range topics.Names() {
		topic, ours := strings.CutPrefix(name, d.Prefix)
		if !ours || strings.HasPrefix(topic, "__") {
			continue
		}
		for _, r := range d.Topic(tb, topic) {
			if r.Value == nil {
				continue // a tombstone
			}
			if err := schemas.Validate(topic, r.Value); err != nil {
				tb.Errorf("%s[%d]@%d is not as its schema says: %v", topic, r.Partition, r.Offset, err)
			}
			checked++
		}
	}
	if checked == 0 {
		tb.Error("no record was found to check")
	}
}

// StartAgain starts every process that was killed or stopped.
func (d *Deployment) StartAgain() {
	d.tb.Helper()
	for _, p := range d.Processes {
		p.start()
	}
	for _, p := range d.Processes {
		p.awaitReady()
	}
	if dev := d.Processes["dev"]; dev != nil {
		d.Brokers = dev.Said("Kafka is at ")
	}
}
