// Package api is the HTTP API: sign-in, appointments, subscriptions and what became of deliveries.
package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/cors"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// Config of the API. HandoverWait, Log, Metrics and Now have defaults.
type Config struct {
	Appointments  *appointment.Service
	Subscriptions *subscription.Service
	Redelivery    *redelivery.Service
	Deliveries    *status.Projection
	Users         *session.Users
	Sessions      *session.Store
	// Peers tells requests of the other instances from those of anybody else.
	Peers Peers
	// Origins are the web pages' origins ("https://app.example.org") from which
	// browsers may use the API with the session's cookie.
	Origins []string
	// Proxies are the networks of the proxies before the API: only their
	// X-Forwarded-For is believed.
	Proxies []netip.Prefix
	// HandoverWait is how long a command waits for somebody to write its
	// calendar before it is answered with 503. Default 5 s.
	HandoverWait time.Duration
	Log          *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Now is the clock of the metrics.
	Now func() time.Time
}

// Peers vouches for what is sent to the other instances.
type Peers interface {
	// Vouch returns a proof, which fits in a header, that the parts come from an
	// instance.
	Vouch(parts ...[]byte) string
	// Vouched says whether the proof is of the parts.
	Vouched(proof string, parts ...[]byte) bool
}

func (c Config) withDefaults() (Config, error) {
	if c.HandoverWait == 0 {
		c.HandoverWait = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Appointments == nil || c.Subscriptions == nil || c.Redelivery == nil || c.Deliveries == nil || c.Users == nil || c.Sessions == nil || c.Peers == nil:
		return c, errors.New("api: Config needs Appointments, Subscriptions, Redelivery, Deliveries, Users, Sessions and Peers")
	case c.HandoverWait < 0:
		return c, fmt.Errorf("api: a hand-over wait of %v makes no sense", c.HandoverWait)
	}
	return c, nil
}

// readTimeout bounds questions while the log can't be reached.
const readTimeout = 10 * time.Second

// server answers requests.
type server struct {
	cfg     Config
	origins *http.CrossOriginProtection
	forward *http.Client
	metrics *metrics
}

// New makes the handler of everything under /api. Any other path is answered
// with 404.
func New(cfg Config) (http.Handler, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, origins: http.NewCrossOriginProtection(), forward: newForwarder(cfg.HandoverWait)}
	for _, origin := range cfg.Origins {
		if strings.Contains(origin, "*") {
			return nil, fmt.Errorf("the origin %q has a *: with cookies, each origin must be named", origin)
		}
		if err := s.origins.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("the origin %q is not of the form https://HOST: %w", origin, err)
		}
	}
	if s.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}

	r := chi.NewRouter()
	r.Use(s.observe, s.recoverPanics, secure)
	if len(cfg.Origins) > 0 { // without any, the middleware would let in all
		r.Use(cors.Handler(cors.Options{
			AllowedOrigins:   cfg.Origins,
			AllowedMethods:   []string{"GET", "POST", "PUT", "DELETE", "OPTIONS"},
			AllowedHeaders:   []string{"Content-Type", "Authorization", "If-Match", "Idempotency-Key"},
			ExposedHeaders:   []string{"ETag", "Retry-After"},
			AllowCredentials: true,
			MaxAge:           300,
		}))
	}
	r.Use(middleware.GetHead)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &problem{status: http.StatusNotFound, code: "not_found", message: "There is nothing at this path"})
	})
	r.MethodNotAllowed(s.methodNotAllowed(r))
	s.routes(r)
	return r, nil
}

// routes is the API's table.
func (s *server) routes(r chi.Router) {
	r.Post("/api/auth/login", s.login)
	r.Group(func(r chi.Router) {
		r.Use(s.signedIn)
		r.Post("/api/auth/logout", s.logout)
		r.Get("/api/auth/me", s.me)
		r.Get("/api/appointments/types", s.types)
		r.Get("/api/appointments/statuses", s.statuses)
	})
	r.Group(func(r chi.Router) {
		r.Use(s.signedIn, s.only(session.Admin, session.Staff, session.Provider, session.Patient))
		r.Post("/api/appointments", s.createAppointment)
		r.Get("/api/appointments", s.listAppointments)
		r.Get("/api/appointments/available-slots", s.slots)
		r.Get("/api/appointments/{id}", s.getAppointment)
		r.Put("/api/appointments/{id}", s.changeAppointment)
		r.Get("/api/appointments/{id}/history", s.history)
		r.Post("/api/appointments/{id}/cancel", s.move(appointment.Cancelled, "Appointment cancelled successfully"))
		r.Post("/api/appointments/{id}/confirm", s.move(appointment.Confirmed, "Appointment confirmed successfully"))
		r.Post("/api/appointments/{id}/complete", s.move(appointment.Completed, "Appointment completed successfully"))
		r.Post("/api/appointments/{id}/no-show", s.move(appointment.NoShow, "Appointment marked as no-show"))
	})
	r.Group(func(r chi.Router) {
		r.Use(s.signedIn, s.only(session.Admin, session.Integrator))
		r.Post("/api/webhooks", s.createSubscription)
		r.Get("/api/webhooks", s.listSubscriptions)
		r.Get("/api/webhooks/events", s.events)
		r.Get("/api/webhooks/{id}", s.getSubscription)
		r.Put("/api/webhooks/{id}", s.changeSubscription)
		r.Delete("/api/webhooks/{id}", s.deleteSubscription)
		r.Post("/api/webhooks/{id}/replays", s.createReplay)
		r.Get("/api/webhooks/{id}/replays", s.listReplays)
		r.Get("/api/webhooks/{id}/replays/{replay}", s.getReplay)
		r.Delete("/api/webhooks/{id}/replays/{replay}", s.cancelReplay)
		r.Post("/api/webhooks/{id}/recover", s.recoverDeliveries)
		r.Post("/api/webhooks/{id}/test", s.sendTest)
		r.Post("/api/deliveries/{id}/resend", s.resend)
		r.Get("/api/webhooks/{id}/deliveries", s.listDeliveries)
		r.Get("/api/webhooks/{id}/stats", s.stats)
		r.Get("/api/deliveries/{id}", s.getDelivery)
	})
}

// methodNotAllowed answers with the methods that the path has.
func (s *server) methodNotAllowed(routes chi.Routes) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if r.URL.RawPath != "" {
			path = r.URL.RawPath
		}
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
			if routes.Match(chi.NewRouteContext(), method, path) {
				allowed = append(allowed, method)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		s.fail(w, r, &problem{
			status: http.StatusMethodNotAllowed, code: "method_not_allowed",
			message: "This path takes " + strings.Join(allowed, ", ") + " only",
		})
	}
}
