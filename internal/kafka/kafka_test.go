package kafka_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

func TestConfigValidate(t *testing.T) {
	good := kafka.Config{Brokers: []string{"a:9092", "b:9092"}}
	for name, c := range map[string]struct {
		edit func(*kafka.Config)
		want string // in the error; empty if it is right
	}{
		"plain":         {func(*kafka.Config) {}, ""},
		"TLS":           {func(c *kafka.Config) { c.TLS, c.CAFile, c.CertFile, c.KeyFile = true, "ca", "cert", "key" }, ""},
		"SASL":          {func(c *kafka.Config) { c.SASL, c.User, c.Password = "plain", "u", "p" }, ""},
		"no brokers":    {func(c *kafka.Config) { c.Brokers = nil }, "KAFKA_BROKERS"},
		"empty broker":  {func(c *kafka.Config) { c.Brokers = []string{"a:9092", " "} }, "KAFKA_BROKERS"},
		"URL":           {func(c *kafka.Config) { c.Brokers = []string{"kafka://a:9092"} }, "KAFKA_BROKERS"},
		"no user":       {func(c *kafka.Config) { c.SASL, c.Password = "plain", "hunter2" }, "KAFKA_USER"},
		"no password":   {func(c *kafka.Config) { c.SASL, c.User = "plain", "u" }, "KAFKA_PASSWORD"},
		"no key":        {func(c *kafka.Config) { c.TLS, c.CertFile = true, "cert" }, "KAFKA_KEY_FILE"},
		"no cert":       {func(c *kafka.Config) { c.TLS, c.KeyFile = true, "key" }, "KAFKA_CERT_FILE"},
		"CA, no TLS":    {func(c *kafka.Config) { c.CAFile = "ca" }, "KAFKA_TLS"},
		"cert, not TLS": {func(c *kafka.Config) { c.CertFile, c.KeyFile = "cert", "key" }, "KAFKA_TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := good
			c.edit(&conf)
			err := conf.Check()
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want it to name %s", err, c.want)
			case err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "\n")):
				t.Errorf("not one sentence without a secret: %v", err)
			}
		})
	}
}

func TestOptionsNameTheWrongFile(t *testing.T) {
	dir := t.TempDir()
	noPEM := filepath.Join(dir, "no.pem")
	if err := os.WriteFile(noPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(dir, "absent.pem")
	for name, c := range map[string]struct {
		conf kafka.Config
		want []string
	}{
		"absent CA":   {kafka.Config{CAFile: absent}, []string{"KAFKA_CA_FILE", absent}},
		"no PEM CA":   {kafka.Config{CAFile: noPEM}, []string{"KAFKA_CA_FILE", noPEM}},
		"absent cert": {kafka.Config{CertFile: absent, KeyFile: absent}, []string{"KAFKA_CERT_FILE", absent}},
		"no PEM cert": {kafka.Config{CertFile: noPEM, KeyFile: noPEM}, []string{"KAFKA_CERT_FILE"}},
	} {
		c.conf.Brokers, c.conf.TLS = []string{"localhost:1"}, true
		_, err := c.conf.Options(testenv.Log(t))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want it to name %s", name, err, want)
			}
		}
	}
}

func TestTopicSettingsValidate(t *testing.T) {
	good := kafka.DefaultTopicSettings()
	for name, c := range map[string]struct {
		edit func(*kafka.TopicSettings)
		want string
	}{
		"default":    {func(*kafka.TopicSettings) {}, ""},
		"partitions": {func(s *kafka.TopicSettings) { s.Partitions = 0 }, "PARTITIONS"},
		"deliveries": {func(s *kafka.TopicSettings) { s.DeliveryRetention = time.Minute }, "DELIVERY_RETENTION"},
		"attempts":   {func(s *kafka.TopicSettings) { s.AttemptRetention = s.DeliveryRetention }, "ATTEMPT_RETENTION"},
	} {
		s := good
		c.edit(&s)
		if err := s.Validate(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to name %q", name, err, c.want)
		}
	}
}

// The policies that the design promises, written out.
func TestTopics(t *testing.T) {
	s := kafka.DefaultTopicSettings()
	s.MinInSync = 2
	got := map[string]kafka.Topic{}
	for _, topic := range s.Topics(webhook.Topics{Prefix: "x."}, webhook.Schedule{time.Second, time.Second, 4 * time.Second}) {
		got[topic.Name] = topic
	}
	for name, want := range map[string]struct {
		partitions      int32
		policy, expires string
	}{
		"x.appointments.events":    {12, "delete", "-1"},
		"x.webhooks.subscriptions": {1, "compact", ""},
		"x.webhooks.deliveries":    {12, "delete", "604800000"},
		"x.webhooks.parked":        {12, "delete", "604800000"},
		"x.webhooks.backfill":      {12, "delete", "604800000"},
		"x.webhooks.replays":       {1, "compact", ""},
		"x.webhooks.retry.1s":      {12, "delete", "604800000"},
		"x.webhooks.retry.4s":      {12, "delete", "604800000"},
		"x.webhooks.attempts":      {12, "delete", "2592000000"},
		"x.webhooks.dead-letters":  {12, "delete", "15552000000"},
	} {
		topic := got[name]
		if topic.Partitions != want.partitions || topic.Configs["cleanup.policy"] != want.policy ||
			topic.Configs["retention.ms"] != want.expires || topic.Configs["min.insync.replicas"] != "2" {
			t.Errorf("%s: got %+v", name, topic)
		}
	}
	if len(got) != 10 {
		t.Errorf("%d topics, want 10: one of each delay", len(got))
	}
}

// cluster is a broker to apply topics to, and the wanted topics of a prefix of its own.
type cluster struct {
	t      *testing.T
	ctx    context.Context
	conf   kafka.Config
	adm    *kadm.Client
	prefix webhook.Topics
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	conf := testenv.Kafka(t, nil)
	return &cluster{t, ctx, conf, kadm.NewClient(testenv.Client(t, conf)), webhook.Topics{Prefix: "a" + uuid.NewString()[:8] + "."}}
}

func (c *cluster) wanted(edit func(*kafka.TopicSettings)) []kafka.Topic {
	s := kafka.DefaultTopicSettings()
	s.Partitions = 2
	if edit != nil {
		edit(&s)
	}
	return s.Topics(c.prefix, webhook.Schedule{time.Second})
}

func (c *cluster) apply(topics []kafka.Topic) []kafka.Change {
	c.t.Helper()
	// A client of its own, as each command has: one client's view of the topics
	// may be a quarter of a second old.
	changes, err := kafka.Apply(c.ctx, kadm.NewClient(testenv.Client(c.t, c.conf)), -1, topics)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, topic := range topics {
		c.everywhere("has topic "+topic.Name, func(broker *kgo.Broker) bool { return c.has(broker, topic.Name) })
	}
	return changes
}

// everywhere returns when something holds for every broker: they learn of topics
// and of their configs one after the other.
func (c *cluster) everywhere(what string, holds func(*kgo.Broker) bool) {
	c.t.Helper()
	brokers, err := c.adm.ListBrokers(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	client := testenv.Client(c.t, c.conf)
	for _, broker := range brokers {
		for !holds(client.Broker(int(broker.NodeID))) {
			select {
			case <-c.ctx.Done():
				c.t.Fatalf("it never holds for broker %d that it %s", broker.NodeID, what)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// has says whether a broker knows a topic.
func (c *cluster) has(broker *kgo.Broker, topic string) bool {
	c.t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &topic
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(c.ctx, broker)
	if err != nil {
		c.t.Fatal(err)
	}
	return len(resp.Topics) == 1 && resp.Topics[0].ErrorCode == 0
}

func (c *cluster) config(topic, name string) string {
	c.t.Helper()
	all, err := c.adm.DescribeTopicConfigs(c.ctx, topic)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, config := range all[0].Configs {
		if config.Key == name {
			return config.MaybeValue()
		}
	}
	return ""
}

// set changes a config and returns when every broker knows.
func (c *cluster) set(topic, name, value string) {
	c.t.Helper()
	if _, err := c.adm.AlterTopicConfigs(c.ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic); err != nil {
		c.t.Fatal(err)
	}
	c.everywhere("has "+name+"="+value, func(broker *kgo.Broker) bool { return c.toldBy(broker, topic, name) == value })
}

// toldBy asks one broker for a config.
func (c *cluster) toldBy(broker *kgo.Broker, topic, name string) string {
	c.t.Helper()
	req := kmsg.NewPtrDescribeConfigsRequest()
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName, resource.ConfigNames = kmsg.ConfigResourceTypeTopic, topic, []string{name}
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(c.ctx, broker)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range resp.Resources {
		for _, config := range r.Configs {
			if config.Name == name && config.Value != nil {
				return *config.Value
			}
		}
	}
	return ""
}

func TestApplyCreatesAndCanRunAgain(t *testing.T) {
	c := newCluster(t)
	topics := c.wanted(nil)
	changes := c.apply(topics)
	if len(changes) != len(topics) {
		t.Errorf("%d changes, want %d: %v", len(changes), len(topics), changes)
	}
	for _, change := range changes {
		if change.Refused || !strings.HasPrefix(change.Action, "created with ") {
			t.Errorf("%+v", change)
		}
	}
	// A new client: what one has asked for before it answers from memory.
	found, err := kadm.NewClient(testenv.Client(t, c.conf)).ListTopics(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics {
		if n := len(found[topic.Name].Partitions); n != int(topic.Partitions) {
			t.Errorf("%s has %d partitions, want %d", topic.Name, n, topic.Partitions)
		}
		for name, want := range topic.Configs {
			if got := c.config(topic.Name, name); got != want {
				t.Errorf("%s has %s=%s, want %s", topic.Name, name, got, want)
			}
		}
	}
	if again := c.apply(topics); len(again) != 0 {
		t.Errorf("the second time changes %v", again)
	}
}

func TestApplySetsWhatDiffersAndNeverGrows(t *testing.T) {
	c := newCluster(t)
	c.apply(c.wanted(nil))
	events := c.prefix.Events()
	c.set(events, "retention.ms", "1000")
	changes := c.apply(c.wanted(nil))
	want := []kafka.Change{{Topic: events, Action: "retention.ms set from 1000 to -1"}}
	if !slices.Equal(changes, want) {
		t.Errorf("got %+v, want %+v", changes, want)
	}
	if got := c.config(events, "retention.ms"); got != "-1" {
		t.Errorf("retention.ms is %s", got)
	}

	changes = c.apply(c.wanted(func(s *kafka.TopicSettings) { s.Partitions = 4 }))
	refused := 0
	for _, change := range changes {
		if change.Refused && strings.Contains(change.Action, "has 2 partitions, not 4") {
			refused++
		} else {
			t.Errorf("%+v", change)
		}
	}
	if refused != 7 { // all but the subscriptions and replays, which have one
		t.Errorf("%d topics were refused, want 7", refused)
	}
	found, err := kadm.NewClient(testenv.Client(t, c.conf)).ListTopics(c.ctx, events)
	if err != nil || len(found[events].Partitions) != 2 {
		t.Errorf("the topic has %d partitions, %v", len(found[events].Partitions), err)
	}
}

// said hands over each message that is logged.
type said struct {
	slog.Handler
	messages chan string
}

// Enabled implements slog.Handler.
func (s said) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (s said) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && strings.HasPrefix(r.Message, "waiting") {
		s.messages <- r.Message
	}
	return s.Handler.Handle(ctx, r)
}

func TestWaitForWaitsForTopics(t *testing.T) {
	c := newCluster(t)
	topics := c.wanted(nil)
	messages := make(chan string, 16)
	log := slog.New(said{testenv.Log(t).Handler(), messages})
	done := make(chan error, 1)
	go func() { done <- kafka.WaitFor(c.ctx, testenv.Client(t, c.conf), log, topics) }()
	select {
	case message := <-messages:
		if !strings.Contains(message, "webhooks topics apply") {
			t.Errorf("it says %q", message)
		}
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-c.ctx.Done():
		t.Fatal("it does not say what it waits for")
	}
	c.apply(topics)
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if len(messages) != 0 {
		t.Errorf("it said again: %q", <-messages)
	}
}

func TestWaitForWaitsForKafkaUntilItIsStopped(t *testing.T) {
	conf := kafka.Config{Brokers: []string{"127.0.0.1:1"}} // nobody listens there
	limit, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx, stop := context.WithCancelCause(limit)
	defer stop(nil)
	messages := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		log := slog.New(said{slog.DiscardHandler, messages})
		done <- kafka.WaitFor(ctx, testenv.Client(t, conf), log, kafka.DefaultTopicSettings().Topics(webhook.Topics{}, nil))
	}()
	select {
	case message := <-messages:
		if message != "waiting for Kafka" {
			t.Errorf("it says %q", message)
		}
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	}
	cause := errors.New("stopped by the test")
	stop(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("it ended with %v", err)
	}
}

func TestWaitForRefusesPoliciesThatLoseData(t *testing.T) {
	for name, c := range map[string]struct {
		topic          func(webhook.Topics) string
		config, policy string
		refused        bool
	}{
		"compacted events":         {webhook.Topics.Events, "cleanup.policy", "compact", true},
		"events that expire":       {webhook.Topics.Events, "retention.ms", "1000", true},
		"events that are cut off":  {webhook.Topics.Events, "retention.bytes", "1000", true},
		"subscriptions deleted":    {webhook.Topics.Subscriptions, "cleanup.policy", "delete", true},
		"deliveries compacted":     {webhook.Topics.Deliveries, "cleanup.policy", "compact", true},
		"other delivery retention": {webhook.Topics.Deliveries, "retention.ms", "3600000", false},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t)
			topics := cl.wanted(nil)
			cl.apply(topics)
			topic := c.topic(cl.prefix)
			cl.set(topic, c.config, c.policy)
			err := kafka.WaitFor(cl.ctx, testenv.Client(t, cl.conf), testenv.Log(t), topics)
			var wrong *kafka.PolicyError
			if !c.refused {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !errors.As(err, &wrong) || wrong.Topic != topic || wrong.Config != c.config || wrong.Got != c.policy {
				t.Fatalf("got %v", err)
			}
			if text := err.Error(); !strings.Contains(text, topic) || !strings.Contains(text, "webhooks topics apply") {
				t.Errorf("it does not say what to do: %s", text)
			}
		})
	}
}
