package sender_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// post is a request that an endpoint got.
type post struct {
	at     time.Time
	header http.Header
	body   []byte
}

func (p post) id() string { return p.header.Get("X-Delivery-Id") }

// receiver is an endpoint.
type receiver struct {
	b       *bench
	url     string
	arrived chan post
	// answer may be nil; n counts the requests for the same delivery.
	answer func(w http.ResponseWriter, r *http.Request, n int)

	mu    sync.Mutex
	times map[string]int // by delivery
	order []string       // of first requests
}

// receive starts an endpoint.
func (b *bench) receive(answer func(w http.ResponseWriter, r *http.Request, n int)) *receiver {
	rc := &receiver{b: b, answer: answer, arrived: make(chan post, 10_000), times: map[string]int{}}
	if b.virtual != nil {
		rc.url = b.virtual.serve(rc) + "/hook"
		return rc
	}
	server := httptest.NewServer(rc)
	b.t.Cleanup(server.Close)
	rc.url = server.URL + "/hook"
	return rc
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		rc.b.t.Errorf("read a request: %v", err)
	}
	p := post{time.Now(), r.Header, body}
	rc.mu.Lock()
	rc.times[p.id()]++
	n := rc.times[p.id()]
	if n == 1 {
		rc.order = append(rc.order, p.id())
	}
	rc.mu.Unlock()
	rc.arrived <- p
	if rc.answer != nil {
		rc.answer(w, r, n)
	}
}

// next waits for a request.
func (rc *receiver) next() post {
	rc.b.t.Helper()
	ctx, cancel := rc.b.limited()
	defer cancel()
	select {
	case p := <-rc.arrived:
		return p
	case <-ctx.Done():
		rc.b.t.Fatal("no request arrives")
		return post{}
	}
}

// wantOnce fails the test unless there was one request for each delivery and
// none for others.
func (rc *receiver) wantOnce(t *testing.T, ids ...string) {
	t.Helper()
	rc.mu.Lock()
	defer rc.mu.Unlock()
	for _, id := range ids {
		if rc.times[id] != 1 {
			t.Errorf("delivery %s was POSTed %d times, want once", id, rc.times[id])
		}
	}
	if len(rc.times) != len(ids) {
		t.Errorf("%d deliveries were POSTed, want %d", len(rc.times), len(ids))
	}
}

// wantOrder fails the test unless the deliveries came in this order.
func (rc *receiver) wantOrder(t *testing.T, ids []string) {
	t.Helper()
	rc.mu.Lock()
	defer rc.mu.Unlock()
	for i, id := range ids {
		if i >= len(rc.order) || rc.order[i] != id {
			t.Errorf("request %d is not for the %d-th delivery", i+1, i+1)
			return
		}
	}
}

// status answers with a status alone.
func status(code int) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
}

// gate is an endpoint's answer that waits until it is opened.
type gate chan struct{}

func (g gate) answer(w http.ResponseWriter, r *http.Request, _ int) {
	select {
	case <-g:
		w.WriteHeader(http.StatusOK)
	case <-r.Context().Done():
	}
}
