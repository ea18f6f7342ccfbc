package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
)

type deliveriesCmd struct {
	List   deliveriesListCmd   `cmd:"" help:"List a subscription's deliveries, the newest first."`
	Show   deliveriesShowCmd   `cmd:"" help:"Show a delivery with all its attempts."`
	Resend deliveriesResendCmd `cmd:"" help:"Send a delivery's event again, whatever became of it."`
}

type deliveriesListCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	Subscription string `arg:"" help:"Id of the subscription."`
	Status       string `name:"status" enum:",waiting,retrying,delivered,dead,discarded" default:"" placeholder:"STATUS" help:"Only those that stand so: waiting, retrying, delivered, dead or discarded."`
	Event        string `name:"event" placeholder:"NAME" help:"Only those of this type of event, such as appointment.created."`
	From         string `name:"from" placeholder:"TIME" help:"Only those made since then: a time (RFC 3339), or how long ago, such as 2h."`
	To           string `name:"to" placeholder:"TIME" help:"Only those made before then."`
	Limit        int    `name:"limit" default:"50" help:"How many to list."`
	All          bool   `name:"all" help:"List all there are."`
}

// delivery is a delivery as the API shows it.
type delivery struct {
	ID            string     `json:"delivery_id"`
	Subscription  string     `json:"subscription_id"`
	Event         string     `json:"event"`
	EventPosition string     `json:"event_position"`
	Origin        string     `json:"origin"`
	Status        string     `json:"status"`
	CreatedAt     time.Time  `json:"created_at"`
	NextAttemptAt *time.Time `json:"next_attempt_at"`
	AttemptCount  int        `json:"attempt_count"` // in a list
	LastAttempt   *attempt   `json:"last_attempt"`  // in a list
	Attempts      []attempt  `json:"attempts"`      // of one by itself
}

type attempt struct {
	Attempt       int        `json:"attempt"`
	At            time.Time  `json:"at"`
	Outcome       string     `json:"outcome"`
	Status        int        `json:"status"`
	Error         string     `json:"error"`
	LatencyMS     float64    `json:"latency_ms"`
	Answer        string     `json:"answer"`
	NextAttemptAt *time.Time `json:"next_attempt_at"`
}

// result says how the attempt went, in as few words as can be.
func (a *attempt) result() string {
	switch {
	case a == nil:
		return ""
	case a.Status != 0:
		return strconv.Itoa(a.Status)
	case a.Error != "":
		return a.Error
	}
	return a.Outcome
}

// Run lists them.
func (c *deliveriesListCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

// pageSize is the most that the API lists at once.
const pageSize = 200

func (c *deliveriesListCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	query := url.Values{}
	for name, text := range map[string]string{"from": c.From, "to": c.To} {
		if text == "" {
			continue
		}
		at, err := parseTime(text, s.now())
		if err != nil {
			return &run.UsageError{Err: fmt.Errorf("--%s: %q is not a time such as 2026-01-31T08:00:00Z, or how long ago, such as 2h", name, text)}
		}
		query.Set(name, at.UTC().Format(time.RFC3339Nano))
	}
	for name, text := range map[string]string{"status": c.Status, "event": c.Event} {
		if text != "" {
			query.Set(name, text)
		}
	}
	if c.Limit < 1 {
		return &run.UsageError{Err: errors.New("--limit must be at least 1")}
	}
	listed := struct {
		Deliveries []json.RawMessage `json:"deliveries"`
		Behind     int               `json:"behind"`
	}{Deliveries: []json.RawMessage{}}
	more, err := pages(c.Limit, c.All, func(limit int, cursor string) (string, int, error) {
		var page struct {
			Deliveries []json.RawMessage `json:"deliveries"`
			NextCursor string            `json:"next_cursor"`
			Behind     int               `json:"behind"`
		}
		query.Set("limit", strconv.Itoa(limit))
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		err := api.get(ctx, pathOf("webhooks", c.Subscription, "deliveries"), query, &page)
		listed.Deliveries, listed.Behind = append(listed.Deliveries, page.Deliveries...), page.Behind
		return page.NextCursor, len(page.Deliveries), err
	})
	if err != nil {
		return err
	}
	if more {
		s.remark("there are more: see --all, --limit and --from")
	}
	behind(s, listed.Behind)
	if s.json {
		return s.document(listed)
	}
	rows := make([][]string, len(listed.Deliveries))
	for i, raw := range listed.Deliveries {
		var d delivery
		if err := json.Unmarshal(raw, &d); err != nil {
			return fmt.Errorf("a delivery in the answer is not as this command knows them: %w", err)
		}
		rows[i] = []string{s.time(d.CreatedAt), d.ID, d.Event, d.Status, strconv.Itoa(d.AttemptCount), d.LastAttempt.result(), s.until(d.NextAttemptAt), d.Origin}
	}
	return s.table([]string{"CREATED", "DELIVERY", "EVENT", "STATUS", "ATTEMPTS", "LAST", "NEXT", "ORIGIN"}, rows)
}

// pages asks for the pages of a list until it has as many items as wanted, or
// all, and says whether there are more. Get returns the next page's cursor and
// how many items the page had, which may be none.
func pages(limit int, all bool, get func(limit int, cursor string) (next string, n int, err error)) (more bool, err error) {
	cursor := ""
	for have := 0; all || have < limit; {
		size := pageSize
		if !all {
			size = min(limit-have, pageSize)
		}
		next, n, err := get(size, cursor)
		switch {
		case err != nil:
			return false, err
		case next == "":
			return false, nil
		case next == cursor:
			return false, errors.New("the API names the same page as the next again")
		}
		have, cursor = have+n, next
	}
	return true, nil
}

// behind remarks on an answer that lacks the latest.
func behind(s *screen, records int) {
	if records > 0 {
		s.remark("this lacks the last %d records of the log, which are still being taken in", records)
	}
}

type deliveriesShowCmd struct {
	apiFlags   `embed:""`
	outputFlag `embed:""`
	Delivery   string `arg:"" help:"Id of the delivery."`
}

// Help implements kong.HelpProvider.
func (c *deliveriesShowCmd) Help() string {
	return "The endpoint's answers are shown too, as far as they are kept: what the receiver wrote there may concern patients."
}

// Run shows it.
func (c *deliveriesShowCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *deliveriesShowCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	var answer struct {
		Delivery json.RawMessage `json:"delivery"`
		Behind   int             `json:"behind"`
	}
	if err := api.get(ctx, pathOf("deliveries", c.Delivery), nil, &answer); err != nil {
		return err
	}
	behind(s, answer.Behind)
	if s.json {
		return s.document(answer)
	}
	var d delivery
	if err := json.Unmarshal(answer.Delivery, &d); err != nil {
		return fmt.Errorf("the delivery in the answer is not as this command knows them: %w", err)
	}
	err := s.fields([][2]string{
		{"delivery", d.ID}, {"subscription", d.Subscription}, {"event", d.Event}, {"position", d.EventPosition}, {"origin", d.Origin},
		{"status", d.Status}, {"created", s.time(d.CreatedAt)}, {"next attempt", s.until(d.NextAttemptAt)},
	})
	if err != nil || len(d.Attempts) == 0 {
		return err
	}
	rows := make([][]string, len(d.Attempts))
	for i, a := range d.Attempts {
		status := ""
		if a.Status != 0 {
			status = strconv.Itoa(a.Status)
		}
		rows[i] = []string{strconv.Itoa(a.Attempt), s.time(a.At), a.Outcome, status, a.Error, short(time.Duration(a.LatencyMS * float64(time.Millisecond))), a.Answer}
	}
	if err := s.print("\n"); err != nil {
		return err
	}
	return s.table([]string{"ATTEMPT", "AT", "OUTCOME", "STATUS", "ERROR", "TOOK", "ANSWER"}, rows)
}

type deliveriesResendCmd struct {
	apiFlags   `embed:""`
	outputFlag `embed:""`
	keyFlag    `embed:""`
	Delivery   string `arg:"" help:"Id of the delivery."`
}

// Run sends it again.
func (c *deliveriesResendCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *deliveriesResendCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	var answer struct {
		DeliveryID string `json:"delivery_id"`
	}
	if err := api.command(ctx, http.MethodPost, pathOf("deliveries", c.Delivery, "resend"), nil, &answer, c.Key); err != nil {
		return err
	}
	if s.json {
		return s.document(answer)
	}
	return s.print(harmless(fmt.Sprintf("sent again as %[1]s; to see what becomes of it: webhooks deliveries show %[1]s\n", answer.DeliveryID)))
}
