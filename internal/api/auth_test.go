package api_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/arsmedicatech/webhooks/internal/session"
)

func TestSignIn(t *testing.T) {
	in := deploy(t).start(t, nil)
	good := `{"username":"admin","password":"` + password + `"}`
	r := in.call("POST", "/api/auth/login", good).want(200)
	token := r.text("token")
	if r.text("message") == "" || r.text("user", "id") != "user:admin" || r.text("user", "username") != "admin" || r.text("user", "role") != "admin" {
		t.Errorf("answer %s", r.raw)
	}
	if got := r.header.Get("Set-Cookie"); got != "session="+token+"; Path=/; HttpOnly; SameSite=Lax" {
		t.Errorf("cookie %q", got)
	}
	if got := in.call("POST", "/api/auth/login", good, "X-Forwarded-Proto", "https").header.Get("Set-Cookie"); !strings.Contains(got, "; Secure") {
		t.Errorf("cookie by TLS %q", got)
	}
	if h := r.header; h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", h)
	}
	in.call("GET", "/api/auth/me", "", "Authorization", "Bearer "+token).want(200)
	if r := in.call("GET", "/api/auth/me", "", "Cookie", "session="+token).want(200); r.text("user", "id") != "user:admin" {
		t.Errorf("answer %s", r.raw)
	}
	for _, wrong := range [][2]string{
		{"Cookie", "session=x"}, {"Authorization", "Bearer " + token + "x"}, {"Authorization", "Basic " + token}, {"Cookie", "other=" + token}, {"X", ""},
	} {
		r := in.call("GET", "/api/auth/me", "", wrong[0], wrong[1]).refused(401, "not_signed_in")
		if r.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("headers %v", r.header)
		}
	}
	r = in.call("POST", "/api/auth/logout", "", "Cookie", "session="+token).want(200)
	if r.text("user", "id") != "user:admin" || !strings.Contains(r.header.Get("Set-Cookie"), "session=; Path=/; Max-Age=0") {
		t.Errorf("answer %s, cookie %q", r.raw, r.header.Get("Set-Cookie"))
	}
	in.call("GET", "/api/auth/me", "", "Cookie", "session="+token).refused(401, "not_signed_in")
	in.call("POST", "/api/auth/logout", "").refused(401, "not_signed_in")
}

func TestSignInRefuses(t *testing.T) {
	in := deploy(t).start(t, nil)
	for name, body := range map[string]string{
		"wrong password": `{"username":"staff","password":"guess-7"}`,
		"unknown user":   `{"username":"nobody","password":"guess-7"}`,
	} {
		if r := in.call("POST", "/api/auth/login", body).refused(401, "invalid_credentials"); strings.Contains(r.raw, "guess") {
			t.Errorf("%s: the answer repeats the password: %s", name, r.raw)
		}
	}
	in.call("POST", "/api/auth/login", "").refused(400, "invalid_input", "username", "password")
	in.call("POST", "/api/auth/login", `{"username":"staff"}`).refused(400, "invalid_input", "password")
	in.call("POST", "/api/auth/login", `{"username":"staff","password":7}`).refused(400, "invalid_input", "password")
}

func TestSignInLimit(t *testing.T) {
	in := deploy(t).start(t, nil)
	for range 10 {
		in.call("POST", "/api/auth/login", `{"username":"staff","password":"x"}`).refused(401, "invalid_credentials")
	}
	// Also with the right password, and, as the address is one, for other users.
	for _, role := range []string{"staff", "admin"} {
		r := in.call("POST", "/api/auth/login", `{"username":"`+role+`","password":"`+password+`"}`).refused(429, "too_many_sign_ins")
		if s, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || s < 1 || s > 300 {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
}

func TestSessionsUnavailable(t *testing.T) {
	d := deploy(t)
	d.redis = &redis.Options{Addr: "127.0.0.1:1"}
	in := d.start(t, nil)
	for _, r := range []*reply{
		in.call("POST", "/api/auth/login", `{"username":"admin","password":"x"}`),
		in.call("GET", "/api/auth/me", "", "Authorization", "Bearer "+strings.Repeat("x", 43)),
	} {
		if r.refused(503, "sessions_unavailable").header.Get("Retry-After") != "1" {
			t.Errorf("headers %v", r.header)
		}
	}
}

// What other sites make a browser send has its cookie, but must not count.
func TestCrossSite(t *testing.T) {
	in := deploy(t).start(t, nil)
	admin := in.as(session.Admin)
	cookie := []string{"Cookie", "session=" + admin.token}
	post := func(headers ...string) *reply {
		return in.call("POST", "/api/appointments", booking("patient:1", "provider:1", "10:00", "10:30"), headers...)
	}
	for _, evil := range [][]string{
		{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, {"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "same-site"},
	} {
		post(append(evil, cookie...)...).refused(403, "cross_site")
		in.call("POST", "/api/auth/login", `{}`, evil...).refused(403, "cross_site")
		in.call("GET", "/api/auth/me", "", append(evil, cookie...)...).want(200) // changes nothing
	}
	post(append(cookie, "Sec-Fetch-Site", "cross-site", "Origin", origin)...).want(201)
	// No browser adds a token on its own.
	post("Authorization", "Bearer "+admin.token, "Origin", "https://evil.example").refused(409, "time_conflict")
}

func TestCORS(t *testing.T) {
	in := deploy(t).start(t, nil)
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		r := in.call("OPTIONS", "/api/appointments/x", "", "Origin", origin, "Access-Control-Request-Method", method,
			"Access-Control-Request-Headers", "authorization,content-type,idempotency-key,if-match")
		h := r.header
		if r.status != 200 || h.Get("Access-Control-Allow-Origin") != origin || h.Get("Access-Control-Allow-Credentials") != "true" ||
			h.Get("Access-Control-Allow-Methods") != method {
			t.Errorf("preflight of %s: %d %v", method, r.status, h)
		}
	}
	for _, other := range [][2]string{{"https://evil.example", "POST"}, {origin, "PATCH"}} {
		r := in.call("OPTIONS", "/api/appointments", "", "Origin", other[0], "Access-Control-Request-Method", other[1])
		if r.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("preflight of %v: %v", other, r.header)
		}
	}
	h := in.call("GET", "/api/auth/me", "", "Origin", origin).header // also an error
	if h.Get("Access-Control-Allow-Origin") != origin || h.Get("Access-Control-Allow-Credentials") != "true" ||
		!strings.Contains(http.CanonicalHeaderKey(h.Get("Access-Control-Expose-Headers")), "Etag") {
		t.Errorf("headers %v", h)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	in := deploy(t).start(t, nil)
	in.call("GET", "/", "").refused(404, "not_found")
	in.call("POST", "/api/appointments/x/explode", "").refused(404, "not_found")
	for path, allow := range map[string]string{
		"/api/auth/login": "POST", "/api/appointments": "GET, POST", "/api/webhooks/x": "GET, PUT, DELETE", "/api/appointments/a%3Ab/cancel": "POST",
	} {
		if got := in.call("PATCH", path, "").refused(405, "method_not_allowed").header.Get("Allow"); got != allow {
			t.Errorf("%s allows %q, want %q", path, got, allow)
		}
	}
	if r := in.as(session.Admin).call("HEAD", "/api/auth/me", ""); r.status != 200 || r.raw != "" {
		t.Errorf("HEAD: %d %q", r.status, r.raw)
	}
}

// Whether an appointment took place is said by who gave it, not by the patient.
func TestPatientSettlesNothing(t *testing.T) {
	in := deploy(t).start(t, nil)
	patient := in.as(session.Patient)
	for i, role := range []session.Role{session.Admin, session.Staff, session.Provider} {
		hour := strconv.Itoa(10 + 2*i)
		for id, step := range map[string][2]string{
			patient.book("patient:1", "provider:1", hour+":00", hour+":30"): {"complete", "completed"},
			patient.book("patient:1", "provider:1", hour+":30", hour+":59"): {"no-show", "no_show"},
		} {
			path, put := "/api/appointments/"+id, `{"status":"`+step[1]+`"}`
			for _, before := range []string{"scheduled", "confirmed"} {
				patient.call("PUT", path, `{"status":"`+before+`","notes":"`+before+`"}`).want(http.StatusOK)
				patient.call("POST", path+"/"+step[0], "").refused(http.StatusForbidden, "access_denied")
				patient.call("PUT", path, put).refused(http.StatusForbidden, "access_denied")
			}
			in.as(role).call("POST", path+"/"+step[0], "").want(http.StatusOK)
			patient.call("PUT", path, put).want(http.StatusOK) // says nothing new
			patient.call("POST", path+"/cancel", "").refused(http.StatusConflict, "impossible_transition")
		}
		late := patient.book("patient:1", "provider:1", strconv.Itoa(11+2*i)+":00", strconv.Itoa(11+2*i)+":30")
		patient.call("POST", "/api/appointments/"+late+"/cancel", "").want(http.StatusOK)
	}
}

// Who may do what, with the own appointment and with somebody else's.
func TestAccess(t *testing.T) {
	in := deploy(t).start(t, nil)
	staff := in.as(session.Staff)
	own := staff.book("patient:1", "provider:1", "10:00", "10:30")
	foreign := staff.book("patient:2", "provider:2", "10:00", "10:30")
	for role, may := range map[session.Role]struct{ all, own, hooks bool }{
		session.Admin: {true, true, true}, session.Staff: {true, true, false}, session.Provider: {false, true, false},
		session.Patient: {false, true, false}, session.Integrator: {false, false, true},
	} {
		c := in.as(role)
		try := func(allowed bool, method, path, body string) {
			t.Helper()
			r := c.call(method, path, body)
			if allowed && r.status != 200 || !allowed && (r.status != 403 || r.text("code") != "access_denied") {
				t.Errorf("%s: %s %s: %d %s", role, method, path, r.status, r.raw)
			}
		}
		for id, allowed := range map[string]bool{own: may.own, foreign: may.all} {
			try(allowed, "GET", "/api/appointments/"+id, "")
			try(allowed, "GET", "/api/appointments/"+id+"/history", "")
			try(allowed, "PUT", "/api/appointments/"+id, `{"notes":"`+string(role)+`"}`)
		}
		try(may.own, "GET", "/api/appointments", "")
		try(may.all, "GET", "/api/appointments?provider_id=provider:2&patient_id=patient:2", "")
		try(true, "GET", "/api/appointments/types", "")
		try(may.hooks, "GET", "/api/webhooks", "")
		try(may.hooks, "GET", "/api/webhooks/events", "")
		if !may.hooks {
			try(false, "POST", "/api/webhooks", `{}`)
			try(false, "DELETE", "/api/webhooks/x", "")
		}
		if !may.all {
			try(false, "POST", "/api/appointments/"+foreign+"/cancel", "")
			try(false, "POST", "/api/appointments", booking("patient:2", "provider:2", "12:00", "12:30"))
		}
	}
	for role, total := range map[session.Role]string{session.Admin: "2", session.Provider: "1", session.Patient: "1"} {
		if r := in.as(role).call("GET", "/api/appointments", ""); r.text("total") != total {
			t.Errorf("%s sees %s", role, r.raw)
		}
	}
	in.call("GET", "/api/appointments/"+own, "").refused(401, "not_signed_in")
}
