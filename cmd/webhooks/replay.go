package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
)

type replayCmd struct {
	Start   replayStartCmd   `cmd:"" help:"Deliver a part of the past to a subscription, again or for the first time."`
	Recover replayRecoverCmd `cmd:"" help:"Send again what ended dead or discarded, as after a receiver's outage."`
	Status  replayStatusCmd  `cmd:"" help:"Show how far a replay is."`
	List    replayListCmd    `cmd:"" help:"List a subscription's replays, the newest first."`
	Cancel  replayCancelCmd  `cmd:"" help:"End a replay, and discard what was made of it and still waits."`
}

// replay is a replay as the API shows it.
type replay struct {
	ID             string     `json:"id"`
	SubscriptionID string     `json:"subscription_id"`
	Source         string     `json:"source"`
	State          string     `json:"state"`
	Reason         string     `json:"reason"`
	From           string     `json:"from"`
	To             string     `json:"to"`
	Since          *time.Time `json:"since"`
	EventNames     []string   `json:"event_names"`
	ProviderID     string     `json:"provider_id"`
	Rate           int        `json:"rate"`
	Total          int64      `json:"total"`
	Estimated      bool       `json:"estimated"`
	Done           int64      `json:"done"`
	Unreadable     int64      `json:"unreadable"`
	PerSecond      float64    `json:"per_second"`
	EstimateS      *float64   `json:"estimate_s"`
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by"`
	UpdatedAt      time.Time  `json:"updated_at"`
}

const (
	replayWaiting   = "waiting"
	replayRunning   = "running"
	replayCancelled = "cancelled"
	replayFailed    = "failed"
)

func (r *replay) ended() bool { return r.State != replayWaiting && r.State != replayRunning }

// progress is done/total, the latter with a ~ where it is an estimate.
func (r *replay) progress() string {
	about := ""
	if r.Estimated {
		about = "~"
	}
	return fmt.Sprintf("%d/%s%d", r.Done, about, r.Total)
}

// left is how long it still takes, or "" if that can't be told.
func (r *replay) left() string {
	if r.EstimateS == nil {
		return ""
	}
	return short(time.Duration(*r.EstimateS * float64(time.Second)))
}

// oneReplay is a replay in an answer: as it is for programs, and read.
type oneReplay struct {
	raw json.RawMessage
	replay
}

// UnmarshalJSON keeps what it reads.
func (r *oneReplay) UnmarshalJSON(text []byte) error {
	r.raw = append(r.raw[:0], text...)
	r.replay = replay{}
	return json.Unmarshal(text, &r.replay)
}

type replayAnswer struct {
	Message string    `json:"message"`
	Replay  oneReplay `json:"replay"`
}

func (r *oneReplay) path() string { return pathOf("webhooks", r.SubscriptionID, "replays", r.ID) }

// names are the arguments that name the replay.
func (r *oneReplay) names() string { return r.SubscriptionID + " " + r.ID }

// show shows the replay.
func (r *oneReplay) show(s *screen) error {
	if s.json {
		return s.document(map[string]any{"replay": r.raw})
	}
	state := r.State
	if r.Reason != "" {
		state += ": " + r.Reason
	}
	since, rate, left, unreadable := "", "as fast as it goes", r.left(), ""
	if r.Since != nil {
		since = s.time(*r.Since)
	}
	if r.Rate > 0 {
		rate = fmt.Sprintf("at most %d/s", r.Rate)
	}
	if left != "" {
		left = "about " + left
	}
	if r.Unreadable > 0 {
		unreadable = fmt.Sprintf("%d events could not be read and were passed over", r.Unreadable)
	}
	return s.fields([][2]string{
		{"replay", r.ID}, {"subscription", r.SubscriptionID}, {"state", state}, {"made", fmt.Sprintf("%s, %.0f/s", r.progress(), r.PerSecond)},
		{"left", left}, {"unreadable", unreadable}, {"of", r.Source}, {"from", r.From}, {"to", r.To}, {"since", since},
		{"events", strings.Join(r.EventNames, " ")}, {"provider", r.ProviderID}, {"rate", rate},
		{"created", s.time(r.CreatedAt) + " by " + r.CreatedBy}, {"updated", s.time(r.UpdatedAt)},
	})
}

type replayStartCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	keyFlag      `embed:""`
	Subscription string   `arg:"" help:"Id of the subscription that gets the deliveries."`
	From         string   `name:"from" required:"" placeholder:"WHERE" help:"Where to begin: earliest, a time (RFC 3339), how long ago, such as 2h, or positions of the log, such as 0/120,1/88."`
	To           string   `name:"to" placeholder:"WHERE" help:"Where to end, not included: latest (the default) or as --from. What happens from now on is never part of it."`
	Event        []string `name:"event" placeholder:"NAME" help:"Only these types of events; by default the subscription's."`
	Provider     string   `name:"provider" placeholder:"ID" help:"Only this provider's calendar."`
	Rate         int      `name:"rate" placeholder:"N" help:"Make at most N deliveries per second; by default as many as go."`
	DryRun       bool     `name:"dry-run" help:"Only count the deliveries that it would make."`
	Wait         bool     `name:"wait" help:"Show how it goes until it has ended."`
}

// Help implements kong.HelpProvider.
func (c *replayStartCmd) Help() string {
	return "Replays go out behind live traffic, which they do not slow down. Count first, with --dry-run. Each replay is a delivery of its own: " +
		"receivers that have seen an event see it again, with another delivery id."
}

// Run starts it.
func (c *replayStartCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *replayStartCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	if c.Rate < 0 {
		return &run.UsageError{Err: errors.New("--rate must be at least 1")}
	}
	body := map[string]any{"from": point(s, "from", c.From)}
	if c.To != "" {
		body["to"] = point(s, "to", c.To)
	}
	if len(c.Event) > 0 {
		body["event_names"] = c.Event
	}
	if c.Provider != "" {
		body["provider_id"] = c.Provider
	}
	if c.Rate > 0 {
		body["rate"] = c.Rate
	}
	path := pathOf("webhooks", c.Subscription, "replays")
	if c.DryRun {
		body["dry_run"] = true
		return count(ctx, api, s, path, body)
	}
	return begin(ctx, api, s, path, body, c.Key, c.Wait)
}

// point is where a range begins or ends as the API takes it, which also says what
// is wrong with it. A time that was given as how long ago is shown, for a repeat
// has to name the same.
func point(s *screen, flag, text string) string {
	at, err := parseTime(text, s.now())
	if err != nil {
		return text
	}
	written := at.UTC().Format(time.RFC3339Nano)
	if written != text {
		s.remark("--%s %s is --%[1]s %[3]s", flag, text, written)
	}
	return written
}

// count shows how many deliveries a replay would make.
func count(ctx context.Context, api *apiClient, s *screen, path string, body map[string]any) error {
	var answer struct {
		Count     int64 `json:"count"`
		Estimated bool  `json:"estimated,omitzero"`
	}
	if err := api.do(ctx, http.MethodPost, path, nil, body, &answer, ""); err != nil {
		return err
	}
	if s.json {
		return s.document(answer)
	}
	about := ""
	if answer.Estimated {
		about = "about "
	}
	return s.print(fmt.Sprintf("deliveries that it would make: %s%d; nothing has been started\n", about, answer.Count))
}

// begin starts a replay and shows it, at once or when it has ended.
func begin(ctx context.Context, api *apiClient, s *screen, path string, body map[string]any, key string, wait bool) error {
	var answer replayAnswer
	if err := api.command(ctx, http.MethodPost, path, body, &answer, key); err != nil {
		return err
	}
	r := answer.Replay
	if wait {
		return follow(ctx, api, s, r)
	}
	s.remark("to see how it goes: webhooks replay status %s --follow", harmless(r.names()))
	return r.show(s)
}

type replayRecoverCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	keyFlag      `embed:""`
	Subscription string `arg:"" help:"Id of the subscription."`
	Since        string `name:"since" required:"" placeholder:"TIME" help:"What ended since then: a time (RFC 3339), or how long ago, such as 2h."`
	Wait         bool   `name:"wait" help:"Show how it goes until it has ended."`
}

// Help implements kong.HelpProvider.
func (c *replayRecoverCmd) Help() string {
	return "Each event of which a delivery to the subscription ended dead or discarded since then is sent once. A recovery is a replay: its status is shown and it is " +
		"cancelled as any other's."
}

// Run starts it.
func (c *replayRecoverCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *replayRecoverCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	return begin(ctx, api, s, pathOf("webhooks", c.Subscription, "recover"), map[string]any{"since": point(s, "since", c.Since)}, c.Key, c.Wait)
}

type replayStatusCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	Subscription string `arg:"" help:"Id of the subscription."`
	Replay       string `arg:"" help:"Id of the replay."`
	Follow       bool   `name:"follow" short:"f" help:"Show how it goes until it has ended."`
}

// Run shows it.
func (c *replayStatusCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *replayStatusCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	var answer replayAnswer
	if err := api.get(ctx, pathOf("webhooks", c.Subscription, "replays", c.Replay), nil, &answer); err != nil {
		return err
	}
	if c.Follow {
		return follow(ctx, api, s, answer.Replay)
	}
	return answer.Replay.show(s)
}

type replayListCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	Subscription string `arg:"" help:"Id of the subscription."`
	Limit        int    `name:"limit" default:"50" help:"How many to list."`
	All          bool   `name:"all" help:"List all there are."`
}

// Run lists them.
func (c *replayListCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *replayListCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	if c.Limit < 1 {
		return &run.UsageError{Err: errors.New("--limit must be at least 1")}
	}
	var found []oneReplay
	more, err := pages(c.Limit, c.All, func(limit int, cursor string) (string, int, error) {
		var page struct {
			Replays    []oneReplay `json:"replays"`
			NextCursor string      `json:"next_cursor"`
		}
		query := url.Values{"limit": {strconv.Itoa(limit)}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		err := api.get(ctx, pathOf("webhooks", c.Subscription, "replays"), query, &page)
		found = append(found, page.Replays...)
		return page.NextCursor, len(page.Replays), err
	})
	if err != nil {
		return err
	}
	if more {
		s.remark("there are more: see --all and --limit")
	}
	if s.json {
		raw := make([]json.RawMessage, len(found))
		for i, r := range found {
			raw[i] = r.raw
		}
		return s.document(map[string]any{"replays": raw})
	}
	rows := make([][]string, len(found))
	for i, r := range found {
		rows[i] = []string{s.time(r.CreatedAt), r.ID, r.Source, r.State, r.progress(), r.left(), r.CreatedBy, r.Reason}
	}
	return s.table([]string{"CREATED", "REPLAY", "OF", "STATE", "MADE", "LEFT", "BY", "REASON"}, rows)
}

type replayCancelCmd struct {
	apiFlags     `embed:""`
	outputFlag   `embed:""`
	Subscription string `arg:"" help:"Id of the subscription."`
	Replay       string `arg:"" help:"Id of the replay."`
}

// Run cancels it.
func (c *replayCancelCmd) Run(ctx context.Context) error {
	return c.withAPI(ctx, func(api *apiClient) error { return c.run(ctx, api, c.screen()) })
}

func (c *replayCancelCmd) run(ctx context.Context, api *apiClient, s *screen) error {
	var answer replayAnswer
	// It can be repeated as it is: cancelling twice is cancelling.
	if err := api.do(ctx, http.MethodDelete, pathOf("webhooks", c.Subscription, "replays", c.Replay), nil, nil, &answer, ""); err != nil {
		return err
	}
	return answer.Replay.show(s)
}
