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
// HTTP/2 is used where the endpoint offers it, over net/http's transport; HTTP/1.1 over connections of our own. Both are
// kept alive.
//
// # What net/http logs by itself
//
// An endpoint can make net/http write lines to the standard logger; no setting of a Transport prevents that. A program
// with its own logging should turn them down, for instance with slog.SetLogLoggerLevel(slog.LevelDebug), lest an
// endpoint floods its log.
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
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

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
	targets   targets
	pool      *pool           // of connections that speak HTTP/1.1
	transport *http.Transport // for HTTP/2
	// http2 has an element for each address that has chosen HTTP/2. It only grows, by as little as a subscription of its
	// does elsewhere.
	http2   sync.Map
	offers  sync.Map  // by address, a connection that speaks HTTP/2 and that the transport may have
	buffers sync.Pool // *[]byte of AnswerLimit bytes
}

// New checks cfg and returns a client. It dials nothing.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, guard: newGuard(cfg.AllowNetworks), pool: newPool(cfg)}
	c.buffers.New = func() any { return new(make([]byte, cfg.AnswerLimit)) }
	if c.cfg.Dial == nil {
		dialer := &net.Dialer{Resolver: cfg.Resolver, ControlContext: c.guard.control}
		c.cfg.Dial = dialer.DialContext
	}
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs, NextProtos: []string{"h2", "http/1.1"}}

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // a host may have lost HTTP/2 since it was seen to speak it
	protocols.SetHTTP2(true)
	c.transport = &http.Transport{
		Proxy:                  nil, // not even one that the environment names
		DialTLSContext:         c.offered,
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
func (c *Client) Close() {
	c.pool.close()
	c.transport.CloseIdleConnections()
}

// connect dials, and over https shakes hands. It marks what goes wrong in that: most of its errors have no type.
func (c *Client) connect(ctx context.Context, scheme, address string) (net.Conn, error) {
	conn, err := c.cfg.Dial(ctx, "tcp", address)
	if err != nil || scheme == "http" {
		return conn, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		_ = conn.Close()
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

// offered is how the transport gets a connection that speaks HTTP/2: the one on which that turned out, or another. It
// needs a time-out of its own: the transport lets it go on when the request that wanted it has given up.
func (c *Client) offered(ctx context.Context, _, address string) (net.Conn, error) {
	if conn, ok := c.offers.LoadAndDelete(address); ok {
		return conn.(net.Conn), nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	conn, err := c.connect(ctx, "https", address)
	if err == nil && !speaksHTTP2(conn) {
		c.http2.Delete(address)
	}
	return conn, err
}

// offer lets the transport have a connection.
func (c *Client) offer(address string, conn net.Conn) {
	c.http2.Store(address, nil)
	if other, was := c.offers.Swap(address, conn); was {
		_ = other.(net.Conn).Close()
	}
}

// withdraw closes what the transport did not need.
func (c *Client) withdraw(address string) {
	if conn, ok := c.offers.LoadAndDelete(address); ok {
		_ = conn.(net.Conn).Close()
	}
}

func speaksHTTP2(conn net.Conn) bool {
	secure, ok := conn.(*tls.Conn)
	return ok && secure.ConnectionState().NegotiatedProtocol == "h2"
}

// Request is one POST.
type Request struct {
	URL    string
	Header Header
	Body   []byte // must not be changed while Post runs
}

// Header holds a request's fields, over HTTP/1.1 in the order in which they are sent. It names neither Host nor what says
// where the request ends: those are the Client's.
type Header []Field

// Field is a header field. Names should be in canonical form.
type Field struct{ Name, Value string }

// Add appends a field.
func (h *Header) Add(name, value string) { *h = append(*h, Field{name, value}) }

func (h Header) has(name string) bool {
	return slices.ContainsFunc(h, func(f Field) bool { return strings.EqualFold(f.Name, name) })
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
	t, err := c.targets.get(r.URL)
	if err == nil {
		err = r.Header.check()
	}
	if err != nil {
		return failed(ctx, &invalidError{err}, start)
	}
	if t.scheme == "https" {
		if _, known := c.http2.Load(t.address); known {
			return c.overHTTP2(ctx, t, r, start)
		}
	}
	result, err := c.overHTTP1(ctx, t, r, start)
	if errors.Is(err, errHTTP2) {
		return c.overHTTP2(ctx, t, r, start)
	}
	return result
}

// failed is the result without an answer.
func failed(ctx context.Context, err error, start time.Time) Result {
	cause := context.Cause(ctx)
	class := classify(cause, err)
	if cause != nil {
		err = cause // err may be any consequence of it
	}
	return Result{Class: class, Err: &Error{Class: class, Err: err}, Latency: time.Since(start)}
}

// check refuses what could be read as more than a field, or as something other than one request.
func (h Header) check() error {
	for _, f := range h {
		if !httpguts.ValidHeaderFieldName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
			return errHeader
		}
	}
	if slices.ContainsFunc(reserved, h.has) {
		return errHeader
	}
	return nil
}

// reserved are the fields that say where a request goes and ends.
var reserved = []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer", "Connection"}

// overHTTP1 is Post over HTTP/1.1. Its error is errHTTP2 if the endpoint prefers HTTP/2, and nothing was sent.
func (c *Client) overHTTP1(ctx context.Context, t *target, r Request, start time.Time) (Result, error) {
	deadline := start.Add(c.cfg.Timeout)
	if ctx.Err() != nil {
		return failed(ctx, ctx.Err(), start), nil
	}
	h, err := c.pool.enter(ctx, t.host, deadline)
	if err != nil {
		return failed(ctx, err, start), nil
	}
	var again *conn // can be used again
	defer func() { c.pool.leave(h, again) }()
	cn, err := c.connection(ctx, h, t, deadline)
	if errors.Is(err, errHTTP2) {
		return Result{}, err
	}
	if err != nil {
		return failed(ctx, err, start), nil
	}
	goOn := context.AfterFunc(ctx, cn.interrupt)
	answer, err := cn.ask(t, r, c.cfg)
	if err == nil {
		err = checkStatus(answer)
	}
	if err != nil {
		goOn()
		_ = cn.Close()
		return failed(ctx, err, start), nil
	}
	latency := time.Since(start)
	if int64(cn.in.Buffered()) < answer.ContentLength || answer.ContentLength < 0 { // else nothing is waited for
		err := cn.SetReadDeadline(time.Now().Add(c.cfg.BodyTimeout))
		if err != nil || ctx.Err() != nil { // nothing limits the reading, or an interruption may have been undone
			_ = cn.Close()
		}
	}
	body, whole := c.read(answer)
	if goOn() && whole && !answer.Close && cn.in.Buffered() == 0 {
		again = cn
	} else {
		_ = cn.Close()
	}
	return result(answer, body, latency), nil
}

// connection returns a connection to a host on which nothing has been sent yet, or that is idle.
func (c *Client) connection(ctx context.Context, h *host, t *target, deadline time.Time) (*conn, error) {
	for cn := c.pool.take(h); cn != nil; cn = c.pool.take(h) {
		if cn.SetDeadline(deadline) == nil && cn.alive() {
			return cn, nil
		}
		_ = cn.Close()
	}
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, errTimeout)
	defer cancel()
	raw, err := c.connect(ctx, t.scheme, t.address)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	if speaksHTTP2(raw) {
		c.offer(t.address, raw)
		return nil, errHTTP2
	}
	cn := newConn(h, raw)
	if err := cn.SetDeadline(deadline); err != nil {
		_ = cn.Close()
		return nil, err
	}
	return cn, nil
}

// overHTTP2 is Post over the transport. It uses that directly, since what an http.Client adds (redirects, cookies,
// credentials of the URL) is what we must not do.
func (c *Client) overHTTP2(ctx context.Context, t *target, r Request, start time.Time) Result {
	defer c.withdraw(t.address)
	// One timer, set twice: first for the head, then for the body.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cutOff := time.AfterFunc(time.Until(start.Add(c.cfg.Timeout)), func() { cancel(errTimeout) })
	defer cutOff.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(r.Body))
	if err != nil {
		return failed(ctx, &invalidError{errUnreadableURL}, start) // err would repeat it
	}
	for _, f := range r.Header {
		req.Header.Add(f.Name, f.Value)
	}
	if !r.Header.has("User-Agent") {
		req.Header.Set("User-Agent", c.cfg.UserAgent)
	}
	answer, err := c.transport.RoundTrip(req)
	if err == nil {
		err = checkStatus(answer)
	}
	if err != nil {
		return failed(ctx, err, start)
	}
	latency := time.Since(start)
	defer answer.Body.Close()
	cutOff.Reset(c.cfg.BodyTimeout)
	body, _ := c.read(answer)
	return result(answer, body, latency)
}

// checkStatus refuses what net/http takes for a status: any three digits, over HTTP/2 any number, and a 101 that nobody
// asked for. It closes the body of an answer that is none.
func checkStatus(answer *http.Response) error {
	if answer.StatusCode < 200 || answer.StatusCode > 999 {
		_ = answer.Body.Close()
		return fmt.Errorf("status %d is none", answer.StatusCode)
	}
	return nil
}

func result(answer *http.Response, body []byte, latency time.Duration) Result {
	return Result{Status: answer.StatusCode, RetryAfter: answer.Header.Get("Retry-After"), Answer: body, Latency: latency}
}

// read returns how the body begins, and reads to its end if that is near, so that the connection can be used again: it
// says whether it got there. Errors are of no interest: the head has said what there is to say.
func (c *Client) read(answer *http.Response) (begin []byte, whole bool) {
	if answer.Body == http.NoBody {
		return nil, true
	}
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	n := 0
	var err error
	for n < len(*buf) && err == nil {
		var more int
		more, err = answer.Body.Read((*buf)[n:])
		n += more
	}
	if err == nil {
		var rest int64
		rest, err = io.Copy(io.Discard, io.LimitReader(answer.Body, drainLimit))
		whole = err == nil && rest < drainLimit
	}
	return bytes.Clone((*buf)[:n]), whole || errors.Is(err, io.EOF)
}
