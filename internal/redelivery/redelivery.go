// Package redelivery takes commands that send something again, or for the first
// time to somebody who was not there: replays, recoveries, resends, and examples.
//
// Any instance may carry them out: each only appends records whose keys or ids
// follow from the command, so that there is nothing to decide between instances.
package redelivery

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// Subscriptions is the table of subscriptions.
type Subscriptions interface {
	// Sync returns when every change acknowledged before the call is in the table.
	Sync(ctx context.Context) error
	// Get returns a subscription, also a deleted one whose record is still kept.
	Get(id string) (webhook.Registered, bool)
}

// Deliveries knows deliveries by their ids.
type Deliveries interface {
	// Find returns what is known of a delivery: at least its subscription, its
	// origin and, unless it is a test, the position of its event. It returns false
	// if it does not know it; somebody else may.
	Find(ctx context.Context, deliveryID string) (webhook.Attempt, bool, error)
}

// Config of a Service. Limit has a default.
type Config struct {
	// Kafka are the options of the connection.
	Kafka  []kgo.Opt
	Topics webhook.Topics
	// Replays and Subscriptions are followed by the caller.
	Replays       *replay.Table
	Subscriptions Subscriptions
	// Deliveries is asked first where a delivery's event stands; nil asks the
	// topics at once.
	Deliveries Deliveries
	// Limit bounds how long a range is counted or a delivery is looked for in the
	// topics, and how long either waits for its turn before. Default 10 s.
	Limit time.Duration
}

// Service takes the commands and answers questions about replays.
type Service struct {
	cfg    Config
	client *kgo.Client
	adm    *kadm.Client
	// places are for what reads topics from end to end, see maxReaders, and lookups
	// for what reads single records.
	places, lookups *semaphore.Weighted
}

const (
	// maxOpen bounds the replays that are worked on at the same time: each of them
	// has a reader.
	maxOpen = 32
	// maxReaders bounds the counts and searches that go on at the same time, each of
	// which has a consumer that reads as fast as the broker sends: many requests at
	// once would take memory and network from everything else. The others wait.
	maxReaders = 4
	// maxLookups bounds how many events are read from the log at the same time to be
	// sent again: each has a consumer for a moment.
	maxLookups = 16
	// MaxRate bounds the rate of a replay, in deliveries per second.
	MaxRate = 100_000
	// writeTimeout bounds the append of a record.
	writeTimeout = 8 * time.Second
	defaultLimit = 10 * time.Second
)

// ErrBusy says that too much else was being counted and looked for, and that
// nothing was done.
var ErrBusy = errors.New("too many counts and searches at the same time")

// New makes the service; Close ends it.
func New(cfg Config) (*Service, error) {
	if cfg.Limit == 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Replays == nil || cfg.Subscriptions == nil || cfg.Limit < 0 {
		return nil, errors.New("redelivery: Config needs Replays and Subscriptions, and a limit that makes sense")
	}
	client, err := kgo.NewClient(append(slices.Clone(cfg.Kafka),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(writeTimeout))...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	return &Service{cfg: cfg, client: client, adm: kadm.NewClient(client), places: semaphore.NewWeighted(maxReaders), lookups: semaphore.NewWeighted(maxLookups)}, nil
}

// Close ends the connection.
func (s *Service) Close() { s.client.Close() }

// Ask says what to replay.
type Ask struct {
	// From and To are times (RFC 3339), positions of the log (PARTITION/OFFSET,
	// separated by commas; partitions that are not named are left out), or
	// "earliest" and "latest". An empty To is "latest".
	From, To string
	// EventNames are types of events or wildcards; empty takes the subscription's.
	EventNames []string
	// ProviderID, if set, takes one calendar only.
	ProviderID string
	// Rate bounds the deliveries per second; 0 does not.
	Rate int
}

// Count says how many deliveries a replay would come to. If that can't be counted
// in time it is an estimate.
func (s *Service) Count(ctx context.Context, subscriptionID string, ask Ask) (n int64, estimated bool, err error) {
	sub, err := s.subscription(ctx, subscriptionID)
	if err != nil {
		return 0, false, err
	}
	request, err := s.request(ctx, sub, ask)
	if err != nil {
		return 0, false, err
	}
	leave, err := place(ctx, s.places, s.cfg.Limit)
	if err != nil {
		return 0, false, err
	}
	defer leave()
	return s.count(ctx, request)
}

// place waits for one of a number of places; leave gives it back.
func place(ctx context.Context, places *semaphore.Weighted, limit time.Duration) (leave func(), err error) {
	if !places.TryAcquire(1) {
		waiting, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if err := places.Acquire(waiting, 1); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
	}
	return func() { places.Release(1) }, nil
}

// count counts what a request covers; the caller has a place.
func (s *Service) count(ctx context.Context, r *webhook.ReplayRequest) (int64, bool, error) {
	n, estimated, err := replay.Count(ctx, s.cfg.Kafka, s.cfg.Topics, r, s.cfg.Limit)
	if err != nil {
		return 0, false, unavailable(err)
	}
	return n, estimated, nil
}

// Replay has a part of the log delivered to a subscription.
func (s *Service) Replay(ctx context.Context, m appointment.Meta, subscriptionID string, ask Ask) (replay.Replay, error) {
	return s.start(ctx, m, subscriptionID, func(sub webhook.Registered) (*webhook.ReplayRequest, error) {
		return s.request(ctx, sub, ask)
	})
}

// Recover has everything sent again of which a delivery to the subscription ended
// dead or discarded since then.
func (s *Service) Recover(ctx context.Context, m appointment.Meta, subscriptionID string, since time.Time) (replay.Replay, error) {
	return s.start(ctx, m, subscriptionID, func(webhook.Registered) (*webhook.ReplayRequest, error) {
		return s.recovery(ctx, subscriptionID, since)
	})
}

// start writes a request, unless the same command has written it before.
func (s *Service) start(ctx context.Context, m appointment.Meta, subscriptionID string, ask func(webhook.Registered) (*webhook.ReplayRequest, error)) (replay.Replay, error) {
	id := idOf(m)
	if r, made, err := s.made(ctx, id, m); made || err != nil {
		return r, err
	}
	sub, err := s.enabled(ctx, subscriptionID)
	if err != nil {
		return replay.Replay{}, err
	}
	if err := s.room(); err != nil {
		return replay.Replay{}, err
	}
	request, err := ask(sub)
	if err != nil {
		return replay.Replay{}, err
	}
	request.ID, request.Fingerprint = id, m.Idempotency
	request.CreatedAt, request.CreatedBy = time.Now().UTC().Truncate(time.Microsecond), m.Actor // lists are in this order
	leave, err := place(ctx, s.places, s.cfg.Limit)
	if err != nil {
		return replay.Replay{}, err
	}
	defer leave()
	if request.Total, request.Estimated, err = s.count(ctx, request); err != nil {
		return replay.Replay{}, err
	}
	// While it was counted others may have been accepted, and so the same. What is
	// written between this look and the write is not seen, but of each instance
	// that is no more than has a place.
	if r, made, err := s.made(ctx, id, m); made || err != nil {
		return r, err
	}
	if _, err := s.enabled(ctx, subscriptionID); err != nil {
		return replay.Replay{}, err
	}
	if err := s.room(); err != nil {
		return replay.Replay{}, err
	}
	record, err := request.Encode(s.cfg.Topics.Replays())
	if err != nil {
		return replay.Replay{}, err
	}
	if err := s.write(ctx, record); err != nil {
		return replay.Replay{}, err
	}
	if err := s.sync(ctx); err != nil {
		return replay.Replay{}, fmt.Errorf("%w: %w", writer.ErrUnknown, err) // it was written
	}
	// If the key was used twice at the same time, the first of the two counts, and
	// the replay's progress repeats it. Only as long as there is none, because the
	// replay waits, compaction can leave the second alone to who then reads the topic
	// anew. To write the first again would not help: what comes later is passed over.
	r, ok := s.cfg.Replays.Get(id)
	if !ok {
		return replay.Replay{}, fmt.Errorf("%w: replay %s was written and is not there", writer.ErrUnknown, id)
	}
	return first(r, m)
}

// made returns the replay that the same command has made before, if it has.
func (s *Service) made(ctx context.Context, id string, m appointment.Meta) (r replay.Replay, made bool, err error) {
	if err := s.sync(ctx); err != nil {
		return replay.Replay{}, false, err
	}
	if m.Idempotency == "" {
		return replay.Replay{}, false, nil
	}
	if r, made = s.cfg.Replays.Get(id); made {
		r, err = first(r, m)
	}
	return r, made, err
}

// room refuses one more replay if as many as can be are under way.
func (s *Service) room() error {
	if len(s.cfg.Replays.Open()) < maxOpen {
		return nil
	}
	return refusal(appointment.Conflict, "too_many_replays",
		fmt.Sprintf("There are %d replays under way: wait until one has ended, or cancel one", maxOpen))
}

// first returns a replay as it was when it was accepted.
func first(r replay.Replay, m appointment.Meta) (replay.Replay, error) {
	if r.Request.Fingerprint != m.Idempotency {
		return replay.Replay{}, refusal(appointment.Conflict, "idempotency_key_reused",
			"This Idempotency-Key was used for another request: choose a new one")
	}
	return replay.Replay{Request: r.Request}, nil
}

// idOf returns the id of what a command makes: its own if nothing says that the
// command may be repeated, else always the same.
func idOf(m appointment.Meta) string {
	key, _, _ := strings.Cut(m.Idempotency, ".")
	var id uuid.UUID
	if n, err := hex.Decode(id[:], []byte(key[:min(len(key), 2*len(id))])); err != nil || n != len(id) {
		return uuid.NewString()
	}
	id[6] = id[6]&0x0f | 0x40 // as a UUID version 4
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// Get returns a replay of a subscription.
func (s *Service) Get(ctx context.Context, subscriptionID, id string) (replay.Replay, error) {
	if err := s.sync(ctx); err != nil {
		return replay.Replay{}, err
	}
	r, ok := s.cfg.Replays.Get(id)
	if !ok || r.Request.SubscriptionID != subscriptionID {
		return replay.Replay{}, refusal(appointment.NotFound, "replay_not_found", "Replay not found")
	}
	return r, nil
}

// List returns the replays of a subscription, the newest first.
func (s *Service) List(ctx context.Context, subscriptionID string) ([]replay.Replay, error) {
	if _, err := s.subscription(ctx, subscriptionID); err != nil {
		return nil, err
	}
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	return s.cfg.Replays.List(subscriptionID), nil
}

// Cancel ends a replay. What waits of its deliveries is discarded, also if all of
// them had been made.
func (s *Service) Cancel(ctx context.Context, m appointment.Meta, subscriptionID, id string) (replay.Replay, error) {
	r, err := s.Get(ctx, subscriptionID, id)
	if err != nil || r.Cancel != nil {
		return r, err
	}
	r.Cancel = &webhook.ReplayCancel{ID: id, At: time.Now().UTC().Truncate(time.Millisecond), By: m.Actor}
	record, err := r.Cancel.Encode(s.cfg.Topics.Replays())
	if err != nil {
		return r, err
	}
	return r, s.write(ctx, record)
}

// Resend sends a delivery's event again to its subscription, whatever became of
// it, and returns the id of the new delivery.
func (s *Service) Resend(ctx context.Context, m appointment.Meta, deliveryID string) (string, error) {
	found, err := s.find(ctx, deliveryID)
	if err != nil {
		return "", err
	}
	if found.EventPosition == "" {
		return "", refusal(appointment.Conflict, "delivery_is_a_test", "A test has no event that could be sent again: send another test")
	}
	at, err := webhook.ParsePosition(found.EventPosition)
	if err != nil {
		return "", fmt.Errorf("delivery %s: %w", deliveryID, err)
	}
	sub, err := s.enabled(ctx, found.SubscriptionID)
	if err != nil {
		return "", err
	}
	leave, err := place(ctx, s.lookups, s.cfg.Limit)
	if err != nil {
		return "", err
	}
	defer leave()
	looking, cancel := context.WithTimeout(ctx, s.cfg.Limit)
	defer cancel()
	records, err := replay.Lookup(looking, s.cfg.Kafka, s.cfg.Topics.Events(), []webhook.Position{at})
	if err != nil {
		return "", unavailable(err)
	}
	gone := refusal(appointment.Conflict, "event_not_readable", "The delivery's event can't be read any more")
	if records[at] == nil {
		return "", gone
	}
	d, err := replay.Deliver(records[at], sub, webhook.OriginOf(webhook.OriginResend, idOf(m)))
	if err != nil {
		return "", gone
	}
	return d.ID, s.deliver(ctx, d)
}

// Test sends a subscription an example of its event, and returns the id of the
// delivery.
func (s *Service) Test(ctx context.Context, m appointment.Meta, subscriptionID string) (string, error) {
	sub, err := s.enabled(ctx, subscriptionID)
	if err != nil {
		return "", err
	}
	eventType := exampleOf(sub.Subscription.EventName)
	payload, err := webhook.RenderTest(eventType, time.Now())
	if err != nil {
		return "", err
	}
	origin := webhook.OriginOf(webhook.OriginTest, idOf(m))
	id := webhook.DeliveryID("", subscriptionID, origin)
	return id, s.deliver(ctx, &webhook.Delivery{
		ID: id, SubscriptionID: subscriptionID, EventType: eventType, Origin: origin,
		Subscription: sub.At, Attempt: 1, Body: payload.Body(id),
	})
}

func (s *Service) deliver(ctx context.Context, d *webhook.Delivery) error {
	record, err := d.Encode(s.cfg.Topics.Backfill())
	if err != nil {
		return err
	}
	return s.write(ctx, record)
}

// write appends a record. After an error it may be there or not, unless that is a
// refusal.
func (s *Service) write(ctx context.Context, record *kgo.Record) error {
	err := s.client.ProduceSync(ctx, record).FirstErr()
	switch {
	case errors.Is(err, kerr.MessageTooLarge): // says the client, or the broker
		return refusal(appointment.Conflict, "record_too_large", "What would have to be written is larger than the log takes, and nothing was done")
	case err != nil:
		return fmt.Errorf("%w: append to %s: %w", writer.ErrUnknown, record.Topic, err)
	}
	return nil
}

func (s *Service) sync(ctx context.Context) error {
	if err := s.cfg.Replays.Sync(ctx); err != nil {
		return unavailable(err)
	}
	return nil
}

// subscription returns a subscription that is not deleted.
func (s *Service) subscription(ctx context.Context, id string) (webhook.Registered, error) {
	if err := s.cfg.Subscriptions.Sync(ctx); err != nil {
		return webhook.Registered{}, unavailable(err)
	}
	sub, ok := s.cfg.Subscriptions.Get(id)
	if !ok || sub.Subscription.Deleted {
		return webhook.Registered{}, refusal(appointment.NotFound, "subscription_not_found", "Webhook subscription not found")
	}
	return sub, nil
}

// enabled returns a subscription that something can be sent to: to one that is
// disabled, everything would be discarded.
func (s *Service) enabled(ctx context.Context, id string) (webhook.Registered, error) {
	sub, err := s.subscription(ctx, id)
	if err == nil && !sub.Subscription.Enabled {
		err = refusal(appointment.Conflict, "subscription_disabled", "The subscription is disabled: enable it first, or nothing would be sent")
	}
	return sub, err
}

func refusal(kind appointment.Kind, code, message string) error {
	return &appointment.Refusal{Kind: kind, Code: code, Message: message}
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", appointment.ErrUnavailable, err) }
