package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// subscriptionJSON is a subscription as answers show it: without its secret.
type subscriptionJSON struct {
	ID        string    `json:"id"`
	EventName string    `json:"event_name"`
	TargetURL string    `json:"target_url"`
	Enabled   bool      `json:"enabled"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Version   int       `json:"version"`
	// RateLimit and Disabled are left out when there is none.
	RateLimit *webhook.RateLimit `json:"rate_limit,omitzero"`
	Disabled  *webhook.Disabled  `json:"disabled,omitzero"`
}

func showSubscription(sub *webhook.Subscription) subscriptionJSON {
	return subscriptionJSON{
		ID: sub.ID, EventName: sub.EventName, TargetURL: sub.TargetURL, Enabled: sub.Enabled,
		CreatedAt: sub.CreatedAt.UTC(), UpdatedAt: sub.UpdatedAt.UTC(), Version: sub.Version,
		RateLimit: sub.RateLimit, Disabled: sub.Disabled,
	}
}

type subscriptionBody struct {
	Success      bool             `json:"success"`
	Message      string           `json:"message,omitempty"`
	Subscription subscriptionJSON `json:"subscription"`
}

func oneSubscription(status int, message string, sub *webhook.Subscription) answer {
	return answer{status: status, version: sub.Version, body: subscriptionBody{true, message, showSubscription(sub)}}
}

func (s *server) createSubscription(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	var eventName, targetURL, secret *string
	var enabled *bool
	var limit *webhook.RateLimit
	if err == nil {
		name, target, key := text("event_name", &eventName), text("target_url", &targetURL), text("secret", &secret)
		if err = decode(body, name, target, key, flag("enabled", &enabled), rateLimit(func(l *webhook.RateLimit) { limit = l })); err == nil {
			err = required(name, target, key)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	create := subscription.Create{EventName: *eventName, TargetURL: *targetURL, Secret: *secret, Enabled: enabled == nil || *enabled, RateLimit: limit}
	s.command(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		sub, err := s.cfg.Subscriptions.Create(ctx, m, create)
		if err != nil {
			return answer{}, err
		}
		return oneSubscription(http.StatusCreated, "Webhook subscription created successfully", sub), nil
	})
}

func (s *server) changeSubscription(w http.ResponseWriter, r *http.Request) {
	version, err := ifMatch(r)
	var body []byte
	if err == nil {
		body, err = readBody(w, r)
	}
	c := subscription.Change{IfVersion: version}
	if err == nil {
		err = decode(body, text("event_name", &c.EventName), text("target_url", &c.TargetURL),
			text("secret", &c.Secret), flag("enabled", &c.Enabled), rateLimit(func(l *webhook.RateLimit) { c.RateLimit = &l }))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.command(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		sub, err := s.cfg.Subscriptions.Change(ctx, m, pathID(r), c)
		if err != nil {
			return answer{}, err
		}
		return oneSubscription(http.StatusOK, "Webhook subscription updated successfully", sub), nil
	})
}

// rateLimit is the field of that name; it is handed to to, nil for null. A burst
// that is not said is what a second takes.
func rateLimit(to func(*webhook.RateLimit)) field {
	return field{name: "rate_limit", set: func(value json.RawMessage) error {
		if string(value) == "null" {
			to(nil)
			return nil
		}
		var perSecond, burst *int
		if value[0] != '{' {
			return errors.New("must be an object or null")
		}
		if err := decode(value, number("per_second", &perSecond), number("burst", &burst)); err != nil {
			return err
		}
		if perSecond == nil {
			return appointment.Invalid("per_second", "is required")
		}
		if burst == nil {
			burst = perSecond
		}
		to(&webhook.RateLimit{PerSecond: *perSecond, Burst: *burst})
		return nil
	}}
}

type messageBody struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
}

func (s *server) deleteSubscription(w http.ResponseWriter, r *http.Request) {
	version, err := ifMatch(r)
	var body []byte
	if err == nil {
		body, err = readBody(w, r)
	}
	if err == nil {
		err = decode(body)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.command(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		if err := s.cfg.Subscriptions.Delete(ctx, m, pathID(r), version); err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: messageBody{true, "Webhook subscription deleted successfully"}}, nil
	})
}

func (s *server) getSubscription(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		sub, err := s.cfg.Subscriptions.Get(ctx, pathID(r))
		if err != nil {
			return answer{}, err
		}
		return oneSubscription(http.StatusOK, "", sub), nil
	})
}

type subscriptionsBody struct {
	Success       bool               `json:"success"`
	Subscriptions []subscriptionJSON `json:"subscriptions"`
	Total         int                `json:"total"` // on all pages
	NextCursor    string             `json:"next_cursor,omitzero"`
}

func (s *server) listSubscriptions(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		q := r.URL.Query()
		var enabled *bool
		if q.Has("enabled") {
			on := q.Get("enabled") == "true"
			if !on && q.Get("enabled") != "false" {
				return answer{}, appointment.Invalid("enabled", "must be true or false")
			}
			enabled = &on
		}
		found, err := s.cfg.Subscriptions.List(ctx, q.Get("event_name"), enabled)
		if err != nil {
			return answer{}, err
		}
		body := subscriptionsBody{Success: true, Total: len(found)}
		found, body.NextCursor, err = page(r, 0, found, func(sub *webhook.Subscription) key {
			return key{byTime(sub.CreatedAt), sub.ID}
		}, newestFirst, q.Get("event_name"), q.Get("enabled"))
		if err != nil {
			return answer{}, err
		}
		body.Subscriptions = make([]subscriptionJSON, len(found))
		for i, sub := range found {
			body.Subscriptions[i] = showSubscription(sub)
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

type eventsBody struct {
	Success bool          `json:"success"`
	Events  []events.Kind `json:"events"`
}

func (s *server) events(w http.ResponseWriter, r *http.Request) {
	s.succeed(w, r, answer{status: http.StatusOK, body: eventsBody{true, events.Catalogue()}})
}
