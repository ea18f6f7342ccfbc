package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/writer"
)

// lookAgain is how often a command that nobody takes looks for somebody who
// does; the services ask Kafka who that is once a second at most.
const lookAgain = 50 * time.Millisecond

// command answers a request that changes something. do carries it out, or says
// who does: then the request goes there. While nobody writes what it is about,
// it waits.
func (s *server) command(w http.ResponseWriter, r *http.Request, body []byte, do func(context.Context, appointment.Meta) (answer, error)) {
	meta, forwarded, err := s.commandMeta(r, body)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.HandoverWait)
	defer cancel()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		a, err := do(ctx, meta)
		if err == nil {
			s.succeed(w, r, a)
			return
		}
		if elsewhere, ok := errors.AsType[*appointment.ElsewhereError](err); ok {
			if forwarded {
				s.fail(w, r, misdirected())
				return
			}
			var there *http.Response
			there, err = s.pass(r, body, elsewhere.URL, meta.Command) //nolint:bodyclose // send has read and closed it
			if err == nil {
				relay(w, there)
				return
			}
		}
		if !errors.Is(err, writer.ErrNotOwner) || errors.Is(err, writer.ErrUnknown) {
			s.fail(w, r, err)
			return
		}
		select {
		case <-ctx.Done():
			s.fail(w, r, err)
			return
		case <-tick.C:
		}
	}
}

// commandMeta returns what comes with a command besides what it asks for, and
// whether another process sent it here.
func (s *server) commandMeta(r *http.Request, body []byte) (m appointment.Meta, forwarded bool, err error) {
	user := signedInUser(r)
	m = appointment.Meta{Actor: user.ID, Allowed: allowed(user)}
	m.Command = r.Header.Get(headerCommand)
	if forwarded = m.Command != "" && s.cfg.Peers.Vouched(r.Header.Get(headerProof), vouched(r, body, m.Command)...); !forwarded {
		m.Command = uuid.NewString()
	}
	key := r.Header.Get(headerKey)
	switch {
	case r.Method != http.MethodPost || r.Header.Values(headerKey) == nil:
	case !validKey(key) || len(r.Header.Values(headerKey)) > 1:
		return m, forwarded, badRequest("invalid_idempotency_key", "Idempotency-Key must have between 1 and 255 printable ASCII characters")
	default:
		// The log keeps the fingerprint. With the key in it, which the log does not
		// have, nobody can tell a body, and with it a secret, by trying.
		m.Idempotency = appointment.Fingerprint(user.ID, r.URL.Path, key, append([]byte(key+"\x00"), body...))
	}
	return m, forwarded, nil
}

func validKey(key string) bool {
	const longest = 255
	if key == "" || len(key) > longest {
		return false
	}
	return strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// allowed returns which appointments the user may have to do with.
func allowed(user session.User) func(*appointment.Appointment) bool {
	return func(a *appointment.Appointment) bool {
		switch user.Role {
		case session.Admin, session.Staff:
			return true
		case session.Provider:
			return a.ProviderID == user.ID
		case session.Patient:
			return a.PatientID == user.ID
		case session.Integrator:
		}
		return false
	}
}

// mayChange says whether the user may make that change of an appointment that is
// theirs. Whether it took place is not for the patient to say; they may repeat what
// was said, as the front end does with all that it knows.
func mayChange(user session.User, a *appointment.Appointment, c appointment.Change) bool {
	if user.Role != session.Patient || c.Status == nil || *c.Status == a.Status {
		return true
	}
	return *c.Status != appointment.Completed && *c.Status != appointment.NoShow
}

// ifMatch returns the version that the request is meant for, 0 for any.
func ifMatch(r *http.Request) (int, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return 0, nil
	}
	tag := strings.TrimSpace(values[0])
	if len(values) == 1 && tag == "*" {
		return 0, nil
	}
	if digits, ok := strings.CutPrefix(tag, `"`); ok && len(values) == 1 {
		if digits, ok = strings.CutSuffix(digits, `"`); ok {
			version, err := strconv.Atoi(digits)
			if err == nil && version > 0 && strconv.Itoa(version) == digits {
				return version, nil
			}
		}
	}
	return 0, badRequest("invalid_if_match", `If-Match must be * or the ETag of one earlier answer, such as "3"`)
}
