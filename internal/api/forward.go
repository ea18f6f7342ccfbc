package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	neturl "net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/arsmedicatech/webhooks/internal/writer"
)

const (
	// headerCommand carries a command's id, minted where it entered, and
	// headerProof that it was an instance that did. A request that has both is not
	// forwarded again; what anybody else sends as such counts for nothing.
	headerCommand = "X-Command-Id"
	headerProof   = "X-Command-Proof"
	// headerOutcome of an answer says, with the value nothingDone, that a
	// forwarded command came to the wrong process and can be sent to the right one.
	headerOutcome = "X-Command-Outcome"
	nothingDone   = "none"
	headerKey     = "Idempotency-Key"

	// maxRelayed bounds the answers of other processes.
	maxRelayed = 4 << 20
	// dialTimeout is short: an owner that can't be reached is soon replaced.
	dialTimeout = 2 * time.Second
	// answerAllowance is what an owner may take beyond its own wait. A commit takes
	// milliseconds; who takes longer may have been stopped, and is not waited for.
	answerAllowance = time.Second
)

// newForwarder makes the client that commands go to other processes with.
func newForwarder(wait time.Duration) *http.Client {
	return &http.Client{
		Timeout:       wait + answerAllowance,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:               nil, // the other processes are near
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			MaxIdleConnsPerHost: 64,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true, // answers are passed on as they are
		},
	}
}

// misdirected answers a forwarded command that yet another process should get.
func misdirected() error {
	p := unavailable("handover", "This calendar is changing hands, and nothing was changed: "+
		"repeat the request with the same Idempotency-Key")
	p.nothingDone = true
	return p
}

// pass sends a command to the process that writes its calendar and returns the
// answer, read to its end. The error is writer.ErrNotOwner if nothing was done,
// or writer.ErrUnknown.
func (s *server) pass(r *http.Request, body []byte, base, command string) (*http.Response, error) {
	var connected atomic.Bool
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn: func(string) {
			// Once more: on the connection that it had, nothing was sent. Only with
			// an Idempotency-Key the transport also repeats what was.
			if r.Header.Get(headerKey) == "" {
				connected.Store(false)
			}
		},
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	answer, err := s.send(ctx, r, body, base, command)
	switch {
	case err != nil && !connected.Load():
		return nil, fmt.Errorf("%w: forward to %s: %w", writer.ErrNotOwner, base, err)
	case err != nil:
		return nil, fmt.Errorf("%w: forward to %s: %w", writer.ErrUnknown, base, err)
	case answer.Header.Get(headerOutcome) == nothingDone:
		return nil, fmt.Errorf("%w: %s has lost it", writer.ErrNotOwner, base)
	}
	return answer, nil
}

func (s *server) send(ctx context.Context, r *http.Request, body []byte, base, command string) (*http.Response, error) {
	url := strings.TrimSuffix(base, "/") + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		url += "?" + r.URL.RawQuery
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	req.Header = r.Header.Clone()
	dropHops(req.Header)
	req.Header.Set(headerCommand, command)
	req.Header.Set(headerProof, s.cfg.Peers.Vouch(vouched(r, body, command)...))
	if r.Method != http.MethodPost {
		req.Header.Del(headerKey) // means nothing there, except to the transport
	}
	req.Host = r.Host // what the request's origin is compared with
	answer, err := s.forward.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*neturl.Error](err); ok {
			err = failed.Err // its text has the path, and so ids
		}
		return nil, err // pass says what was done
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxRelayed))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	answer.Body = io.NopCloser(bytes.NewReader(content))
	return answer, nil
}

// vouched is what of a forwarded command is vouched for. The user is signed in
// anew where it arrives.
func vouched(r *http.Request, body []byte, command string) [][]byte {
	return [][]byte{[]byte(command), []byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery), body}
}

// relay answers with the answer of another process.
func relay(w http.ResponseWriter, from *http.Response) {
	dropHops(from.Header)
	from.Header.Del("Date")
	maps.Copy(w.Header(), from.Header) // in place of ours, which are the same
	w.WriteHeader(from.StatusCode)
	_, _ = io.Copy(w, from.Body) // who went away is not told
}

// dropHops removes the headers that concern one connection only.
func dropHops(h http.Header) {
	for _, list := range h.Values("Connection") {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
	} {
		h.Del(name)
	}
}
