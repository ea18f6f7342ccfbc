package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// sinkCmd is the endpoint: it reads each request and answers 200.
type sinkCmd struct{}

// Run serves until ctx ends.
func (c *sinkCmd) Run(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	s := &sink{well: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /hang", s.hang)
	mux.HandleFunc("POST /trickle", s.trickle)
	mux.HandleFunc("POST /fail", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	mux.HandleFunc("GET /recover", func(http.ResponseWriter, *http.Request) { close(s.well) })
	mux.HandleFunc("GET /arrivals", s.arrivals)
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, s.count(r.FormValue("path")).Load()) })
	mux.HandleFunc("POST /timed", s.timed)
	mux.HandleFunc("POST /", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // whatever it was, it arrived
		s.count(r.URL.Path).Add(1)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { <-ctx.Done(); _ = server.Close() }()
	if err := server.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

type sink struct {
	counts sync.Map // by path: *atomic.Int64, the requests that were answered
	mu     sync.Mutex
	times  map[string]int64 // by appointment: when its webhook came, in ns
	well   chan struct{}    // closed when what hangs is well again
}

func (s *sink) count(path string) *atomic.Int64 {
	n, ok := s.counts.Load(path)
	if !ok {
		n, _ = s.counts.LoadOrStore(path, &atomic.Int64{})
	}
	return n.(*atomic.Int64)
}

func (s *sink) timed(_ http.ResponseWriter, r *http.Request) {
	now := time.Now().UnixNano()
	var body struct {
		Data struct {
			ID string `json:"appointment_id"`
		} `json:"data"`
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.times == nil {
		s.times = map[string]int64{}
	}
	if _, seen := s.times[body.Data.ID]; !seen {
		s.times[body.Data.ID] = now
	}
	s.count(r.URL.Path).Add(1)
}

func (s *sink) arrivals(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(s.times)
}

// startSink starts the sink as a process of its own and returns its URL.
func startSink(ctx context.Context) (url string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, self, "sink")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start the sink: %w", err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", nil, fmt.Errorf("start the sink: %w", err)
	}
	return "http://" + strings.TrimSpace(addr), func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, nil
}

// fetch gets a page of the sink.
func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// floor POSTs n bodies, signed, by a bare loop on net/http, so many at once.
func floor(ctx context.Context, url string, body []byte, n, concurrency int) (perSecond, cpu float64, err error) {
	client := &http.Transport{MaxIdleConnsPerHost: concurrency, MaxIdleConns: concurrency}
	defer client.CloseIdleConnections()
	signer := webhook.NewSigner(secret)
	var left atomic.Int64
	left.Store(int64(n))
	failed := make(chan error, concurrency)
	began := used()
	for range concurrency {
		go func() {
			for left.Add(-1) >= 0 {
				if err := post(ctx, client, signer, url, body); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range concurrency {
		if e := <-failed; e != nil {
			err = e
		}
	}
	perSecond, cpu = began.rate(n)
	return perSecond, cpu, err
}

func post(ctx context.Context, client http.RoundTripper, signer *webhook.Signer, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	d := &webhook.Delivery{ID: "0f8fad5b-d9cb-469f-a165-70867728950e", EventType: "appointment.created", Attempt: 1, Body: body}
	signer.Sign(req.Header.Set, d, time.Now())
	resp, err := client.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// serve runs a service until stop is called, which returns its error.
func serve(ctx context.Context, p run.Program, env *run.Env) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, env) }()
	return func() error { cancel(); return <-done }
}
