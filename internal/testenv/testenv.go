// Package testenv gives tests a Kafka and a Redis: the real ones that
// KAFKA_BROKERS and REDIS_URL name, or else embedded ones.
package testenv

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/pkg/transaction"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Partitions is how many partitions the keyed topics of tests have.
const Partitions = 3

// Kafka returns a broker to test on, with a topic prefix that is the test's own
// and all topics of the design.
func Kafka(t testing.TB, schedule webhook.Schedule) kafka.Config {
	t.Helper()
	conf := kafka.Config{TopicPrefix: "t" + uuid.NewString()[:8] + "."}
	if brokers := os.Getenv("KAFKA_BROKERS"); brokers != "" {
		conf.Brokers = strings.Split(brokers, ",")
	} else {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatalf("start the embedded broker: %v", err)
		}
		t.Cleanup(cluster.Close)
		conf.Brokers = cluster.ListenAddrs()
	}
	settings := kafka.DefaultTopicSettings()
	settings.Partitions = Partitions
	client := Client(t, conf)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	topics := settings.Topics(conf.Topics(), schedule)
	if _, err := kafka.Apply(ctx, kadm.NewClient(client), -1, topics); err != nil {
		t.Fatalf("create topics: %v", err)
	}
	awaitTopics(ctx, t, client, topics)
	return conf
}

// awaitTopics returns when every broker knows the topics, which have been created:
// until then what a test asks for depends on whom it asks.
func awaitTopics(ctx context.Context, t testing.TB, client *kgo.Client, topics []kafka.Topic) {
	t.Helper()
	brokers, err := kadm.NewClient(client).ListBrokers(ctx)
	if err != nil {
		t.Fatalf("list the brokers: %v", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, id := range brokers.NodeIDs() {
		for !knows(ctx, client.Broker(int(id)), topics) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("broker %d does not know all topics", id)
			}
		}
	}
}

func knows(ctx context.Context, broker *kgo.Broker, topics []kafka.Topic) bool {
	ask := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		of := kmsg.NewMetadataRequestTopic()
		of.Topic = new(topic.Name)
		ask.Topics = append(ask.Topics, of)
	}
	answer, err := broker.Request(ctx, ask)
	if err != nil {
		return false
	}
	for _, topic := range answer.(*kmsg.MetadataResponse).Topics {
		if topic.ErrorCode != 0 || slices.ContainsFunc(topic.Partitions, func(p kmsg.MetadataResponseTopicPartition) bool { return p.ErrorCode != 0 }) {
			return false
		}
	}
	return true
}

// Options returns the connection's options.
func Options(t testing.TB, conf kafka.Config) []kgo.Opt {
	t.Helper()
	opts, err := conf.Options(Log(t))
	if err != nil {
		t.Fatalf("options: %v", err)
	}
	return opts
}

// Client returns a client that is closed with the test.
func Client(t testing.TB, conf kafka.Config, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(append(Options(t, conf), kgo.ProducerLinger(0)), more...)...)
	if err != nil {
		t.Fatalf("connect to Kafka: %v", err)
	}
	t.Cleanup(client.Close)
	return client
}

// Redis returns the options of a Redis to test on. A real one is shared: tests
// keep to keys under a prefix of their own.
func Redis(t testing.TB) *redis.Options {
	t.Helper()
	if url := os.Getenv("REDIS_URL"); url != "" {
		opts, err := redis.ParseURL(url)
		if err != nil {
			t.Fatalf("REDIS_URL: %v", err)
		}
		return opts
	}
	return &redis.Options{Addr: miniredis.RunT(t).Addr()}
}

// Log returns a logger that writes to the test's log.
func Log(t testing.TB) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// Read returns the first n committed records of a topic in the order in which
// they are found.
func Read(t testing.TB, conf kafka.Config, topic string, n int) []*kgo.Record {
	t.Helper()
	client := Client(t, conf, kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("read %d records of %s, have %d: %v", n, topic, len(records), err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

// Begin begins a transaction of the client with records. The test ends it.
func Begin(t testing.TB, client *kgo.Client, records ...*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := client.BeginTransaction(); err != nil {
		t.Fatalf("begin a transaction: %v", err)
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatalf("produce in a transaction: %v", err)
	}
	if err := transaction.Known(ctx, client, records...); err != nil {
		t.Fatal(err)
	}
}

// Transaction appends records in a transaction of the client, and ends it.
func Transaction(t testing.TB, client *kgo.Client, end kgo.TransactionEndTry, records ...*kgo.Record) {
	t.Helper()
	Begin(t, client, records...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := client.EndTransaction(ctx, end); err != nil {
		t.Fatalf("end a transaction: %v", err)
	}
}
