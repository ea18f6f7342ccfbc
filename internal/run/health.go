package run

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
)

// Health collects why a process is not ready. It serves /readyz: 200, or 503
// with the reasons.
type Health struct {
	mu     sync.Mutex
	checks map[string]func() error
}

// Add registers a check under a name: nil when that part is ready. A process
// without checks is not ready.
func (h *Health) Add(name string, check func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = map[string]func() error{}
	}
	h.checks[name] = check
}

// Problems returns why the process is not ready, by name of the check.
func (h *Health) Problems() map[string]error {
	h.mu.Lock()
	checks := maps.Clone(h.checks)
	h.mu.Unlock()
	problems := map[string]error{}
	if len(checks) == 0 {
		problems["start"] = fmt.Errorf("still starting")
	}
	for name, check := range checks {
		if err := check(); err != nil {
			problems[name] = err
		}
	}
	return problems
}

// ServeHTTP implements http.Handler.
func (h *Health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	problems := h.Problems()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(problems) == 0 {
		_, _ = fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		_, _ = fmt.Fprintf(w, "%s: %s\n", name, problems[name])
	}
}

// Closed makes a check of a channel that is closed when the part is ready.
func Closed(ready <-chan struct{}, otherwise string) func() error {
	return func() error {
		select {
		case <-ready:
			return nil
		default:
			return fmt.Errorf("%s", otherwise)
		}
	}
}
