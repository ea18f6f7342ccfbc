package redelivery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

const (
	earliest = "earliest"
	latest   = "latest"
	wildcard = "appointment.*"
	// maxID is longer than any id of a provider.
	maxID = 200
)

// point is where a range begins or ends, as it was asked for.
type point struct {
	word string    // earliest or latest, if it is one of them
	at   time.Time // if it is a time
	// positions are by partition, if it is some.
	positions map[int32]int64
}

// parsePoint reads a point. Its error is for the client.
func parsePoint(text string) (point, error) {
	if text == earliest || text == latest {
		return point{word: text}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return point{at: at}, nil
	}
	p := point{positions: map[int32]int64{}}
	for one := range strings.SplitSeq(text, ",") {
		at, err := webhook.ParsePosition(strings.TrimSpace(one))
		if _, again := p.positions[at.Partition]; err != nil || again {
			return p, fmt.Errorf("must be a time such as 2026-01-31T08:00:00Z, positions such as 0/120,1/88 with each partition once, %s or %s", earliest, latest)
		}
		p.positions[at.Partition] = at.Offset
	}
	return p, nil
}

// after says whether the point comes after another, as far as that can be told
// without the log.
func (p point) after(other point) bool {
	if !p.at.IsZero() && !other.at.IsZero() {
		return p.at.After(other.at)
	}
	for partition, offset := range p.positions {
		if o, ok := other.positions[partition]; ok && offset > o {
			return true
		}
	}
	return p.word == latest && other.word == earliest
}

// bounds are where the partitions of a topic start and end at a moment.
type bounds struct{ starts, ends []int64 }

func (s *Service) bounds(ctx context.Context, topic string) (bounds, error) {
	starts, ends, err := replay.Bounds(ctx, s.adm, topic)
	if err != nil {
		return bounds{}, unavailable(err)
	}
	return bounds{starts, ends}, nil
}

// resolve returns where a point is in each partition, within the bounds.
// Partitions that positions don't name are at missing.
func (s *Service) resolve(ctx context.Context, topic string, p point, b bounds, missing []int64) ([]int64, error) {
	var found []int64
	switch {
	case p.word == earliest:
		found = slices.Clone(b.starts)
	case p.word == latest:
		found = slices.Clone(b.ends)
	case !p.at.IsZero():
		var err error
		after := func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return s.adm.ListOffsetsAfterMilli(ctx, ceilMilli(p.at), topics...)
		}
		if found, err = replay.Offsets(ctx, topic, after); err != nil {
			return nil, unavailable(fmt.Errorf("look up a time in %s: %w", topic, err))
		}
		if len(found) != len(b.ends) {
			return nil, unavailable(fmt.Errorf("look up a time in %s: not all partitions answered", topic))
		}
	default:
		found = slices.Clone(missing)
		for partition, offset := range p.positions {
			if int(partition) < len(found) {
				found[partition] = offset
			}
		}
	}
	for i := range found {
		found[i] = min(max(found[i], b.starts[i]), b.ends[i])
	}
	return found, nil
}

// ceilMilli returns the first whole millisecond that is not before the time.
func ceilMilli(t time.Time) int64 {
	ms := t.UnixMilli()
	if time.UnixMilli(ms).Before(t) {
		ms++
	}
	return ms
}

// request makes the request that was asked for, without what start adds.
func (s *Service) request(ctx context.Context, sub webhook.Registered, ask Ask) (*webhook.ReplayRequest, error) {
	var problems []appointment.Problem
	wrong := func(field, problem string) {
		problems = append(problems, appointment.Problem{Field: field, Problem: problem})
	}
	if ask.To == "" {
		ask.To = latest
	}
	from, fromErr := parsePoint(ask.From)
	if fromErr != nil {
		wrong("from", fromErr.Error())
	}
	to, toErr := parsePoint(ask.To)
	if toErr != nil {
		wrong("to", toErr.Error())
	}
	if fromErr == nil && toErr == nil && from.after(to) {
		wrong("to", "must not be before from")
	}
	for _, name := range ask.EventNames {
		if name != wildcard && !hasWebhook(name) {
			wrong("event_names", "must each be one of "+names())
			break
		}
	}
	if len(ask.ProviderID) > maxID {
		wrong("provider_id", fmt.Sprintf("must have at most %d bytes", maxID))
	}
	if ask.Rate < 0 || ask.Rate > MaxRate {
		wrong("rate", fmt.Sprintf("must be between 1 and %d deliveries per second, or 0 for as many as go", MaxRate))
	}
	if len(problems) > 0 {
		return nil, appointment.InvalidFields(problems)
	}
	topic := s.cfg.Topics.Events()
	b, err := s.bounds(ctx, topic)
	if err != nil {
		return nil, err
	}
	for field, p := range map[string]point{"from": from, "to": to} {
		for partition := range p.positions {
			if int(partition) >= len(b.ends) {
				wrong(field, fmt.Sprintf("names partition %d, and the log has %d", partition, len(b.ends)))
				return nil, appointment.InvalidFields(problems)
			}
		}
	}
	r := &webhook.ReplayRequest{
		SubscriptionID: sub.Subscription.ID, Source: webhook.SourceEvents,
		EventNames: slices.Sorted(slices.Values(ask.EventNames)), ProviderID: ask.ProviderID, Rate: ask.Rate,
	}
	r.EventNames = slices.Compact(r.EventNames) // else as many as a request's body holds
	if len(r.EventNames) == 0 {
		r.EventNames = []string{sub.Subscription.EventName}
	}
	if r.From, err = s.resolve(ctx, topic, from, b, b.ends); err != nil {
		return nil, err
	}
	if r.To, err = s.resolve(ctx, topic, to, b, b.starts); err != nil {
		return nil, err
	}
	for p := range r.From {
		r.From[p] = min(r.From[p], r.To[p])
	}
	return r, nil
}

// recovery makes the request for what failed since then. All deliveries of a
// subscription have their attempts in one partition.
func (s *Service) recovery(ctx context.Context, subscriptionID string, since time.Time) (*webhook.ReplayRequest, error) {
	if since.After(time.Now()) {
		return nil, appointment.Invalid("since", "must not be in the future")
	}
	topic := s.cfg.Topics.Attempts()
	b, err := s.bounds(ctx, topic)
	if err != nil {
		return nil, err
	}
	from, err := s.resolve(ctx, topic, point{at: since}, b, nil)
	if err != nil {
		return nil, err
	}
	own := kgo.StickyKeyPartitioner(nil).ForTopic(topic).Partition(&kgo.Record{Key: []byte(subscriptionID)}, len(b.ends))
	for p := range from {
		if p != own {
			from[p], b.ends[p] = 0, 0
		}
	}
	since = since.UTC()
	return &webhook.ReplayRequest{
		SubscriptionID: subscriptionID, Source: webhook.SourceAttempts, From: from, To: b.ends,
		EventNames: []string{wildcard}, Since: &since,
	}, nil
}

func hasWebhook(name string) bool {
	return slices.ContainsFunc(events.Catalogue(), func(k events.Kind) bool { return k.Value == name })
}

func names() string {
	var all []string
	for _, k := range events.Catalogue() {
		all = append(all, k.Value)
	}
	return strings.Join(append(all, wildcard), ", ")
}

// exampleOf returns the type of event that an example of an event name has.
func exampleOf(name string) string {
	if hasWebhook(name) {
		return name
	}
	return events.Created
}
