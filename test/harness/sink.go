package harness

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// Request is a webhook as it arrived.
type Request struct {
	Path   string
	Header http.Header
	Body   []byte
	At     time.Time
}

// ID is the request's delivery id.
func (r Request) ID() string { return r.Header.Get("X-Delivery-Id") }

// Sink is an endpoint that remembers what arrives.
type Sink struct {
	URL    string
	server *httptest.Server

	mu       sync.Mutex
	answer   func(Request) int
	requests []Request
	arrived  chan struct{} // closed and replaced with each request
}

// NewSink starts a sink that answers each request with the status that answer
// returns; nil answers 200.
func NewSink(tb testing.TB, answer func(Request) int) *Sink {
	s := &Sink{answer: answer, arrived: make(chan struct{})}
	s.server = httptest.NewServer(s)
	s.URL = s.server.URL
	tb.Cleanup(s.server.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the sender has gone
	}
	req := Request{Path: r.URL.Path, Header: r.Header, Body: body, At: time.Now()}
	s.mu.Lock()
	answer := s.answer
	s.requests = append(s.requests, req)
	close(s.arrived)
	s.arrived = make(chan struct{})
	s.mu.Unlock()
	if answer != nil {
		w.WriteHeader(answer(req))
	}
}

// Answer changes how requests are answered from now on.
func (s *Sink) Answer(answer func(Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// Requests returns what has arrived, in order.
func (s *Sink) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Await returns what has arrived as soon as it satisfies enough.
func (s *Sink) Await(tb testing.TB, what string, enough func([]Request) bool) []Request {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	for {
		s.mu.Lock()
		requests, arrived := append([]Request(nil), s.requests...), s.arrived
		s.mu.Unlock()
		if enough(requests) {
			return requests
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			tb.Fatalf("waiting for %s: %d requests arrived", what, len(requests))
		}
	}
}

// AwaitN returns the requests once n have arrived.
func (s *Sink) AwaitN(tb testing.TB, n int) []Request {
	tb.Helper()
	return s.Await(tb, "requests", func(r []Request) bool { return len(r) >= n })
}
