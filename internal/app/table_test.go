package app

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// A service whose table of subscriptions can't be followed any further ends, and
// says so: what it would do from then on would be wrong.
func TestEndsWithoutItsTable(t *testing.T) {
	for name, program := range map[string]func(*All) run.Program{
		"router": func(a *All) run.Program { return a.Router },
		"sender": func(a *All) run.Program { return a.Sender },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := kfake.NewCluster(kfake.NumBrokers(1))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			conf := kafka.Config{Brokers: c.ListenAddrs()}
			client := testenv.Client(t, conf)
			if _, err := kafka.Apply(t.Context(), kadm.NewClient(client), 1, kafka.DefaultTopicSettings().Topics(conf.Topics(), webhook.DefaultSchedule())); err != nil {
				t.Fatal(err)
			}
			value, err := json.Marshal(webhook.Subscription{
				ID: "webhook_subscription:1", EventName: "appointment.*", TargetURL: "http://localhost/", Version: 1, Rules: []webhook.Rule{{EventName: "appointment.*"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: conf.Topics().Subscriptions(), Key: []byte("webhook_subscription:1"), Value: value}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			embedded := EmbeddedConfig{
				Kafka: conf, RedisURL: "redis://" + testenv.Redis(t).Addr, InstanceID: "i", SealingKeys: seal.NewKey("k"),
			}
			if err := errors.Join(kong.ApplyDefaults(&embedded.Retries), kong.ApplyDefaults(&embedded.Sending)); err != nil {
				t.Fatal(err)
			}
			one := program(NewEmbedded(embedded))
			env := &run.Env{Log: testenv.Log(t), Metrics: prometheus.NewRegistry(), Health: &run.Health{}}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- one.Run(ctx, env) }()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for len(env.Health.Problems()) > 0 {
				select {
				case err := <-ended:
					t.Fatalf("ended before it was ready: %v", err)
				case <-tick.C:
				}
			}
			truncate(c, conf.Topics().Subscriptions())
			err = <-ended
			if _, ok := errors.AsType[*kgo.ErrDataLoss](err); !ok || ctx.Err() != nil {
				t.Errorf("ended with %v (told to: %v), want the loss of data", err, ctx.Err())
			}
		})
	}
}

// truncate makes the brokers say that the log of a topic ends before what has
// been read of it, as after an election that should not have been.
func truncate(c *kfake.Cluster, topic string) {
	id := c.TopicInfo(topic).TopicID
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		for _, t := range req.(*kmsg.FetchRequest).Topics {
			if t.TopicID != id && t.Topic != topic {
				continue
			}
			resp := req.ResponseKind().(*kmsg.FetchResponse)
			of := kmsg.NewFetchResponseTopic()
			of.Topic, of.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				part := kmsg.NewFetchResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, kerr.FencedLeaderEpoch.Code
				of.Partitions = append(of.Partitions, part)
			}
			resp.Topics = append(resp.Topics, of)
			return resp, nil, true
		}
		return nil, nil, false
	})
	c.ControlKey(int16(kmsg.OffsetForLeaderEpoch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
		for _, t := range req.(*kmsg.OffsetForLeaderEpochRequest).Topics {
			of := kmsg.NewOffsetForLeaderEpochResponseTopic()
			of.Topic = t.Topic
			for _, p := range t.Partitions {
				part := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
				part.Partition, part.LeaderEpoch, part.EndOffset = p.Partition, 0, 0
				of.Partitions = append(of.Partitions, part)
			}
			resp.Topics = append(resp.Topics, of)
		}
		return resp, nil, true
	})
}
