package status

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Errors of a record, which would come again however often it were projected.
var (
	errUnreadable = errors.New("the record can't be read")
	errRefused    = errors.New("redis can't merge the record with what it has")
)

// poisonous reports whether an error is that of a record. A panic is: what made
// it is in the record, or in what Redis has of its delivery.
func poisonous(err error) bool {
	var panicked middleware.RecoveredPanicError
	return errors.Is(err, errUnreadable) || errors.Is(err, errRefused) || errors.As(err, &panicked)
}

// refused reports whether Redis answered that it can't do what the script asks
// for, rather than that it can't do anything at present. Redis 7 gives the errors
// of commands in a script their own codes, such as OOM and READONLY, and those of
// the script itself ERR and where; Redis 6 all of them ERR, and no hint of where.
// The embedded one calls errors of a script ones of compiling it.
func refused(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := reply.Error()
	return strings.HasPrefix(text, "ERR user_script:") || strings.HasPrefix(text, "ERR Error compiling script") || strings.Contains(text, "WRONGTYPE")
}

// newPoison makes the publisher of the poison queue, which are the dead letters.
func newPoison(cfg Config) (*watermillkgo.Publisher, error) {
	publisher, err := watermillkgo.NewPublisher(watermillkgo.PublisherConfig{
		ClientOptions: cfg.Kafka,
		Marshal: func(topic string, m *message.Message) (*kgo.Record, error) {
			records, _ := watermillkgo.MessageRecordsFromCtx(m.Context())
			// The first line: a panic's stack is in the log.
			reason, _, _ := strings.Cut(m.Metadata.Get(middleware.ReasonForPoisonedKey), "\n")
			return webhook.Unreadable(topic, records[0], fmt.Errorf("project the status: %s", reason), time.Now())
		},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("status: make the publisher of dead letters: %w", err)
	}
	return publisher, nil
}

// singly is a middleware that goes through a batch record by record after one of
// its records has failed it, so that all others have their status. That one
// becomes a dead letter.
func (s *session) singly() (message.HandlerMiddleware, error) {
	poison, err := middleware.PoisonQueueWithFilter(s.p.poison, s.p.cfg.Topics.DeadLetters(), poisonous)
	if err != nil {
		return nil, fmt.Errorf("make the poison queue of the projection: %w", err)
	}
	return func(h message.HandlerFunc) message.HandlerFunc {
		one := poison(func(m *message.Message) ([]*message.Message, error) {
			_, err := h(m)
			if poisonous(err) {
				s.poisoned(m, err)
			}
			return nil, err
		})
		return func(m *message.Message) ([]*message.Message, error) {
			_, err := h(m)
			if !poisonous(err) {
				return nil, err
			}
			records, _ := watermillkgo.MessageRecordsFromCtx(m.Context())
			// If not even nothing can be written, that is no record's fault, and there would
			// be dead letters as often as the batch came again.
			if err := s.write(m.Context(), records[0], records[0].Offset, nil); err != nil {
				return nil, err
			}
			for _, single := range watermillkgo.Split(m) {
				if _, err := one(single); err != nil {
					return nil, err
				}
			}
			last := records[len(records)-1]
			return nil, s.write(m.Context(), last, last.Offset+1, nil)
		}
	}, nil
}

// poisoned tells of a record that becomes a dead letter.
func (s *session) poisoned(m *message.Message, err error) {
	topic, _ := watermillkgo.MessageTopicFromCtx(m.Context())
	partition, _ := watermillkgo.MessagePartitionFromCtx(m.Context())
	offset, _ := watermillkgo.MessagePartitionOffsetFromCtx(m.Context())
	s.p.cfg.Log.Error("a record can't be projected and becomes a dead letter", "topic", topic, "partition", partition, "offset", offset, "error", err)
	s.p.metrics.records.WithLabelValues("poisoned").Inc()
}
