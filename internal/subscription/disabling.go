package subscription

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/member"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// grantAgain is how long a request to disable that can't be granted waits.
const grantAgain = 500 * time.Millisecond

// grantOptions are those of the consumer of attempts.
func (s *Service) grantOptions() []kgo.Opt {
	return append(append(slices.Clone(s.cfg.Kafka), member.Options(s.cfg.DisablingGroup, "")...),
		kgo.ConsumeTopics(s.cfg.Attempts),
		// What nobody has granted yet is granted late, and what no longer holds is
		// for a version that is gone: nothing speaks for missing the former.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
	)
}

// grant disables the subscriptions that senders ask to be disabled, where the
// attempts say so. It runs where subscriptions are written and until they are
// written elsewhere. What one poll brings is committed once the next has begun:
// what is not granted before ctx ends is read again by the next owner.
func (s *Service) grant(ctx context.Context, _ int32) {
	client, err := kgo.NewClient(s.grantOptions()...)
	if err != nil {
		s.cfg.Log.Error("no subscription can be disabled by the system", "error", err) // New has checked the options
		return
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			s.cfg.Log.Warn("fetch", "topic", topic, "partition", partition, "error", err) // the client tries again
		})
		for it := fetches.RecordIter(); !it.Done(); {
			if !s.granted(ctx, it.Next()) {
				return
			}
		}
	}
}

// granted does what an attempt's record asks for, and returns false if ctx ended
// before.
func (s *Service) granted(ctx context.Context, r *kgo.Record) bool {
	// Next to none ask for anything: decoding all would be most of the work.
	if !bytes.Contains(r.Value, []byte(`"disable":`)) {
		return true
	}
	log := s.cfg.Log.With("topic", r.Topic, "partition", r.Partition, "offset", r.Offset)
	a, err := webhook.ParseAttempt(r.Value)
	switch {
	case err != nil:
		log.Error("unreadable attempt passed over", "error", err)
		return true
	case a.Disable == nil:
		return true
	case a.Disable.Version < 1 || a.Disable.Reason != webhook.DisabledGone && a.Disable.Reason != webhook.DisabledNoSuccess:
		log.Error("request to disable a subscription passed over: it has no version, or an unknown reason", "subscription_id", a.SubscriptionID)
		return true
	}
	for tries := 0; ; tries++ {
		err := s.Disable(ctx, a.SubscriptionID, a.Disable.Version, a.Disable.Reason)
		if err == nil {
			return true
		}
		if tries == 0 && ctx.Err() == nil {
			log.Warn("a subscription can't be disabled yet", "subscription_id", a.SubscriptionID, "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(grantAgain):
		}
	}
}
