package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// patience is longer than the time for which a process is stalled: requests to it
// are waited for until it goes on.
const patience = 15 * time.Second

// api speaks to all instances of a deployment, for many clients at once. It
// signs in again when the sessions are lost.
type api struct {
	urls []string
	http *http.Client

	mu    sync.Mutex
	token string
}

func newAPI(urls []string) *api {
	return &api{urls: urls, http: &http.Client{
		Timeout:   patience,
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}}
}

// answer is what the tests look at in any answer.
type answer struct {
	Token       string `json:"token"`
	Error       string `json:"error"`
	Code        string `json:"code"`
	Appointment shown  `json:"appointment"`
	Subscribed  struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
	} `json:"subscription"`
}

// shown is an appointment in an answer.
type shown struct {
	ID      string `json:"id"`
	Date    string `json:"appointment_date"`
	Start   string `json:"start_time"`
	End     string `json:"end_time"`
	Status  string `json:"status"`
	Version int    `json:"version"`
}

// do makes one request; status 0 says that there was no answer, or not all of it.
func (a *api) do(ctx context.Context, url, method, path string, body []byte, headers ...string) (int, answer) {
	a.mu.Lock()
	token := a.token
	a.mu.Unlock()
	status, got := a.try(ctx, token, url, method, path, body, headers)
	if status == http.StatusUnauthorized {
		a.signIn(ctx, token, url)
	}
	return status, got
}

func (a *api) try(ctx context.Context, token, url, method, path string, body []byte, headers []string) (int, answer) {
	var got answer
	req, err := http.NewRequestWithContext(ctx, method, url+path, bytes.NewReader(body))
	if err != nil {
		return 0, got
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, got
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(text, &got) != nil {
		return 0, got
	}
	return resp.StatusCode, got
}

// signIn replaces a token that is not valid any more, once for all clients.
func (a *api) signIn(ctx context.Context, old, url string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token != old {
		return // somebody else was quicker
	}
	status, got := a.try(ctx, "", url, http.MethodPost, "/api/auth/login", []byte(`{"username":"admin","password":"admin"}`), nil)
	if status == http.StatusOK {
		a.token = got.Token
	}
}

// try is one request of a command; status 0 is one without an answer.
type try struct {
	status int
	answer answer
	sent   time.Time
	took   time.Duration
}

// lingering says whether the request may still be on its way after it was given
// up. One whose connection broke with the process is not.
func (t try) lingering() bool { return t.status == 0 && t.took > patience-time.Second }

// clear says whether the answer tells what became of the command.
func (t try) clear() bool {
	return t.status != 0 && t.status != http.StatusServiceUnavailable && t.status != http.StatusUnauthorized
}

// insist repeats a request, each time to an instance that next returns, until
// its answer is clear or ctx ends. It returns every try.
func (a *api) insist(ctx context.Context, next func() string, method, path string, body []byte, headers ...string) []try {
	var tries []try
	for {
		t := try{sent: time.Now()}
		t.status, t.answer = a.do(ctx, next(), method, path, body, headers...)
		t.took = time.Since(t.sent)
		if t.status != http.StatusUnauthorized {
			tries = append(tries, t)
		}
		if t.clear() || !wait(ctx, 50*time.Millisecond) {
			return tries
		}
	}
}

// wait paces what is repeated; it returns false when ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func encode(t *testing.T, fields map[string]any) []byte {
	body, err := json.Marshal(fields)
	if err != nil {
		t.Error(err)
	}
	return body
}

// crowd are goroutines that go on until they are told to stop, and are then
// given some time to end what they have begun.
type crowd struct {
	ctx     context.Context // of what is begun
	cancel  context.CancelFunc
	stopped chan struct{}
	all     sync.WaitGroup
}

func newCrowd(t *testing.T) *crowd {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c := &crowd{ctx: ctx, cancel: cancel, stopped: make(chan struct{})}
	t.Cleanup(func() { cancel(); c.all.Wait() })
	return c
}

// every calls one at this pace until the crowd is stopped.
func (c *crowd) every(pace time.Duration, one func()) {
	c.all.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-c.stopped:
				return
			case <-c.ctx.Done():
				return
			case <-tick.C:
				one()
			}
		}
	})
}

func (c *crowd) stop(limit time.Duration) {
	close(c.stopped)
	give := time.AfterFunc(limit, c.cancel)
	defer give.Stop()
	c.all.Wait()
}

func name(kind string, n int) string { return fmt.Sprintf("%s:%d", kind, n) }
