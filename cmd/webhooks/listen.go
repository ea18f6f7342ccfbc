package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type listenCmd struct {
	Port   int    `name:"port" env:"PORT" default:"8000" help:"Port to listen on, on this machine only."`
	Secret string `name:"secret" env:"SECRET" placeholder:"S" help:"The subscription's secret; without it signatures are not checked."`
	Status int    `name:"status" env:"STATUS" default:"200" help:"Status to answer with; 500 shows how retries go."`
}

// Run receives until ctx ends.
func (c *listenCmd) Run(ctx context.Context) error {
	if c.Status < 200 || c.Status > 599 {
		return &run.UsageError{Err: errors.New("--status must be between 200 and 599")}
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return &run.UsageError{Err: run.PortError(err, addr, "--port")}
	}
	fmt.Printf("Listening on http://localhost:%d – any path will do. Ctrl-C stops.\n", c.Port)
	if c.Secret == "" {
		fmt.Println("No --secret given: signatures are not checked.")
	}
	r := &receiver{secret: c.Secret, status: c.Status, out: os.Stdout, now: time.Now}
	return run.ListenAndServe(ctx, l, r, slog.New(slog.DiscardHandler))
}

// receiver shows each request and answers it: with the status if its
// signatures are right, else with 401.
type receiver struct {
	secret string
	status int
	out    io.Writer
	now    func() time.Time

	mu   sync.Mutex
	seen map[string]int // how often each delivery came
}

// maxShown bounds the deliveries that are remembered to recognise repeats.
const maxShown = 10_000

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		http.Error(w, "body too large", http.StatusRequestEntityTooLarge)
		return
	}
	verdict, status := "signatures not checked", r.status
	if r.secret != "" {
		verdict = "both signatures verified"
		if err := webhook.Verify(r.secret, req.Header, body, r.now(), 5*time.Minute); err != nil {
			verdict, status = "NOT VERIFIED: "+err.Error(), http.StatusUnauthorized
		}
	}
	r.show(req, body, verdict, status)
	w.WriteHeader(status)
}

func (r *receiver) show(req *http.Request, body []byte, verdict string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil || len(r.seen) > maxShown {
		r.seen = map[string]int{}
	}
	id := req.Header.Get(webhook.HeaderDeliveryID)
	r.seen[id]++
	again := ""
	if n := r.seen[id]; id != "" && n > 1 {
		again = fmt.Sprintf(", seen %d times", n)
	}
	fmt.Fprintf(r.out, "\n%s  %s %s → %d\n", r.now().Format(time.TimeOnly), req.Method, printable(req.URL.Path), status)
	fmt.Fprintf(r.out, "  event     %s\n", printable(req.Header.Get(webhook.HeaderEventType)))
	fmt.Fprintf(r.out, "  delivery  %s, attempt %s%s\n", printable(id), printable(req.Header.Get(webhook.HeaderAttempt)), again)
	fmt.Fprintf(r.out, "  check     %s\n", verdict)
	var pretty bytes.Buffer
	if json.Indent(&pretty, body, "  ", "  ") != nil {
		pretty.Reset()
		fmt.Fprintf(&pretty, "%q", body)
	}
	fmt.Fprintf(r.out, "  %s\n", harmless(pretty.String()))
}
