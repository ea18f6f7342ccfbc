package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// appointmentJSON is an appointment as answers show it.
type appointmentJSON struct {
	ID        string             `json:"id"`
	Patient   string             `json:"patient_id"`
	Provider  string             `json:"provider_id"`
	Date      string             `json:"appointment_date"`
	Start     string             `json:"start_time"`
	End       string             `json:"end_time"`
	Type      string             `json:"appointment_type"`
	Status    appointment.Status `json:"status"`
	Notes     string             `json:"notes"`
	Location  string             `json:"location"`
	CreatedAt time.Time          `json:"created_at"`
	UpdatedAt time.Time          `json:"updated_at"`
	Version   int                `json:"version"`
}

func showAppointment(a *appointment.Appointment) appointmentJSON {
	return appointmentJSON{
		ID: a.ID, Patient: a.PatientID, Provider: a.ProviderID, Date: a.Date, Start: a.Start, End: a.End,
		Type: a.Type, Status: a.Status, Notes: a.Notes, Location: a.Location,
		CreatedAt: a.CreatedAt.UTC(), UpdatedAt: a.UpdatedAt.UTC(), Version: a.Version,
	}
}

type appointmentBody struct {
	Success     bool            `json:"success"`
	Message     string          `json:"message,omitempty"`
	Appointment appointmentJSON `json:"appointment"`
}

func oneAppointment(status int, message string, a *appointment.Appointment) answer {
	return answer{status: status, version: a.Version, body: appointmentBody{true, message, showAppointment(a)}}
}

func (s *server) createAppointment(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	var patient, provider, date, start, end, kind, notes, location *string
	if err == nil {
		who, when, from, to := text("patient_id", &patient), text("appointment_date", &date), text("start_time", &start), text("end_time", &end)
		err = decode(body, who, text("provider_id", &provider), when, from, to,
			text("appointment_type", &kind), text("notes", &notes), text("location", &location))
		if err == nil {
			err = required(who, when, from, to)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	create := appointment.Create{
		PatientID: *patient, ProviderID: value(provider), Date: *date, Start: *start, End: *end,
		Type: value(kind), Notes: value(notes), Location: value(location),
	}
	if create.ProviderID == "" {
		create.ProviderID = signedInUser(r).ID
	}
	s.command(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		a, err := s.cfg.Appointments.Create(ctx, m, create)
		if err != nil {
			return answer{}, err
		}
		return oneAppointment(http.StatusCreated, "Appointment created successfully", a), nil
	})
}

// changeAppointment takes any of the mutable fields. The front end repeats
// those that can't be changed.
func (s *server) changeAppointment(w http.ResponseWriter, r *http.Request) {
	version, err := ifMatch(r)
	var body []byte
	if err == nil {
		body, err = readBody(w, r)
	}
	c := appointment.Change{ID: pathID(r), IfVersion: version}
	var id, status, reason *string
	if err == nil {
		err = decode(body, text("id", &id), text("patient_id", &c.PatientID), text("provider_id", &c.ProviderID),
			text("appointment_date", &c.Date), text("start_time", &c.Start), text("end_time", &c.End),
			text("appointment_type", &c.Type), text("notes", &c.Notes), text("location", &c.Location),
			text("status", &status), text("reason", &reason))
	}
	switch {
	case err != nil:
	case id != nil && *id != c.ID:
		err = appointment.Invalid("id", "can't be changed")
	case reason != nil && value(status) != string(appointment.Cancelled):
		err = appointment.Invalid("reason", "goes with the status cancelled only")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	c.Reason = value(reason)
	if status != nil {
		to := appointment.Status(*status)
		c.Status = &to
	}
	s.change(w, r, body, c, "Appointment updated successfully")
}

// move takes the step to a status.
func (s *server) move(to appointment.Status, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		version, err := ifMatch(r)
		var body []byte
		if err == nil {
			body, err = readBody(w, r)
		}
		var reason *string
		switch {
		case err != nil:
		case to == appointment.Cancelled:
			err = decode(body, text("reason", &reason))
		default:
			err = decode(body)
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.change(w, r, body, appointment.Change{
			ID: pathID(r), Status: &to, Reason: value(reason), Move: true, IfVersion: version,
		}, message)
	}
}

func (s *server) change(w http.ResponseWriter, r *http.Request, body []byte, c appointment.Change, message string) {
	user := signedInUser(r)
	s.command(w, r, body, func(ctx context.Context, m appointment.Meta) (answer, error) {
		m.Allowed = func(a *appointment.Appointment) bool { return allowed(user)(a) && mayChange(user, a, c) }
		a, err := s.cfg.Appointments.Change(ctx, m, c)
		if err != nil {
			return answer{}, err
		}
		return oneAppointment(http.StatusOK, message, a), nil
	})
}

// pathID returns the id in the path; browsers escape its colon.
func pathID(r *http.Request) string {
	return pathPart(r, "id")
}

// pathPart returns a part of the path, as the client meant it.
func pathPart(r *http.Request, name string) string {
	raw := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return raw // chi took it from the path, where nothing is escaped
	}
	id, err := url.PathUnescape(raw)
	if err != nil {
		return raw
	}
	return id
}

// find returns an appointment that the user may see.
func (s *server) find(ctx context.Context, r *http.Request) (*appointment.Appointment, error) {
	a, err := s.cfg.Appointments.Get(ctx, pathID(r))
	if err != nil {
		return nil, err
	}
	if !allowed(signedInUser(r))(a) {
		return nil, denied()
	}
	return a, nil
}

func (s *server) getAppointment(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		a, err := s.find(ctx, r)
		if err != nil {
			return answer{}, err
		}
		return oneAppointment(http.StatusOK, "", a), nil
	})
}

// question answers a request that changes nothing.
func (s *server) question(w http.ResponseWriter, r *http.Request, ask func(context.Context) (answer, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	a, err := ask(ctx)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.succeed(w, r, a)
}

// list is the body of every answer that lists appointments.
type appointmentsBody struct {
	Success      bool              `json:"success"`
	Appointments []appointmentJSON `json:"appointments"`
	Total        int               `json:"total"` // on all pages
	NextCursor   string            `json:"next_cursor,omitzero"`
}

func (s *server) listAppointments(w http.ResponseWriter, r *http.Request) {
	user, q := signedInUser(r), r.URL.Query()
	f := appointment.Filter{
		Date: q.Get("date"), PatientID: q.Get("patient_id"), ProviderID: q.Get("provider_id"),
		Status: appointment.Status(q.Get("status")),
	}
	switch { // who is shown only their own asks for it
	case user.Role == session.Provider && f.ProviderID == "":
		f.ProviderID = user.ID
	case user.Role == session.Patient && f.PatientID == "":
		f.PatientID = user.ID
	}
	s.question(w, r, func(ctx context.Context) (answer, error) {
		if err := checkFilter(user, f); err != nil {
			return answer{}, err
		}
		found, err := s.cfg.Appointments.List(ctx, f, allowed(user))
		if err != nil {
			return answer{}, err
		}
		body := appointmentsBody{Success: true, Total: len(found)}
		found, body.NextCursor, err = page(r, 0, found, func(a *appointment.Appointment) key {
			return key{a.Date + " " + a.Start, a.ID}
		}, ascending, f.Date, f.PatientID, f.ProviderID, string(f.Status))
		if err != nil {
			return answer{}, err
		}
		body.Appointments = make([]appointmentJSON, len(found))
		for i, a := range found {
			body.Appointments[i] = showAppointment(a)
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

func checkFilter(user session.User, f appointment.Filter) error {
	if f.Date != "" {
		if _, err := time.Parse(time.DateOnly, f.Date); err != nil {
			return appointment.Invalid("date", "must be a date of the form YYYY-MM-DD")
		}
	}
	if f.Status != "" && !known(f.Status) {
		return appointment.Invalid("status", "must be one of scheduled, confirmed, cancelled, completed, no_show")
	}
	// Who asks for somebody else's is told so, rather than shown nothing.
	if user.Role == session.Provider && f.ProviderID != user.ID ||
		user.Role == session.Patient && f.PatientID != "" && f.PatientID != user.ID {
		return denied()
	}
	return nil
}

func known(status appointment.Status) bool {
	for _, l := range appointment.Statuses() {
		if l.Value == string(status) {
			return true
		}
	}
	return false
}

type historyBody struct {
	Success    bool        `json:"success"`
	Events     []eventJSON `json:"events"`
	NextCursor string      `json:"next_cursor,omitzero"`
}

// eventJSON is an event as the history shows it: what, when, by whom, and the
// appointment after it.
type eventJSON struct {
	ID        string      `json:"id"`
	Event     string      `json:"event"`
	Timestamp time.Time   `json:"timestamp"`
	Actor     string      `json:"actor"`
	Version   int         `json:"version"`
	Data      events.Data `json:"data"`
}

func (s *server) history(w http.ResponseWriter, r *http.Request) {
	s.question(w, r, func(ctx context.Context) (answer, error) {
		a, err := s.find(ctx, r)
		if err != nil {
			return answer{}, err
		}
		found, err := s.cfg.Appointments.History(ctx, a.ID)
		if err != nil {
			return answer{}, err
		}
		body := historyBody{Success: true}
		found, body.NextCursor, err = page(r, 0, found, func(e events.Event) key {
			return key{fmt.Sprintf("%010d", e.Data.Version), e.ID}
		}, ascending)
		if err != nil {
			return answer{}, err
		}
		body.Events = make([]eventJSON, len(found))
		for i, e := range found {
			body.Events[i] = eventJSON{e.ID, e.Type, e.Time, e.Actor, e.Data.Version, e.Data}
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

type slotsBody struct {
	Success  bool               `json:"success"`
	Date     string             `json:"date"`
	Provider string             `json:"provider_id"`
	Minutes  int                `json:"duration_minutes"`
	Free     []appointment.Free `json:"available_slots"`
}

// defaultDuration of an appointment, in minutes.
const defaultDuration = 30

func (s *server) slots(w http.ResponseWriter, r *http.Request) {
	user, q := signedInUser(r), r.URL.Query()
	body := slotsBody{Success: true, Date: q.Get("date"), Provider: q.Get("provider_id"), Minutes: defaultDuration}
	if body.Provider == "" {
		body.Provider = user.ID
	}
	s.question(w, r, func(ctx context.Context) (answer, error) {
		if d := q.Get("duration"); d != "" {
			var err error
			if body.Minutes, err = strconv.Atoi(d); err != nil {
				return answer{}, appointment.Invalid("duration", "must be a number of minutes")
			}
		}
		if body.Date == "" {
			return answer{}, appointment.Invalid("date", "is required")
		}
		// Patients look for a time with any provider.
		if user.Role == session.Provider && body.Provider != user.ID {
			return answer{}, denied()
		}
		var err error
		body.Free, err = s.cfg.Appointments.Slots(ctx, body.Provider, body.Date, body.Minutes)
		if err != nil {
			return answer{}, fmt.Errorf("find slots: %w", err)
		}
		return answer{status: http.StatusOK, body: body}, nil
	})
}

type typesBody struct {
	Success bool                `json:"success"`
	Types   []appointment.Label `json:"appointment_types"`
}

func (s *server) types(w http.ResponseWriter, r *http.Request) {
	s.succeed(w, r, answer{status: http.StatusOK, body: typesBody{true, appointment.Types()}})
}

type statusesBody struct {
	Success  bool                `json:"success"`
	Statuses []appointment.Label `json:"appointment_statuses"`
}

func (s *server) statuses(w http.ResponseWriter, r *http.Request) {
	s.succeed(w, r, answer{status: http.StatusOK, body: statusesBody{true, appointment.Statuses()}})
}
