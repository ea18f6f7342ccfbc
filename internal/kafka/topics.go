package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// TopicSettings is how topics are to be created.
type TopicSettings struct {
	Partitions        int32         `name:"partitions" env:"PARTITIONS" default:"12" help:"Partitions of each keyed topic. Choose well: they can't be grown later without splitting calendars."`
	Replication       int16         `name:"replication" env:"REPLICATION" default:"-1" help:"Replication factor; -1 takes the brokers' default."`
	MinInSync         int           `name:"min-insync-replicas" env:"MIN_INSYNC_REPLICAS" default:"0" help:"min.insync.replicas of each topic; 0 leaves the brokers' default."`
	DeliveryRetention time.Duration `name:"delivery-retention" env:"DELIVERY_RETENTION" default:"168h" help:"How long deliveries and retries are kept. Longer than any failing endpoint is waited for."`
	AttemptRetention  time.Duration `name:"attempt-retention" env:"ATTEMPT_RETENTION" default:"720h" help:"How long attempts are kept; they outlive every delivery."`
	DeadRetention     time.Duration `name:"dead-letter-retention" env:"DEAD_LETTER_RETENTION" default:"4320h" help:"How long dead letters are kept."`
}

// Validate says what is wrong with the settings, in one sentence.
func (s TopicSettings) Validate() error {
	switch {
	case s.Partitions < 1:
		return errors.New("PARTITIONS must be at least 1")
	case s.DeliveryRetention < time.Hour:
		return errors.New("DELIVERY_RETENTION must be at least 1h")
	case s.DeadRetention < time.Hour:
		return errors.New("DEAD_LETTER_RETENTION must be at least 1h")
	case s.AttemptRetention <= s.DeliveryRetention:
		return errors.New("ATTEMPT_RETENTION must be longer than DELIVERY_RETENTION: marks of deliveries are rebuilt from attempts")
	}
	return nil
}

// Topic is a topic as it should be.
type Topic struct {
	Name       string
	Partitions int32
	Configs    map[string]string
	// essential are the configs without which going on would lose data.
	essential []string
}

const (
	cleanupPolicy = "cleanup.policy"
	retention     = "retention.ms"
)

// Topics lists the topics of the design with their policies.
func (s TopicSettings) Topics(names webhook.Topics, schedule webhook.Schedule) []Topic {
	deleteAfter := func(d time.Duration) map[string]string {
		return map[string]string{cleanupPolicy: "delete", retention: strconv.FormatInt(d.Milliseconds(), 10)}
	}
	topics := []Topic{
		{
			Name: names.Events(), Partitions: s.Partitions,
			Configs:   map[string]string{cleanupPolicy: "delete", retention: "-1", "retention.bytes": "-1"},
			essential: []string{cleanupPolicy, retention, "retention.bytes"},
		},
		// One partition: the table is small, and its changes have one order.
		{
			Name: names.Subscriptions(), Partitions: 1,
			Configs:   map[string]string{cleanupPolicy: "compact"},
			essential: []string{cleanupPolicy},
		},
		{
			Name: names.Deliveries(), Partitions: s.Partitions,
			Configs: deleteAfter(s.DeliveryRetention), essential: []string{cleanupPolicy},
		},
		{
			Name: names.Parked(), Partitions: s.Partitions,
			Configs: deleteAfter(s.DeliveryRetention), essential: []string{cleanupPolicy},
		},
		{
			Name: names.Backfill(), Partitions: s.Partitions,
			Configs: deleteAfter(s.DeliveryRetention), essential: []string{cleanupPolicy},
		},
		// One partition: replays are few, and one router carries them out.
		{
			Name: names.Replays(), Partitions: 1,
			Configs:   map[string]string{cleanupPolicy: "compact"},
			essential: []string{cleanupPolicy},
		},
		{
			Name: names.Attempts(), Partitions: s.Partitions,
			Configs: deleteAfter(s.AttemptRetention), essential: []string{cleanupPolicy},
		},
		{
			Name: names.DeadLetters(), Partitions: s.Partitions,
			Configs: deleteAfter(s.DeadRetention), essential: []string{cleanupPolicy},
		},
	}
	for _, delay := range schedule.Delays() {
		topics = append(topics, Topic{
			Name: names.Retry(delay), Partitions: s.Partitions,
			Configs: deleteAfter(s.DeliveryRetention), essential: []string{cleanupPolicy},
		})
	}
	if s.MinInSync > 0 {
		for _, t := range topics {
			t.Configs["min.insync.replicas"] = strconv.Itoa(s.MinInSync)
		}
	}
	return topics
}

// PolicyError says that a topic's policy would lose data.
type PolicyError struct{ Topic, Config, Want, Got string }

func (e *PolicyError) Error() string {
	return fmt.Sprintf("topic %s has %s=%s but must have %s=%s, or data would be lost: run webhooks topics apply",
		e.Topic, e.Config, e.Got, e.Config, e.Want)
}

// described is a topic as the cluster has it.
type described struct {
	partitions int
	configs    map[string]string
}

func (t Topic) refuse(found described) error {
	for _, name := range t.essential {
		if got := found.configs[name]; got != t.Configs[name] {
			return &PolicyError{t.Name, name, t.Configs[name], got}
		}
	}
	return nil
}

// describe returns those of the topics that exist. Brokers learn of a topic one
// after the other: it asks again while they disagree.
func describe(ctx context.Context, adm *kadm.Client, topics []Topic) (map[string]described, error) {
	for {
		found, err := describeOnce(ctx, adm, topics)
		if !kerr.IsRetriable(err) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func describeOnce(ctx context.Context, adm *kadm.Client, topics []Topic) (map[string]described, error) {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	details, err := adm.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	found := map[string]described{}
	var existing []string
	for _, d := range details {
		switch {
		case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
		case d.Err != nil:
			return nil, fmt.Errorf("list topic %s: %w", d.Topic, d.Err)
		default:
			found[d.Topic] = described{len(d.Partitions), map[string]string{}}
			existing = append(existing, d.Topic)
		}
	}
	if len(existing) == 0 {
		return found, nil
	}
	configs, err := adm.DescribeTopicConfigs(ctx, existing...)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	for _, rc := range configs {
		if rc.Err != nil {
			return nil, fmt.Errorf("describe topic %s: %w", rc.Name, rc.Err)
		}
		for _, c := range rc.Configs {
			found[rc.Name].configs[c.Key] = c.MaybeValue()
		}
	}
	return found, nil
}

// Change is something that Apply did, or that it refuses to do.
type Change struct {
	Topic   string
	Action  string // what was done, or what differs
	Refused bool   // it differs and can't be changed
}

// Apply makes the topics as they should be: it creates what is missing and sets
// the policies that differ, and reports both. It never changes the number of
// partitions: that would send a provider's next event to another partition than
// the earlier ones.
func Apply(ctx context.Context, adm *kadm.Client, replication int16, topics []Topic) ([]Change, error) {
	found, err := describe(ctx, adm, topics)
	if err != nil {
		return nil, err
	}
	var changes []Change
	for _, t := range topics {
		f, exists := found[t.Name]
		if !exists {
			configs := make(map[string]*string, len(t.Configs))
			for k, v := range t.Configs {
				configs[k] = &v
			}
			_, err := adm.CreateTopic(ctx, t.Partitions, replication, configs, t.Name)
			if errors.Is(err, kerr.TopicAlreadyExists) {
				continue // another process has just applied the same
			}
			if err != nil {
				return changes, fmt.Errorf("create topic %s: %w", t.Name, err)
			}
			changes = append(changes, Change{t.Name, fmt.Sprintf("created with %d partitions", t.Partitions), false})
			continue
		}
		if f.partitions != int(t.Partitions) {
			changes = append(changes, Change{t.Name, fmt.Sprintf(
				"has %d partitions, not %d; they are left as they are, for keys would move between partitions", f.partitions, t.Partitions), true})
		}
		set, err := applyConfigs(ctx, adm, t, f)
		if err != nil {
			return changes, err
		}
		changes = append(changes, set...)
	}
	return changes, nil
}

func applyConfigs(ctx context.Context, adm *kadm.Client, t Topic, f described) ([]Change, error) {
	var (
		alter   []kadm.AlterConfig
		changes []Change
	)
	for name, want := range t.Configs {
		if got := f.configs[name]; got != want {
			alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &want})
			changes = append(changes, Change{t.Name, fmt.Sprintf("%s set from %s to %s", name, got, want), false})
		}
	}
	if len(alter) == 0 {
		return nil, nil
	}
	slices.SortFunc(changes, func(a, b Change) int { return slices.Compare([]byte(a.Action), []byte(b.Action)) })
	responses, err := adm.AlterTopicConfigs(ctx, alter, t.Name)
	if err != nil {
		return nil, fmt.Errorf("set policies of topic %s: %w", t.Name, err)
	}
	for _, r := range responses {
		if r.Err != nil {
			return nil, fmt.Errorf("set policies of topic %s: %w", t.Name, r.Err)
		}
	}
	return changes, nil
}

// DefaultTopicSettings are those of the settings' defaults. Only the policies
// that they lead to matter to who merely checks the topics.
func DefaultTopicSettings() TopicSettings {
	return TopicSettings{
		Partitions: 12, Replication: -1,
		DeliveryRetention: 7 * 24 * time.Hour, AttemptRetention: 30 * 24 * time.Hour, DeadRetention: 180 * 24 * time.Hour,
	}
}

// RetryDelays returns the delays of all retry topics that exist, also those of
// earlier schedules.
func RetryDelays(ctx context.Context, adm *kadm.Client, names webhook.Topics) ([]time.Duration, error) {
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var delays []time.Duration
	for _, name := range topics.Names() {
		if delay, ok := names.RetryDelay(name); ok {
			delays = append(delays, delay)
		}
	}
	return delays, nil
}
