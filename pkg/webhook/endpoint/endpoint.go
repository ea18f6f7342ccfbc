// Package endpoint POSTs a body to an address that somebody else chose, and trusts nobody on the way.
//
// Whoever registers a URL decides what name is resolved, where it leads, and what is answered, slowly or without end.
// So a [Client]
//
//   - looks at each address after it was resolved and before it is dialled. What is not the public internet is refused
//     unless [Config].AllowNetworks names it. A name that resolves differently the next time is looked at again.
//   - follows no redirect, uses no proxy, keeps no cookie, expands no compression, and verifies TLS (1.2 and up).
//   - bounds the answer's head and body in bytes and in time, and the connections to one host in number.
//   - sends a request once. It moves to another connection only if nothing was written to the first, or if the endpoint
//     said in the terms of HTTP/2 that it did not take the request.
//
// HTTP/2 is used where the endpoint offers it, and connections are kept alive.
//
// # What net/http logs by itself
//
// An endpoint that sends bytes nobody asked for makes net/http write them, quoted, to the standard logger; no setting
// of a Transport prevents that. A program with its own logging should turn such lines down, for instance with
// slog.SetLogLoggerLevel(slog.LevelDebug), lest an endpoint floods its log.
package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// drainLimit is how much of an answer's body beyond AnswerLimit is read and thrown away so that the connection can be
// used again. A new connection costs less than reading more than that.
const drainLimit = 64 << 10

// Config bounds what an endpoint can do to us. Every field has a default.
type Config struct {
	// Timeout is how long a POST may take until the end of the answer's head: resolving, dialling, TLS, sending and the
	// head itself. Waiting for one of the host's connections is part of it, so post no more than ConnsPerHost at a
	// time to one host. Default 10 s.
	Timeout time.Duration
	// BodyTimeout is how long the answer's body is read after its head. What has not arrived then is not waited for; the
	// answer counts all the same. Default 2 s.
	BodyTimeout time.Duration
	// AnswerLimit is how many bytes of the answer's body are kept. Default 1 KiB.
	AnswerLimit int
	// HeaderLimit is how many bytes the answer's head may have, interim (1xx) answers included. Default 64 KiB.
	HeaderLimit int64

	// AllowNetworks are networks that may be dialled although they are not the public internet. Default none.
	AllowNetworks []netip.Prefix
	// RootCAs are the authorities that may vouch for an endpoint. Default the system's.
	RootCAs *x509.CertPool
	// UserAgent is sent with requests that do not name one. Default webhook.UserAgent.
	UserAgent string

	// ConnsPerHost is how many connections one host (name and port) can have. Default 64.
	ConnsPerHost int
	// IdleConnsPerHost is how many of them are kept when idle. Default ConnsPerHost.
	IdleConnsPerHost int
	// IdleConns is how many idle connections are kept altogether. Default 1024.
	IdleConns int
	// IdleTimeout is how long an idle connection is kept. Many servers close theirs after 5 s, and a request that
	// crosses with that is a failed attempt, so we had better close first. Default 4 s.
	IdleTimeout time.Duration

	// Resolver resolves names. Default net.DefaultResolver.
	Resolver *net.Resolver
	// Dial replaces the dialler and with it the check of addresses. It is for tests on networks in memory.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.BodyTimeout, 2*time.Second)
	setDefault(&c.AnswerLimit, 1<<10)
	setDefault(&c.HeaderLimit, 64<<10)
	setDefault(&c.UserAgent, webhook.UserAgent)
	setDefault(&c.ConnsPerHost, 64)
	setDefault(&c.IdleConnsPerHost, c.ConnsPerHost)
	setDefault(&c.IdleConns, 1024)
	setDefault(&c.IdleTimeout, 4*time.Second)
	return c, c.validate()
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	switch {
	case c.Timeout < 0 || c.BodyTimeout < 0 || c.IdleTimeout < 0:
		return errors.New("endpoint: time-outs must be positive")
	case c.AnswerLimit < 0 || c.HeaderLimit < 0:
		return errors.New("endpoint: limits must be positive")
	case c.ConnsPerHost < 0 || c.IdleConnsPerHost < 0 || c.IdleConns < 0:
		return errors.New("endpoint: numbers of connections must be positive")
	}
	for _, network := range c.AllowNetworks {
		if !network.IsValid() {
			return errors.New("endpoint: AllowNetworks holds a network that is none")
		}
	}
	return nil
}

// Client POSTs to endpoints. It is safe for concurrent use.
type Client struct {
	cfg       Config
	guard     *guard
	tls       *tls.Config
	transport *http.Transport
	buffers   sync.Pool // *[]byte of AnswerLimit bytes
}

// New checks cfg and returns a client. It dials nothing.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, guard: newGuard(cfg.AllowNetworks)}
	c.buffers.New = func() any { return new(make([]byte, cfg.AnswerLimit)) }
	if c.cfg.Dial == nil {
		dialer := &net.Dialer{Resolver: cfg.Resolver, ControlContext: c.guard.control}
		c.cfg.Dial = dialer.DialContext
	}
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs, NextProtos: []string{"h2", "http/1.1"}}

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	c.transport = &http.Transport{
		Proxy:                  nil, // not even one that the environment names
		DialContext:            c.dial,
		DialTLSContext:         c.dialTLS,
		DisableCompression:     true,
		MaxResponseHeaderBytes: cfg.HeaderLimit,
		MaxConnsPerHost:        cfg.ConnsPerHost,
		MaxIdleConnsPerHost:    cfg.IdleConnsPerHost,
		MaxIdleConns:           cfg.IdleConns,
		IdleConnTimeout:        cfg.IdleTimeout,
		Protocols:              protocols,
		HTTP2: &http.HTTP2Config{
			// The defaults let an endpoint fill 4 MiB per request before we have read any of it.
			MaxReceiveBufferPerStream:     128 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			// A connection whose peer has vanished would fail every request until TCP notices.
			SendPingTimeout:  cfg.Timeout,
			PingTimeout:      cfg.Timeout,
			WriteByteTimeout: cfg.Timeout,
		},
	}
	return c, nil
}

// Close closes idle connections. Posts under way go on; they end with their contexts.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// dial needs a time-out of its own: the transport lets it go on when the request that wanted it has given up.
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return c.cfg.Dial(ctx, network, address)
}

// dialTLS does what the transport would do, but marks what goes wrong: most errors of a handshake have no type.
func (c *Client) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	conn, err := c.cfg.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	cfg := c.tls.Clone()
	cfg.ServerName = host
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, &handshakeError{err}
	}
	return secure, nil
}

// Request is one POST.
type Request struct {
	URL string
	// Header is taken over: it must not be changed afterwards. Names must be in canonical form.
	Header http.Header
	Body   []byte // must not be changed while Post runs
}

// Result is what became of a POST: an answer with a Status, or an error with a Class.
type Result struct {
	Status     int    // of the answer, 200 to 999; 0 if there was none
	Class      string // one of the Class constants; empty if there was an answer
	Err        error  // an *Error; nil if there was an answer
	RetryAfter string // the answer's header of that name, see ParseRetryAfter
	Answer     []byte // how the answer's body begins
	// Latency is the time until the end of the answer's head, or until the error.
	Latency time.Duration
}

// Post sends a request and returns at the latest when Timeout and BodyTimeout have passed. Whether a status is a
// success is for the caller to say.
func (c *Client) Post(ctx context.Context, r Request) Result {
	start := time.Now()
	// One timer, set twice: first for the head, then for the body.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cutOff := time.AfterFunc(c.cfg.Timeout, func() { cancel(errTimeout) })
	defer cutOff.Stop()

	answer, err := c.send(ctx, r)
	latency := time.Since(start)
	if err != nil {
		cause := context.Cause(ctx)
		class := classify(cause, err)
		if cause != nil {
			err = cause // err may be any consequence of it
		}
		return Result{Class: class, Err: &Error{Class: class, Err: err}, Latency: latency}
	}
	defer answer.Body.Close()

	cutOff.Reset(c.cfg.BodyTimeout)
	return Result{
		Status:     answer.StatusCode,
		RetryAfter: answer.Header.Get("Retry-After"),
		Answer:     c.read(answer),
		Latency:    latency,
	}
}

// send returns when the answer's head is complete. It uses the transport directly, since what an http.Client adds
// (redirects, cookies, credentials of the URL) is what we must not do.
func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	if err := checkText(r.URL); err != nil {
		return nil, &invalidError{err}
	}
	// The request gets a GetBody too, with which the transport moves to another connection when it wrote nothing on one
	// that turned out to be closed.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return nil, &invalidError{errUnreadableURL} // err would repeat the URL, which may hold secrets
	}
	if err := checkParts(req.URL); err != nil {
		return nil, &invalidError{err}
	}
	if r.Header != nil {
		req.Header = r.Header
	}
	if _, set := req.Header["User-Agent"]; !set {
		req.Header["User-Agent"] = []string{c.cfg.UserAgent}
	}
	answer, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// net/http takes any three digits for a status, and HTTP/2 any number; a 101 that nobody asked for is no answer.
	if answer.StatusCode < 200 || answer.StatusCode > 999 {
		_ = answer.Body.Close()
		return nil, fmt.Errorf("status %d is none", answer.StatusCode)
	}
	return answer, nil
}

// read returns how the body begins, and reads to its end if that is near, so that the connection can be used again.
// Errors are of no interest: the head has said what there is to say.
func (c *Client) read(answer *http.Response) []byte {
	if answer.Body == http.NoBody {
		return nil
	}
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	n, err := io.ReadFull(answer.Body, *buf)
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, drainLimit))
	}
	return bytes.Clone((*buf)[:n])
}
