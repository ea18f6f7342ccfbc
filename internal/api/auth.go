package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/arsmedicatech/webhooks/internal/session"
)

const cookieName = "session"

type userBody struct {
	Success bool         `json:"success"`
	Message string       `json:"message,omitempty"`
	Token   string       `json:"token,omitempty"`
	User    session.User `json:"user"`
}

// login begins a session.
func (s *server) login(w http.ResponseWriter, r *http.Request) {
	if err := s.sameSite(r); err != nil {
		s.fail(w, r, err)
		return
	}
	body, err := readBody(w, r)
	var username, password *string
	if err == nil {
		name, pass := text("username", &username), text("password", &password)
		if err = decode(body, name, pass); err == nil {
			err = required(name, pass)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	user, token, err := s.signIn(r, *username, *password)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	http.SetCookie(w, cookie(r, token))
	s.succeed(w, r, answer{status: http.StatusOK, body: userBody{Success: true, Message: "Signed in successfully", Token: token, User: user}})
}

// signIn verifies the password, within the limits of failed sign-ins.
func (s *server) signIn(r *http.Request, username, password string) (session.User, string, error) {
	ctx := r.Context()
	from := s.address(r)
	try, err := s.cfg.Sessions.Try(ctx, username, from)
	if err != nil {
		if _, ok := errors.AsType[*session.TooManyError](err); ok {
			s.log(r).WarnContext(ctx, "sign-in refused: too many failed", "from", from)
		}
		return session.User{}, "", err
	}
	user, err := s.cfg.Users.Verify(ctx, username, password)
	switch {
	case errors.Is(err, session.ErrWrongPassword):
		// Not the user's name: what is typed there may be a password.
		s.log(r).InfoContext(ctx, "sign-in failed", "from", from)
		return user, "", &problem{status: http.StatusUnauthorized, code: "invalid_credentials", message: "Invalid username or password"}
	case err != nil:
		// The client went away, but the attempt was none.
		_ = try.Withdraw(context.WithoutCancel(ctx)) // it ends with its window anyway
		return user, "", err
	}
	if err := try.Succeeded(ctx); err != nil {
		return user, "", err
	}
	token, err := s.cfg.Sessions.Create(ctx, user)
	if err == nil {
		s.log(r).InfoContext(ctx, "signed in", "user", user.ID, "from", from)
	}
	return user, token, err
}

// address returns where the request came from: an IPv4 address, or the network
// of an IPv6 address, which is what one customer is given.
func (s *server) address(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	ip := s.client(at.Addr(), r.Header.Values("X-Forwarded-For"))
	if ip.Is6() {
		const customer = 64
		return netip.PrefixFrom(ip, customer).Masked().String()
	}
	return ip.String()
}

// client returns the last address that no trusted proxy has: each says whom it
// had the request from, and behind the first that is not trusted anybody can
// have said anything.
func (s *server) client(ip netip.Addr, forwarded []string) netip.Addr {
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for ip = plain(ip); s.trusts(ip) && len(hops) > 0; hops = hops[:len(hops)-1] {
		before, err := netip.ParseAddr(strings.TrimSpace(hops[len(hops)-1]))
		if err != nil {
			break
		}
		ip = plain(before)
	}
	return ip
}

func (s *server) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.Proxies, func(n netip.Prefix) bool { return n.Contains(ip) })
}

func plain(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// cookie returns the session's cookie, or with an empty token the one that
// removes it. It lasts as long as the browser; the session ends in Redis.
func cookie(r *http.Request, token string) *http.Cookie {
	c := &http.Cookie{
		Name: cookieName, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https"),
	}
	if token == "" {
		c.MaxAge = -1
	}
	return c
}

// logout ends the session.
func (s *server) logout(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	if err == nil {
		err = decode(body)
	}
	if err == nil {
		token, _ := credentials(r)
		err = s.cfg.Sessions.Delete(r.Context(), token)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	http.SetCookie(w, cookie(r, ""))
	s.succeed(w, r, answer{status: http.StatusOK, body: userBody{Success: true, Message: "Signed out successfully", User: signedInUser(r)}})
}

func (s *server) me(w http.ResponseWriter, r *http.Request) {
	s.succeed(w, r, answer{status: http.StatusOK, body: userBody{Success: true, User: signedInUser(r)}})
}

// credentials returns the request's token, and whether the browser added it on
// its own.
func credentials(r *http.Request) (token string, ambient bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token), false
	}
	if c, err := r.Cookie(cookieName); err == nil {
		return c.Value, true
	}
	return "", false
}

type userKey struct{}

// signedInUser returns the user that signedIn has found.
func signedInUser(r *http.Request) session.User {
	user, _ := r.Context().Value(userKey{}).(session.User)
	return user
}

// signedIn lets requests of a session pass.
func (s *server) signedIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := s.authenticate(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
	})
}

func (s *server) authenticate(r *http.Request) (session.User, error) {
	none := &problem{status: http.StatusUnauthorized, code: "not_signed_in", message: "Sign in first"}
	token, ambient := credentials(r)
	if token == "" {
		return session.User{}, none
	}
	if ambient {
		if err := s.sameSite(r); err != nil {
			return session.User{}, err
		}
	}
	user, err := s.cfg.Sessions.Get(r.Context(), token)
	if errors.Is(err, session.ErrNoSession) {
		return user, none
	}
	if err != nil {
		return user, err
	}
	// Who was taken from the file, or has another role there since, is what the
	// file says.
	user, ok := s.cfg.Users.ByID(user.ID)
	if !ok {
		return user, none
	}
	return user, nil
}

// sameSite refuses what another site makes a browser send, except the
// configured origins.
func (s *server) sameSite(r *http.Request) error {
	if err := s.origins.Check(r); err != nil {
		return &problem{status: http.StatusForbidden, code: "cross_site", message: "The request comes from another site"}
	}
	return nil
}

// only lets users of the roles pass.
func (s *server) only(roles ...session.Role) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !slices.Contains(roles, signedInUser(r).Role) {
				s.fail(w, r, denied())
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func denied() error {
	return &problem{status: http.StatusForbidden, code: "access_denied", message: "Access denied"}
}
