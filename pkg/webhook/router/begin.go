package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// ErrNoOffsets says that a deployment which has routed before has lost its
// offsets, as Kafka drops those of a group that was idle for a week.
var ErrNoOffsets = errors.New("deliveries have been routed before, but the router's committed offsets are gone; " +
	"starting over would send history again: choose with --from earliest, --from latest or --from TIME (RFC 3339)")

// Begin decides where a router without committed offsets begins, and commits
// that. A new deployment begins with the first event. One that has deliveries
// already must be told: from is "earliest", "latest", a time in RFC 3339, or
// empty for ErrNoOffsets. Partitions that have a committed offset keep it,
// unless from is set and it lies before the log's start. It waits while offsets
// are being committed, another router is just joining, the group has no
// coordinator yet, or no broker can be reached, of which the client's log tells.
func Begin(ctx context.Context, adm *kadm.Client, topics webhook.Topics, group, from string) error {
	for {
		err := begin(ctx, adm, topics, group, from)
		if !passing(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// passing says whether the same request can succeed a little later.
func passing(err error) bool {
	if kerr.IsRetriable(err) || errors.Is(err, kerr.UnknownMemberID) || kgo.IsRetryableBrokerErr(err) {
		return true
	}
	_, away := errors.AsType[net.Error](err) // a dial that is refused is not retryable to the client
	return away
}

func begin(ctx context.Context, adm *kadm.Client, topics webhook.Topics, group, from string) error {
	// Stable: a predecessor's last commit may still be on its way.
	committed, err := adm.FetchOffsets(kadm.RequireStable(ctx), group)
	if err == nil {
		err = committed.Error()
	}
	// Newer brokers say so of a group that nobody has joined or committed for.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	starts, err := adm.ListStartOffsets(ctx, topics.Events())
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("find the start of %s: %w", topics.Events(), err)
	}
	missing := kadm.Offsets{}
	starts.Each(func(s kadm.ListedOffset) {
		if o, ok := committed.Lookup(s.Topic, s.Partition); !ok || o.At < 0 || from != "" && o.At < s.Offset {
			missing.AddOffset(s.Topic, s.Partition, s.Offset, -1)
		}
	})
	if len(missing) == 0 {
		return nil
	}
	if from == "" {
		used, err := hasRecords(ctx, adm, topics.Deliveries())
		if err != nil {
			return err
		}
		if used {
			return ErrNoOffsets
		}
		from = "earliest"
	}
	at, err := resolve(ctx, adm, topics.Events(), from)
	if err != nil {
		return err
	}
	for partition, o := range missing[topics.Events()] {
		if listed, ok := at.Lookup(o.Topic, partition); ok {
			missing.AddOffset(o.Topic, partition, listed.Offset, -1)
		}
	}
	if err := adm.CommitAllOffsets(ctx, group, missing); err != nil {
		return fmt.Errorf("commit the offsets to begin at: %w", err)
	}
	return nil
}

// CheckFrom says what is wrong with Begin's from.
func CheckFrom(from string) error {
	switch from {
	case "", "earliest", "latest":
		return nil
	}
	if _, err := time.Parse(time.RFC3339, from); err != nil {
		return fmt.Errorf("--from %q is neither earliest, latest nor a time such as 2026-01-31T08:00:00Z", from)
	}
	return nil
}

func hasRecords(ctx context.Context, adm *kadm.Client, topic string) (bool, error) {
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return false, fmt.Errorf("find the end of %s: %w", topic, err)
	}
	used := false
	ends.Each(func(o kadm.ListedOffset) { used = used || o.Offset > 0 })
	return used, nil
}

func resolve(ctx context.Context, adm *kadm.Client, topic, from string) (kadm.ListedOffsets, error) {
	var (
		at  kadm.ListedOffsets
		err error
	)
	switch from {
	case "earliest":
		at, err = adm.ListStartOffsets(ctx, topic)
	case "latest":
		at, err = adm.ListEndOffsets(ctx, topic)
	default:
		if err := CheckFrom(from); err != nil {
			return nil, err
		}
		when, _ := time.Parse(time.RFC3339, from) // checked
		at, err = adm.ListOffsetsAfterMilli(ctx, when.UnixMilli(), topic)
	}
	if err == nil {
		err = at.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", from, topic, err)
	}
	return at, nil
}
