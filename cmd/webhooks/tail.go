package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type tailCmd struct {
	outputFlag   `embed:""`
	Kafka        kafka.Config `embed:""`
	What         string       `arg:"" optional:"" enum:"events,deliveries,attempts,dead-letters" default:"attempts" help:"events, deliveries, attempts (the default) or dead-letters."`
	From         string       `name:"from" default:"latest" help:"Where to begin: earliest, latest, a time (RFC 3339), or how long ago, such as 15m."`
	Subscription string       `name:"subscription" placeholder:"ID" help:"Show what concerns this subscription only."`
	Max          int          `name:"max" short:"n" placeholder:"N" help:"End after N records; without it, Ctrl-C ends."`
	Data         bool         `name:"data" help:"Also show records whole: PATIENTS' DATA appears on the screen. Without it no event's data and no body of a request or an answer is shown."`
}

// Help implements kong.HelpProvider.
func (c *tailCmd) Help() string {
	return "Follows a topic of the deployment, and shows one line a record: when it was written, where it stands (partition/offset) and what it says. " +
		"Records of one partition are in order; those of different partitions are as they come. Only what is committed is shown."
}

// Run follows the topic until ctx ends.
func (c *tailCmd) Run(ctx context.Context) error { return c.run(ctx, c.screen()) }

func (c *tailCmd) run(ctx context.Context, s *screen) error {
	topics := c.Kafka.Topics()
	kind := map[string]struct {
		topic string
		read  func(*kgo.Record) shownRecord
	}{
		"events":       {topics.Events(), showEvent},
		"deliveries":   {topics.Deliveries(), showDelivery},
		"attempts":     {topics.Attempts(), showAttempt},
		"dead-letters": {topics.DeadLetters(), showDeadLetter},
	}[c.What]
	from, err := parseFrom(c.From, s.now())
	switch {
	case err != nil:
		return &run.UsageError{Err: err}
	case c.Max < 0:
		return &run.UsageError{Err: errors.New("-n must be at least 1")}
	case c.What == "events" && c.Subscription != "":
		return &run.UsageError{Err: errors.New("--subscription: events are nobody's; follow deliveries, attempts or dead-letters")}
	}
	client, err := connect(ctx, c.Kafka, kafkaWait, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := seek(ctx, client, kind.topic, from); err != nil {
		return err
	}
	s.remark("following %s from %s; Ctrl-C ends", kind.topic, c.From)
	for shown := 0; ; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil // the usual end
		}
		if err := fetchError(fetches); err != nil {
			return err
		}
		for it := fetches.RecordIter(); !it.Done(); {
			rec := it.Next()
			if c.Subscription != "" && string(rec.Key) != c.Subscription {
				continue
			}
			r := kind.read(rec)
			r.At, r.Position = rec.Timestamp.UTC(), webhook.Position{Partition: rec.Partition, Offset: rec.Offset}.String()
			if c.Data {
				r.Record = wholeRecord(rec)
			}
			if err := r.show(s); err != nil {
				return err
			}
			if shown++; shown == c.Max {
				return nil
			}
		}
	}
}

// from is where to begin: at, if it is set.
type from struct {
	word string
	at   time.Time
}

const (
	earliest = "earliest"
	latest   = "latest"
)

func parseFrom(text string, now time.Time) (from, error) {
	if text == earliest || text == latest {
		return from{word: text}, nil
	}
	at, err := parseTime(text, now)
	if err != nil {
		return from{}, fmt.Errorf("--from: %q is not earliest, latest, a time such as 2026-01-31T08:00:00Z, or how long ago, such as 15m", text)
	}
	return from{at: at}, nil
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	return time.Parse(time.RFC3339, text)
}

// seek lets the client consume a topic from there.
func seek(ctx context.Context, client *kgo.Client, topic string, from from) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaWait)
	defer cancel()
	adm := kadm.NewClient(client)
	var (
		listed kadm.ListedOffsets
		err    error
	)
	switch from.word {
	case earliest:
		listed, err = adm.ListStartOffsets(ctx, topic)
	case latest:
		// Not the high watermarks: what is committed from now on is to be seen.
		listed, err = adm.ListCommittedOffsets(ctx, topic)
	default:
		listed, err = adm.ListOffsetsAfterMilli(ctx, from.at.UnixMilli(), topic)
	}
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return fmt.Errorf("find where %s is to be read from; is TOPIC_PREFIX right, and have the topics been created (webhooks topics apply)? %w", topic, err)
	}
	partitions := map[int32]kgo.Offset{}
	listed.Each(func(o kadm.ListedOffset) { partitions[o.Partition] = kgo.NewOffset().At(o.Offset) })
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: partitions})
	return nil
}

// fetchError returns the first error that ends reading.
func fetchError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		if _, lost := errors.AsType[*kgo.ErrDataLoss](e.Err); !lost { // the client goes on where the log starts
			return fmt.Errorf("read %s, partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return nil
}

// shownRecord is a record as it is shown. Nothing in it but Record is from an
// event's data or a body.
type shownRecord struct {
	At             time.Time  `json:"at"` // when the record was written
	Position       string     `json:"position"`
	EventType      string     `json:"event_type,omitzero"`
	EventID        string     `json:"event_id,omitzero"`
	DeliveryID     string     `json:"delivery_id,omitzero"`
	SubscriptionID string     `json:"subscription_id,omitzero"`
	EventPosition  string     `json:"event_position,omitzero"`
	Origin         string     `json:"origin,omitzero"`
	Attempt        int        `json:"attempt,omitzero"`
	Outcome        string     `json:"outcome,omitzero"`
	Status         int        `json:"status,omitzero"`
	Reason         string     `json:"reason,omitzero"`
	Error          string     `json:"error,omitzero"`
	LatencyMS      float64    `json:"latency_ms,omitzero"`
	NextAttemptAt  *time.Time `json:"next_attempt_at,omitzero"`
	Attempts       int        `json:"attempts,omitzero"` // how many there were
	Source         string     `json:"source,omitzero"`   // where a dead letter's record stood
	// Unreadable says that it is not what this topic is for.
	Unreadable bool `json:"unreadable,omitzero"`
	// Record is there if it was asked for.
	Record *rawRecord `json:"record,omitzero"`
}

// rawRecord is a record as it stands in its topic.
type rawRecord struct {
	Key     string            `json:"key"`
	Headers map[string]string `json:"headers"`
	// Value is the value itself if that is JSON, else a string of it.
	Value json.RawMessage `json:"value"`
}

func wholeRecord(rec *kgo.Record) *rawRecord {
	raw := &rawRecord{Key: string(rec.Key), Headers: map[string]string{}, Value: rec.Value}
	for _, h := range rec.Headers {
		raw.Headers[h.Key] = string(h.Value)
	}
	if !json.Valid(rec.Value) {
		raw.Value, _ = json.Marshal(string(rec.Value)) // strings always can be
	}
	return raw
}

func showEvent(rec *kgo.Record) shownRecord {
	e, err := events.Decode(rec)
	// Who did it and whose it is are as much of a secret as the data.
	return shownRecord{EventType: e.Type, EventID: e.ID, Unreadable: err != nil}
}

func showDelivery(rec *kgo.Record) shownRecord {
	d, err := webhook.ParseDelivery(rec)
	if err != nil {
		return shownRecord{Unreadable: true}
	}
	r := shownRecord{EventType: d.EventType, DeliveryID: d.ID, SubscriptionID: d.SubscriptionID, Origin: d.Origin}
	if !d.Test() {
		r.EventPosition = d.Event.String()
	}
	return r
}

func showAttempt(rec *kgo.Record) shownRecord {
	a, err := webhook.ParseAttempt(rec.Value)
	if err != nil {
		return shownRecord{Unreadable: true}
	}
	// The answer is left out: an endpoint may repeat the request in it.
	return shownRecord{
		EventType: a.EventType, DeliveryID: a.DeliveryID, SubscriptionID: a.SubscriptionID, EventPosition: a.EventPosition, Origin: a.Origin,
		Attempt: a.Attempt, Outcome: a.Outcome, Status: a.Status, Error: a.Error, LatencyMS: a.LatencyMS, NextAttemptAt: a.NextAttemptAt,
	}
}

func showDeadLetter(rec *kgo.Record) shownRecord {
	var d webhook.DeadLetter
	if json.Unmarshal(rec.Value, &d) != nil || d.Reason == "" {
		return shownRecord{Unreadable: true}
	}
	r := shownRecord{
		Reason: d.Reason, Error: d.Error,
		Source: fmt.Sprintf("%s %s", d.Source.Topic, webhook.Position{Partition: d.Source.Partition, Offset: d.Source.Offset}),
	}
	if l := d.Delivery; l != nil {
		r.EventType, r.DeliveryID, r.SubscriptionID, r.EventPosition, r.Origin = l.EventType, l.DeliveryID, l.SubscriptionID, l.EventPosition, l.Origin
		r.Attempts = len(l.Attempts)
	}
	return r
}

// show shows the record.
func (r shownRecord) show(s *screen) error {
	if s.json {
		return s.line(r)
	}
	text := fmt.Sprintf("%s  %-9s %s\n", s.time(r.At), r.Position, strings.Join(r.words(s), "  "))
	if r.Record != nil {
		whole, err := r.Record.indented()
		if err != nil {
			return err
		}
		text += whole
	}
	return s.print(text)
}

// words say what the record is.
func (r shownRecord) words(s *screen) []string {
	const longest = 21 // type of event, and so a column
	words := []string{fmt.Sprintf("%-*s", longest, printable(r.EventType))}
	say := func(format string, args ...any) { words = append(words, harmless(fmt.Sprintf(format, args...))) }
	if r.EventID != "" {
		say("%s", r.EventID)
	}
	if r.DeliveryID != "" {
		say("%s → %s", r.DeliveryID, r.SubscriptionID)
	}
	if r.Outcome != "" {
		say("attempt %d %s", r.Attempt, r.Outcome)
	}
	if r.Reason != "" {
		say("%s", r.Reason)
	}
	if r.Attempts > 0 {
		say("after %d attempts", r.Attempts)
	}
	if r.Status != 0 {
		say("%d", r.Status)
	}
	if r.Error != "" {
		say("%q", r.Error)
	}
	if r.LatencyMS > 0 {
		say("%s", short(time.Duration(r.LatencyMS*float64(time.Millisecond))))
	}
	if r.NextAttemptAt != nil {
		say("next at %s", r.NextAttemptAt.In(s.zone).Format(time.TimeOnly))
	}
	if r.Source != "" {
		say("from %s", r.Source)
	}
	if r.Origin != "" {
		say("%s", r.Origin)
	}
	if r.Unreadable {
		say("NOT READABLE")
	}
	return words
}

// indented is the record as lines of text.
func (r *rawRecord) indented() (string, error) {
	var b bytes.Buffer
	b.WriteString("    ")
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("    ", "  ")
	if err := e.Encode(r); err != nil {
		return "", fmt.Errorf("encode the output: %w", err)
	}
	return harmlessJSON(b.Bytes()), nil
}
