package api

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// problem is an error as the client is told it.
type problem struct {
	status  int
	code    string // stable, snake_case
	message string // one sentence
	details []appointment.Problem
	// wait is sent as Retry-After, in whole seconds, unless it is 0.
	wait time.Duration
	// nothingDone marks the answer to a forwarded command that another process
	// should have got.
	nothingDone bool
}

func (p *problem) Error() string { return p.message }

// errorBody is the JSON of every answer that is no success.
type errorBody struct {
	Success bool                  `json:"success"`
	Error   string                `json:"error"`
	Code    string                `json:"code"`
	Details []appointment.Problem `json:"details,omitempty"`
}

// retrySoon is what clients are asked to wait for while the log or Redis can't be
// reached or a calendar changes hands.
const retrySoon = time.Second

// explain says what the client is told of an error.
func explain(err error) *problem {
	var (
		known   *problem
		refused *appointment.Refusal
		tooMany *session.TooManyError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &refused):
		return &problem{status: statusOf(refused.Kind), code: refused.Code, message: refused.Message, details: refused.Details}
	case errors.As(err, &tooMany):
		return &problem{
			status: http.StatusTooManyRequests, code: "too_many_sign_ins",
			message: "Too many sign-ins failed: wait before the next", wait: tooMany.Wait,
		}
	case errors.Is(err, status.ErrNotFound):
		return &problem{status: http.StatusNotFound, code: "delivery_not_found", message: "There is no such delivery, or it is too old to be shown"}
	case errors.Is(err, status.ErrCursor):
		return explain(appointment.Invalid("cursor", "must be the next_cursor of an earlier answer"))
	case errors.Is(err, status.ErrUnavailable):
		return unavailable("status_unavailable", "The status of deliveries can't be looked up at the moment: try again")
	case errors.Is(err, session.ErrUnavailable):
		return unavailable("sessions_unavailable", "Sessions can't be looked up at the moment: try again")
	case errors.Is(err, redelivery.ErrBusy):
		return unavailable("too_busy", "Too many ranges are being counted and deliveries looked for at the moment, and nothing was done: "+
			"repeat the request, a command with the same Idempotency-Key")
	case errors.Is(err, writer.ErrUnknown):
		return unknownOutcome()
	case errors.Is(err, writer.ErrNotOwner):
		return unavailable("handover", "Nobody writes this calendar at the moment, and nothing was changed: "+
			"repeat the request with the same Idempotency-Key")
	case errors.Is(err, appointment.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("unavailable", "The log can't be reached at the moment: "+
			"repeat the request, a command with the same Idempotency-Key")
	}
	return &problem{status: http.StatusInternalServerError, code: "internal_error", message: "Something went wrong on our side"}
}

func statusOf(kind appointment.Kind) int {
	switch kind {
	case appointment.NotFound:
		return http.StatusNotFound
	case appointment.Forbidden:
		return http.StatusForbidden
	case appointment.Conflict:
		return http.StatusConflict
	case appointment.Stale:
		return http.StatusPreconditionFailed
	case appointment.BadInput:
	}
	return http.StatusBadRequest
}

func unavailable(code, message string) *problem {
	return &problem{status: http.StatusServiceUnavailable, code: code, message: message, wait: retrySoon}
}

func unknownOutcome() *problem {
	return unavailable("outcome_unknown", "It is unknown whether the command was carried out: "+
		"repeat it with the same Idempotency-Key")
}

// fail answers with an error.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := explain(err)
	switch {
	case p.status == http.StatusInternalServerError:
		s.log(r).ErrorContext(r.Context(), "request failed", "error", err)
	case p.status == http.StatusServiceUnavailable && r.Context().Err() == nil:
		s.log(r).WarnContext(r.Context(), "request can't be served at the moment", "code", p.code, "error", err)
	}
	h := w.Header()
	if p.wait > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.wait.Seconds()))))
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if p.nothingDone {
		h.Set(headerOutcome, nothingDone)
	}
	s.write(w, r, p.status, errorBody{Error: p.message, Code: p.code, Details: p.details})
}

// log returns a logger that names the route, not the path: the latter has ids.
func (s *server) log(r *http.Request) *slog.Logger {
	return s.cfg.Log.With("method", method(r), "route", route(r))
}

// route returns the pattern of the request's route.
func route(r *http.Request) string {
	if c := chi.RouteContext(r.Context()); c != nil {
		if pattern := c.RoutePattern(); pattern != "" {
			return pattern
		}
	}
	return "none"
}

// answer is a success.
type answer struct {
	status  int
	version int // sent as ETag, unless it is 0
	body    any // its JSON is an object with "success": true
}

func (s *server) succeed(w http.ResponseWriter, r *http.Request, a answer) {
	if a.version > 0 {
		w.Header().Set("ETag", `"`+strconv.Itoa(a.version)+`"`)
	}
	s.write(w, r, a.status, a.body)
}

// write sends a body, whose JSON it is.
func (s *server) write(w http.ResponseWriter, r *http.Request, status int, body any) {
	content, err := json.Marshal(body)
	if err != nil {
		s.log(r).ErrorContext(r.Context(), "answer can't be encoded", "error", err)
		status, content = http.StatusInternalServerError,
			[]byte(`{"success":false,"error":"Something went wrong on our side","code":"internal_error"}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(append(content, '\n')) // who went away is not told
}
