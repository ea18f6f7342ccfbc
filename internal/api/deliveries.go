package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// attemptJSON is an attempt as answers show it.
type attemptJSON struct {
	Attempt       int        `json:"attempt"`
	At            time.Time  `json:"at"`
	Outcome       string     `json:"outcome"`
	Status        int        `json:"status,omitzero"`
	Error         string     `json:"error,omitzero"`
	LatencyMS     float64    `json:"latency_ms"`
	Answer        string     `json:"answer,omitzero"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitzero"`
}

func showAttempt(a status.Attempt) attemptJSON {
	return attemptJSON{
		Attempt: a.Number, At: a.At, Outcome: a.Outcome, Status: a.Status, Error: a.Error,
		LatencyMS: float64(a.Latency.Microseconds()) / 1000, Answer: a.Answer, NextAttemptAt: timeOrNil(a.NextAttemptAt),
	}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// deliveryHead is what all answers show of a delivery.
type deliveryHead struct {
	ID            string     `json:"delivery_id"`
	Subscription  string     `json:"subscription_id"`
	Event         string     `json:"event"`
	EventPosition string     `json:"event_position,omitzero"`
	Origin        string     `json:"origin,omitzero"`
	Status        string     `json:"status"`
	CreatedAt     time.Time  `json:"created_at"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitzero"`
}

func showHead(d *status.Delivery) deliveryHead {
	return deliveryHead{
		ID: d.ID, Subscription: d.SubscriptionID, Event: d.EventType, EventPosition: d.EventPosition, Origin: d.Origin,
		Status: d.Status, CreatedAt: d.CreatedAt, NextAttemptAt: timeOrNil(d.NextAttemptAt),
	}
}

// listedDelivery is a delivery in a list.
type listedDelivery struct {
	deliveryHead

	AttemptCount int          `json:"attempt_count"`
	LastAttempt  *attemptJSON `json:"last_attempt,omitzero"`
}

type deliveriesBody struct {
	Success    bool             `json:"success"`
	Deliveries []listedDelivery `json:"deliveries"`
	NextCursor string           `json:"next_cursor,omitzero"`
	Behind     int              `json:"behind"`
}

func (s *server) listDeliveries(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		query, err := deliveryQuery(r.URL.Query())
		if err != nil {
			return answer{}, err
		}
		sub, err := s.cfg.Subscriptions.Get(ctx, pathID(r))
		if err != nil {
			return answer{}, err
		}
		query.SubscriptionID = sub.ID
		page, err := s.cfg.Deliveries.Deliveries(ctx, query)
		if err != nil {
			return answer{}, err
		}
		body := deliveriesBody{Success: true, Deliveries: make([]listedDelivery, len(page.Deliveries)), NextCursor: page.NextCursor, Behind: page.Behind}
		for i, d := range page.Deliveries {
			listed := listedDelivery{deliveryHead: showHead(&d), AttemptCount: len(d.Attempts)}
			if n := len(d.Attempts); n > 0 {
				last := showAttempt(d.Attempts[n-1])
				listed.LastAttempt = &last
			}
			body.Deliveries[i] = listed
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

const defaultDeliveries = 50 // of a page

// deliveryStatuses are how deliveries can stand, in the order of their life.
var deliveryStatuses = []string{status.Waiting, status.Retrying, webhook.Delivered, webhook.Dead, webhook.Discarded}

// deliveryQuery reads the parameters of a list of deliveries.
func deliveryQuery(q url.Values) (status.Query, error) {
	query := status.Query{Status: q.Get("status"), EventType: q.Get("event"), Limit: defaultDeliveries, Cursor: q.Get("cursor")}
	var problems []appointment.Problem
	wrong := func(field, problem string) {
		problems = append(problems, appointment.Problem{Field: field, Problem: problem})
	}
	if q.Has("status") && !slices.Contains(deliveryStatuses, query.Status) {
		wrong("status", "must be one of "+strings.Join(deliveryStatuses, ", "))
	}
	if q.Has("event") && (!events.Known(query.EventType) || query.EventType == events.NoShow) {
		wrong("event", "must be one of the events of /api/webhooks/events")
	}
	for field, to := range map[string]*time.Time{"from": &query.From, "to": &query.To} {
		if !q.Has(field) {
			continue
		}
		var err error
		if *to, err = time.Parse(time.RFC3339, q.Get(field)); err != nil {
			wrong(field, "must be a time such as 2026-01-31T08:00:00Z")
		}
	}
	if q.Has("limit") {
		var err error
		if query.Limit, err = strconv.Atoi(q.Get("limit")); err != nil || query.Limit < 1 || query.Limit > status.MaxLimit {
			wrong("limit", fmt.Sprintf("must be a number from 1 to %d", status.MaxLimit))
		}
	}
	if len(problems) > 0 {
		slices.SortFunc(problems, func(a, b appointment.Problem) int { return strings.Compare(a.Field, b.Field) })
		return status.Query{}, appointment.InvalidFields(problems)
	}
	return query, nil
}

// shownDelivery is a delivery by itself.
type shownDelivery struct {
	deliveryHead

	Attempts []attemptJSON `json:"attempts"`
}

type deliveryBody struct {
	Success  bool          `json:"success"`
	Delivery shownDelivery `json:"delivery"`
	Behind   int           `json:"behind"`
}

func (s *server) getDelivery(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		d, behind, err := s.cfg.Deliveries.Delivery(ctx, pathID(r))
		if err != nil {
			return answer{}, err
		}
		body := deliveryBody{Success: true, Delivery: shownDelivery{showHead(d), make([]attemptJSON, len(d.Attempts))}, Behind: behind}
		for i, a := range d.Attempts {
			body.Delivery.Attempts[i] = showAttempt(a)
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

// figuresJSON are figures as answers show them.
type figuresJSON struct {
	Delivered   int          `json:"delivered"`
	Failed      int          `json:"failed"`
	Dead        int          `json:"dead"`
	Discarded   int          `json:"discarded"`
	Attempts    int          `json:"attempts"`
	SuccessRate *float64     `json:"success_rate"` // null without attempts
	LatencyMS   *latencyJSON `json:"latency_ms"`   // null without attempts
}

type latencyJSON struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

func showFigures(f status.Figures) figuresJSON {
	shown := figuresJSON{Delivered: f.Delivered, Failed: f.Failed, Dead: f.Dead, Discarded: f.Discarded, Attempts: f.Attempts()}
	if rate, ok := f.SuccessRate(); ok {
		shown.SuccessRate = &rate
	}
	ms := func(share float64) float64 {
		d, _ := f.Latency(share) // asked for only where there are some
		return float64(d.Microseconds()) / 1000
	}
	if _, ok := f.Latency(1); ok {
		shown.LatencyMS = &latencyJSON{ms(0.5), ms(0.95), ms(0.99)}
	}
	return shown
}

type statsJSON struct {
	FiveMinutes figuresJSON `json:"5m"`
	Hour        figuresJSON `json:"1h"`
	Day         figuresJSON `json:"24h"`
	Waiting     int         `json:"waiting"`
	Retrying    int         `json:"retrying"`
}

type statsBody struct {
	Success bool      `json:"success"`
	Stats   statsJSON `json:"stats"`
	Behind  int       `json:"behind"`
}

func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		sub, err := s.cfg.Subscriptions.Get(ctx, pathID(r))
		if err != nil {
			return answer{}, err
		}
		found, err := s.cfg.Deliveries.Stats(ctx, sub.ID)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: statsBody{true, statsJSON{
			FiveMinutes: showFigures(found.FiveMinutes), Hour: showFigures(found.Hour), Day: showFigures(found.Day),
			Waiting: found.Waiting, Retrying: found.Retrying,
		}, found.Behind}}, nil
	})
}
