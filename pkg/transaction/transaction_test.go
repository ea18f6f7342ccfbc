package transaction_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/transaction"
)

func TestKnown(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Deliveries()
	client := testenv.Client(t, conf, kgo.TransactionalID(conf.TopicPrefix+"known"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	// A partition that nothing was produced to stays unknown.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := &kgo.Record{Topic: topic, Partition: 1}
	if err := transaction.Known(ctx, client, never); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), topic+"[1]") {
		t.Errorf("%v, want that it was cancelled while it waited for %s[1]", err, topic)
	}
	records := []*kgo.Record{{Topic: topic, Partition: 0}, {Topic: topic, Partition: 2}, {Topic: conf.Topics().Attempts()}}
	testenv.Begin(t, client, records...) // calls it
	for _, r := range records {
		if leader, _, err := client.PartitionLeader(r.Topic, r.Partition); err != nil || leader < 0 {
			t.Errorf("%s[%d] has leader %d, %v", r.Topic, r.Partition, leader, err)
		}
	}
	if err := client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}
