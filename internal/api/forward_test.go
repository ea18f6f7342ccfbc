package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/internal/writer"
)

func bare(t *testing.T, wait time.Duration) *server {
	t.Helper()
	s := &server{cfg: Config{HandoverWait: wait, Log: testenv.Log(t), Peers: peers(t)}, forward: newForwarder(wait)}
	t.Cleanup(s.forward.CloseIdleConnections)
	return s
}

func peers(t *testing.T) *seal.Keyring {
	t.Helper()
	keys, err := seal.Parse(seal.NewKey("test"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// carry has a server answer a command whose outcome is decided by do.
func carry(s *server, do func(try int) (answer, error), headers ...string) *httptest.ResponseRecorder {
	const body = `{"reason":"ill"}`
	r := httptest.NewRequest(http.MethodPost, "/api/appointments/appointment%3A1/cancel?x=a%20b", strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	try := 0
	s.command(w, r, []byte(body), func(context.Context, appointment.Meta) (answer, error) {
		try++
		return do(try)
	})
	return w
}

func notOwner() error {
	return fmt.Errorf("%w: %w", appointment.ErrUnavailable, writer.ErrNotOwner)
}

func TestCommandWaitsForAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bare(t, 5*time.Second)
		w := carry(s, func(try int) (answer, error) {
			if try < 4 {
				return answer{}, notOwner()
			}
			return answer{status: 200, body: messageBody{Success: true}}, nil
		})
		if w.Code != 200 {
			t.Errorf("answer %d %s", w.Code, w.Body)
		}
		began := time.Now()
		w = carry(s, func(int) (answer, error) { return answer{}, notOwner() })
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it waited for %v", took)
		}
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"code":"handover"`) {
			t.Errorf("answer %d %v %s", w.Code, w.Header(), w.Body)
		}
	})
}

func TestUnknownOutcomeIsAnsweredAtOnce(t *testing.T) {
	for name, err := range map[string]error{
		"unknown":             fmt.Errorf("%w: %w", appointment.ErrUnavailable, writer.ErrUnknown),
		"unknown, then moved": fmt.Errorf("%w: %w", writer.ErrUnknown, writer.ErrNotOwner),
	} {
		w := carry(bare(t, time.Hour), func(int) (answer, error) { return answer{}, err })
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"code":"outcome_unknown"`) ||
			!strings.Contains(w.Body.String(), "Idempotency-Key") {
			t.Errorf("%s: answer %d %v %s", name, w.Code, w.Header(), w.Body)
		}
	}
}

func TestForwardedAsItCame(t *testing.T) {
	type request struct {
		*http.Request
		content string
	}
	requests := make(chan request, 1)
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		requests <- request{r, string(content)}
		w.Header().Set("ETag", `"7"`)
		w.Header().Set("Location", "/elsewhere") // a redirection is an answer like others
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.WriteHeader(http.StatusTemporaryRedirect)
		_, _ = io.WriteString(w, `{"success":true}`)
	}))
	defer owner.Close()
	elsewhere := func(int) (answer, error) { return answer{}, &appointment.ElsewhereError{URL: owner.URL + "/"} }
	w := carry(bare(t, time.Minute), elsewhere, "Authorization", "Bearer t", "Cookie", "session=c", "Idempotency-Key", "k",
		"Content-Type", "application/json", "Te", "trailers", "Connection", "X-Mine", "X-Mine", "1", headerCommand, "made up")
	if w.Code != 307 || w.Header().Get("ETag") != `"7"` || w.Body.String() != `{"success":true}` || w.Header().Get("X-Hop") != "" {
		t.Errorf("answer %d %v %s", w.Code, w.Header(), w.Body)
	}
	got := <-requests
	h := got.Header
	if got.Method != http.MethodPost || got.RequestURI != "/api/appointments/appointment%3A1/cancel?x=a%20b" || got.Host != "example.com" || got.content != `{"reason":"ill"}` ||
		h.Get("Authorization") != "Bearer t" || h.Get("Cookie") != "session=c" || h.Get("Idempotency-Key") != "k" || h.Get("Content-Type") != "application/json" {
		t.Errorf("forwarded %s %s to %s with %v and %s", got.Method, got.RequestURI, got.Host, h, got.content)
	}
	if h.Get("Te") != "" || h.Get("X-Mine") != "" || h.Get("Connection") != "" {
		t.Errorf("headers of the connection were forwarded: %v", h)
	}
	if id, err := uuid.Parse(h.Get(headerCommand)); err != nil || id.Version() != 4 {
		t.Errorf("command id %q", h.Get(headerCommand))
	}
}

// What another instance has forwarded is not forwarded again.
func TestForwardedOnce(t *testing.T) {
	s := bare(t, time.Hour)
	yetAnother := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded again") }))
	defer yetAnother.Close()
	var requests atomic.Int32
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		s.command(w, r, body, func(_ context.Context, m appointment.Meta) (answer, error) {
			if m.Command != r.Header.Get(headerCommand) {
				t.Errorf("the command is %s and was forwarded as %s", m.Command, r.Header.Get(headerCommand))
			}
			return answer{}, &appointment.ElsewhereError{URL: yetAnother.URL}
		})
	}))
	defer owner.Close()
	w := carry(s, func(try int) (answer, error) {
		if try == 1 {
			return answer{}, &appointment.ElsewhereError{URL: owner.URL}
		}
		return answer{status: 200, body: messageBody{Success: true}}, nil
	})
	if n := requests.Load(); w.Code != 200 || n != 1 {
		t.Errorf("answer %d after %d requests: %s", w.Code, n, w.Body)
	}
}

// Only another instance can say that it has forwarded a command, and under which
// id; from anybody else it is a command like others.
func TestForwardedByNobody(t *testing.T) {
	s := bare(t, time.Minute)
	id := uuid.NewString()
	request := httptest.NewRequest(http.MethodPost, "/api/appointments/appointment%3A1/cancel?x=a%20b", nil)
	proof := s.cfg.Peers.Vouch(vouched(request, []byte(`{"reason":"ill"}`), id)...)
	for name, c := range map[string]struct {
		id, proof string
		believed  bool
	}{
		"an instance": {id, proof, true}, "no proof": {id, "", false}, "another id": {uuid.NewString(), proof, false}, "no id": {"", proof, false},
		"another's proof": {id, peers(t).Vouch(vouched(request, []byte(`{"reason":"ill"}`), id)...), false},
		"another body":    {id, s.cfg.Peers.Vouch(vouched(request, []byte(`{"reason":"well"}`), id)...), false},
		"nothing":         {"", s.cfg.Peers.Vouch(vouched(request, []byte(`{"reason":"ill"}`), "")...), false},
	} {
		w := httptest.NewRecorder()
		r := request.Clone(t.Context())
		r.Header.Set(headerCommand, c.id)
		r.Header.Set(headerProof, c.proof)
		s.command(w, r, []byte(`{"reason":"ill"}`), func(_ context.Context, m appointment.Meta) (answer, error) {
			if err := uuid.Validate(m.Command); (m.Command == id) != c.believed || err != nil {
				t.Errorf("%s: the command is %q", name, m.Command)
			}
			return answer{status: 200, body: messageBody{Success: true}}, nil
		})
		if w.Code != 200 {
			t.Errorf("%s: answer %d %s", name, w.Code, w.Body)
		}
	}
}

// An owner that is gone has got nothing, and one that says so has done nothing:
// the command looks for another.
func TestForwardLooksAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	_ = l.Close()
	lost := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerOutcome, nothingDone)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer lost.Close()
	w := carry(bare(t, time.Minute), func(try int) (answer, error) {
		if urls := []string{gone, lost.URL}; try <= len(urls) {
			return answer{}, &appointment.ElsewhereError{URL: urls[try-1]}
		}
		return answer{status: 200, body: messageBody{Success: true}}, nil
	})
	if w.Code != 200 || w.Header().Get(headerOutcome) != "" {
		t.Errorf("answer %d %v %s", w.Code, w.Header(), w.Body)
	}
}

// Once an owner has the command, silence says nothing about what it did.
func TestForwardBroken(t *testing.T) {
	for name, how := range map[string]func(net.Conn) error{
		"no answer": func(net.Conn) error { return nil },
		"half an answer": func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					err = errors.Join(how(conn), conn.Close())
				}
				if err != nil {
					t.Error(err)
				}
			}))
			defer owner.Close()
			w := carry(bare(t, time.Minute), func(int) (answer, error) { return answer{}, &appointment.ElsewhereError{URL: owner.URL} })
			if w.Code != 503 || !strings.Contains(w.Body.String(), `"code":"outcome_unknown"`) || w.Header().Get("Retry-After") != "1" {
				t.Errorf("answer %d %s", w.Code, w.Body)
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("it was sent %d times", n)
			}
		})
	}
}

// An owner that takes the command and is then silent, as one that is stopped, is
// waited for as long as it may wait itself, and no longer.
func TestForwardSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bare(t, 5*time.Second)
		s.forward.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}
		began := time.Now()
		w := carry(s, func(int) (answer, error) { return answer{}, &appointment.ElsewhereError{URL: "http://stopped"} })
		if took := time.Since(began); took != 6*time.Second {
			t.Errorf("it was answered after %v", took)
		}
		if w.Code != 503 || !strings.Contains(w.Body.String(), `"code":"outcome_unknown"`) || w.Header().Get("Retry-After") != "1" {
			t.Errorf("answer %d %s", w.Code, w.Body)
		}
	})
}

func TestPanicsAreAnswered(t *testing.T) {
	s := bare(t, time.Minute)
	w := httptest.NewRecorder()
	s.recoverPanics(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret detail") })).
		ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), `"code":"internal_error"`) || strings.Contains(w.Body.String(), "detail") {
		t.Errorf("answer %d %s", w.Code, w.Body)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an API without services was made")
	}
}
