package sender

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// expiredEvery is how often the sender looks whether Kafka deletes deliveries
// before they are sent.
const expiredEvery = time.Minute

// watchExpired raises an alarm for deliveries that outlived their topic's
// retention while they waited: the client goes on behind them without a word.
func (s *Sender) watchExpired(ctx context.Context) {
	tick := time.NewTicker(expiredEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.lookForExpired(ctx)
		}
	}
}

func (s *Sender) lookForExpired(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := s.expired(ctx, kadm.NewClient(s.client)); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("can't tell whether deliveries have expired", "error", err)
	}
}

func (s *Sender) expired(ctx context.Context, adm *kadm.Client) error {
	committed, err := adm.FetchOffsets(ctx, s.cfg.Group)
	if err == nil {
		err = committed.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	starts, err := adm.ListStartOffsets(ctx, s.topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return err
	}
	lost := 0.0
	starts.Each(func(start kadm.ListedOffset) {
		o, ok := committed.Lookup(start.Topic, start.Partition)
		if !ok || o.At < 0 || o.At >= start.Offset {
			return
		}
		lost += float64(start.Offset - o.At)
		s.cfg.Log.Error("deliveries were deleted before they were sent: the topic's retention is too short for the backlog",
			"topic", start.Topic, "partition", start.Partition, "committed", o.At, "log_start", start.Offset)
	})
	s.metrics.expired.Set(lost)
	return nil
}
