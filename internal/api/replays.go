package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
)

// redeliveryTimeout bounds commands that count or look for something first, and
// wait for their turn before that.
const redeliveryTimeout = 40 * time.Second

// anywhere answers a request that changes something and that any instance may
// carry out.
func (s *server) anywhere(w http.ResponseWriter, r *http.Request, body []byte, do func(context.Context, appointment.Meta) (answer, error)) {
	meta, _, err := s.commandMeta(r, body)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), redeliveryTimeout)
	defer cancel()
	a, err := do(ctx, meta)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.succeed(w, r, a)
}

// replayJSON is a replay as answers show it.
type replayJSON struct {
	ID             string `json:"id"`
	SubscriptionID string `json:"subscription_id"`
	Source         string `json:"source"` // events, or attempts for a recovery
	State          string `json:"state"`
	Reason         string `json:"reason,omitzero"`
	// From and To are positions of the source's topic: "0/120,1/88".
	From       string     `json:"from"`
	To         string     `json:"to"`
	Since      *time.Time `json:"since,omitzero"`
	EventNames []string   `json:"event_names"`
	ProviderID string     `json:"provider_id,omitzero"`
	Rate       int        `json:"rate"`
	Total      int64      `json:"total"`
	Estimated  bool       `json:"estimated,omitzero"`
	Done       int64      `json:"done"`
	Unreadable int64      `json:"unreadable,omitzero"`
	PerSecond  float64    `json:"per_second"`
	// EstimateS is how many seconds are left, if that can be told.
	EstimateS *float64  `json:"estimate_s,omitzero"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedAt time.Time `json:"updated_at"`
}

func showReplay(r replay.Replay) replayJSON {
	q := r.Request
	shown := replayJSON{
		ID: q.ID, SubscriptionID: q.SubscriptionID, Source: q.Source, State: r.State(), From: positions(q.From), To: positions(q.To),
		Since: q.Since, EventNames: q.EventNames, ProviderID: q.ProviderID, Rate: q.Rate, Total: q.Total, Estimated: q.Estimated,
		CreatedAt: q.CreatedAt.UTC(), CreatedBy: q.CreatedBy, UpdatedAt: q.CreatedAt.UTC(),
	}
	if p := r.Progress; p != nil {
		shown.To, shown.Reason, shown.Done, shown.Unreadable, shown.UpdatedAt = positions(p.To), p.Reason, p.Done, p.Unreadable, p.UpdatedAt.UTC()
		if took := p.UpdatedAt.Sub(p.StartedAt).Seconds(); took > 0 {
			shown.PerSecond = float64(p.Done) / took
		}
		if shown.State == webhook.ReplayRunning && shown.PerSecond > 0 {
			left := float64(max(0, q.Total-p.Done)) / shown.PerSecond
			shown.EstimateS = &left
		}
	}
	if c := r.Cancel; c != nil && c.At.After(shown.UpdatedAt) {
		shown.UpdatedAt = c.At.UTC()
	}
	return shown
}

// positions writes offsets by partition as they can be asked for.
func positions(offsets []int64) string {
	texts := make([]string, len(offsets))
	for p, offset := range offsets {
		texts[p] = webhook.Position{Partition: int32(p), Offset: offset}.String()
	}
	return strings.Join(texts, ",")
}

type replayBody struct {
	Success bool       `json:"success"`
	Message string     `json:"message,omitzero"`
	Replay  replayJSON `json:"replay"`
}

func oneReplay(status int, message string, r replay.Replay) answer {
	return answer{status: status, body: replayBody{true, message, showReplay(r)}}
}

type countBody struct {
	Success   bool   `json:"success"`
	Message   string `json:"message"`
	Count     int64  `json:"count"`
	Estimated bool   `json:"estimated,omitzero"`
}

func (s *server) createReplay(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	var (
		from, to, provider *string
		names              []string
		dryRun             *bool
		rate               *int
	)
	if err == nil {
		begin := text("from", &from)
		err = decode(body, begin, text("to", &to), list("event_names", &names), text("provider_id", &provider), flag("dry_run", &dryRun), number("rate", &rate))
		if err == nil {
			err = required(begin)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ask := redelivery.Ask{From: *from, To: value(to), EventNames: names, ProviderID: value(provider), Rate: value(rate)}
	s.anywhere(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		if value(dryRun) {
			n, estimated, err := s.cfg.Redelivery.Count(ctx, pathID(r), ask)
			if err != nil {
				return answer{}, err
			}
			message := fmt.Sprintf("Deliveries that the replay would make: %d", n)
			if estimated {
				message = fmt.Sprintf("Deliveries that the replay would make: about %d; the range is too long to be counted in time", n)
			}
			return answer{status: http.StatusOK, body: countBody{true, message, n, estimated}}, nil
		}
		made, err := s.cfg.Redelivery.Replay(ctx, m, pathID(r), ask)
		if err != nil {
			return answer{}, err
		}
		return oneReplay(http.StatusCreated, "Replay started", made), nil
	})
}

func (s *server) recoverDeliveries(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	var since *string
	var at time.Time
	if err == nil {
		when := text("since", &since)
		if err = decode(body, when); err == nil {
			err = required(when)
		}
	}
	if err == nil {
		if at, err = time.Parse(time.RFC3339, *since); err != nil {
			err = appointment.Invalid("since", "must be a time such as 2026-01-31T08:00:00Z")
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.anywhere(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		made, err := s.cfg.Redelivery.Recover(ctx, m, pathID(r), at)
		if err != nil {
			return answer{}, err
		}
		return oneReplay(http.StatusCreated, "Recovery started", made), nil
	})
}

func (s *server) getReplay(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		found, err := s.cfg.Redelivery.Get(ctx, pathID(r), pathPart(r, "replay"))
		if err != nil {
			return answer{}, err
		}
		return oneReplay(http.StatusOK, "", found), nil
	})
}

type replaysBody struct {
	Success bool         `json:"success"`
	Replays []replayJSON `json:"replays"`
	Total   int          `json:"total"`
	// NextCursor is that of the page after; there is none after the last.
	NextCursor string `json:"next_cursor,omitzero"`
}

func (s *server) listReplays(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		found, err := s.cfg.Redelivery.List(ctx, pathID(r))
		if err != nil {
			return answer{}, err
		}
		const usual = 50
		body := replaysBody{Success: true, Replays: []replayJSON{}, Total: len(found)}
		found, body.NextCursor, err = page(r, usual, found, func(one replay.Replay) key {
			return key{byTime(one.Request.CreatedAt), one.Request.ID}
		}, newestFirst)
		if err != nil {
			return answer{}, err
		}
		for _, one := range found {
			body.Replays = append(body.Replays, showReplay(one))
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

func (s *server) cancelReplay(w http.ResponseWriter, r *http.Request) {
	s.withoutBody(w, r, func(ctx context.Context, m appointment.Meta) (answer, error) {
		cancelled, err := s.cfg.Redelivery.Cancel(ctx, m, pathID(r), pathPart(r, "replay"))
		if err != nil {
			return answer{}, err
		}
		return oneReplay(http.StatusOK, "Replay cancelled: what waits of it is not sent any more", cancelled), nil
	})
}

type sentBody struct {
	Success    bool   `json:"success"`
	Message    string `json:"message"`
	DeliveryID string `json:"delivery_id"`
}

func (s *server) resend(w http.ResponseWriter, r *http.Request) {
	s.withoutBody(w, r, func(ctx context.Context, m appointment.Meta) (answer, error) {
		id, err := s.cfg.Redelivery.Resend(ctx, m, pathID(r))
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: sentBody{true, "The event is sent again", id}}, nil
	})
}

func (s *server) sendTest(w http.ResponseWriter, r *http.Request) {
	s.withoutBody(w, r, func(ctx context.Context, m appointment.Meta) (answer, error) {
		id, err := s.cfg.Redelivery.Test(ctx, m, pathID(r))
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: sentBody{true, "An example is sent", id}}, nil
	})
}

// withoutBody answers a command that any instance may carry out and that says
// everything in its path.
func (s *server) withoutBody(w http.ResponseWriter, r *http.Request, do func(context.Context, appointment.Meta) (answer, error)) {
	body, err := readBody(w, r)
	if err == nil {
		err = decode(body)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.anywhere(w, r, body, do)
}
