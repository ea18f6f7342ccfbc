package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
)

// write appends records to a partition, at noon; with a transaction, in one that
// ends like that.
func write(t *testing.T, conf kafka.Config, topic string, partition int32, n int, ends ...kgo.TransactionEndTry) {
	t.Helper()
	opts := []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}
	for range ends {
		opts = append(opts, kgo.TransactionalID(conf.TopicPrefix+t.Name()))
	}
	client := testenv.Client(t, conf, opts...)
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: topic, Partition: partition, Value: []byte("v"), Timestamp: noon}
	}
	for _, end := range ends {
		testenv.Transaction(t, client, end, records...)
	}
	if len(ends) == 0 {
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// commit commits offsets by partition.
func commit(t *testing.T, conf kafka.Config, group, topic string, offsets ...int64) {
	t.Helper()
	set := kadm.Offsets{}
	for partition, offset := range offsets {
		set.AddOffset(topic, int32(partition), offset, -1)
	}
	if err := kadm.NewClient(testenv.Client(t, conf)).CommitAllOffsets(t.Context(), conf.TopicPrefix+group, set); err != nil {
		t.Fatal(err)
	}
}

// showLag returns the table without the prefix, and the columns' padding with it.
func showLag(t *testing.T, conf kafka.Config) string {
	t.Helper()
	s := newTestScreen(false)
	if err := (&lagCmd{Kafka: conf}).run(t.Context(), s.screen); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.ReplaceAll(s.out.String(), conf.TopicPrefix, ""), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}

func TestLag(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topics := conf.Topics()
	write(t, conf, topics.Events(), 0, 3)
	write(t, conf, topics.Events(), 2, 1)
	commit(t, conf, "webhook-router", topics.Events(), 1, 0, 1)
	// Ends of transactions follow the last delivery, and that of an aborted one.
	write(t, conf, topics.Deliveries(), 0, 2, kgo.TryCommit)
	write(t, conf, topics.Deliveries(), 0, 2, kgo.TryAbort)
	write(t, conf, topics.Deliveries(), 1, 1, kgo.TryCommit)
	commit(t, conf, "webhook-sender", topics.Deliveries(), 2, 0, 0)

	want := `GROUP STATE MEMBERS TOPIC LAG OLDEST COMMITTED END NOTE
webhook-router Empty 0 appointments.events 2 1m00s 0/1 0/3 nobody reads it
webhook-sender Empty 0 webhooks.deliveries 2 1m00s 1/0 1/2 nobody reads it
status None 0 - - - - - has committed nothing: does it run?
disabling None 0 - - - - - has committed nothing: does it run?
`
	if got := showLag(t, conf); got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}

	commit(t, conf, "webhook-sender", topics.Deliveries(), 2, 1, 0)
	if got := showLag(t, conf); !strings.Contains(got, "webhooks.deliveries 0 - 0/2 0/6 nobody") {
		t.Errorf("behind the last delivery are ends of transactions alone, and it shows\n%s", got)
	}
}

// The table as a whole.
func TestLagTable(t *testing.T) {
	at := noon
	groups := []groupLag{
		{Group: "webhook-router", State: "Stable", Members: 2, Topics: []topicLag{{
			Topic: "appointments.events", Members: 2, Partitions: []partitionLag{{Partition: 0, Committed: 10, End: 10}, {Partition: 1, Committed: 7, End: 8}},
		}}},
		{Group: "webhook-sender", State: "Empty", Error: "some trouble", Topics: []topicLag{
			{
				Topic: "webhooks.deliveries", Lag: 1300, OldestAt: &at, Deleted: 12, Open: 3,
				Partitions: []partitionLag{{Partition: 0, Committed: 1, End: 2, Lag: 1}, {Partition: 1, Committed: 1, End: 1300, Lag: 1299}},
			},
			{Topic: "webhooks.parked", Members: 1, Partitions: []partitionLag{{Committed: -1, Error: "no leader"}}},
		}},
		{Group: "disabling", State: stateNone},
	}
	s := newTestScreen(false)
	if err := s.table(lagHeadings, lagRows(groups, noon.Add(5*time.Hour))); err != nil {
		t.Fatal(err)
	}
	same(t, s.out, `
GROUP           STATE   MEMBERS  TOPIC                LAG   OLDEST  COMMITTED  END     NOTE
webhook-router  Stable  2        appointments.events  0     -       0/10       0/10    -
webhook-sender  Empty   0        webhooks.deliveries  1300  5h00m   1/1        1/1300  some trouble; nobody reads it; 12 DELETED before they were read; 3 behind an open transaction
webhook-sender  Empty   1        webhooks.parked      0     -       -          0/0     some trouble; partition 0: no leader
disabling       None    0        -                    -     -       -          -       has committed nothing: does it run?
`)
}

// What an open transaction holds back, and what retention took, is told apart
// from what simply waits.
func TestLagTells(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Deliveries()
	write(t, conf, topic, 0, 4)
	commit(t, conf, "webhook-sender", topic, 1, 0, 0)
	deleted := kadm.Offsets{}
	deleted.AddOffset(topic, 0, 3, -1)
	if _, err := kadm.NewClient(testenv.Client(t, conf)).DeleteRecords(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}
	open := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(conf.TopicPrefix+"open"))
	testenv.Begin(t, open, &kgo.Record{Topic: topic, Partition: 1, Value: []byte("v")})
	want := "webhook-sender Empty 0 webhooks.deliveries 4 1m00s 0/1 0/4 nobody reads it; 2 DELETED before they were read; 1 behind an open transaction\n"
	if got := showLag(t, conf); !strings.Contains(got, want) {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
}

func TestLagMembers(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Deliveries()
	write(t, conf, topic, 1, 2)
	member := testenv.Client(t, conf, kgo.ConsumerGroup(conf.TopicPrefix+"webhook-sender"), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	fetches := member.PollFetches(t.Context())
	if err := fetches.Err0(); err != nil {
		t.Fatal(err)
	}
	if err := member.CommitRecords(t.Context(), fetches.Records()[0]); err != nil {
		t.Fatal(err)
	}
	if got, want := showLag(t, conf), "webhook-sender Stable 1 webhooks.deliveries 1 1m00s 1/1 1/2 -\n"; !strings.Contains(got, want) {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
	s := newTestScreen(true)
	if err := (&lagCmd{Kafka: conf}).run(t.Context(), s.screen); err != nil {
		t.Fatal(err)
	}
	var document struct{ Groups []groupLag }
	if err := json.Unmarshal([]byte(s.out.String()), &document); err != nil {
		t.Fatal(err)
	}
	sender := document.Groups[1]
	if len(sender.Topics) != 1 || sender.Members != 1 {
		t.Fatalf("the document is\n%s", s.out)
	}
	one := sender.Topics[0].Partitions[1]
	if one.Lag != 1 || one.Committed != 1 || one.End != 2 || one.OldestAt == nil || !one.OldestAt.Equal(noon) {
		t.Errorf("the partition is %+v", one)
	}
}
