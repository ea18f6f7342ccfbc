package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/term"

	"github.com/arsmedicatech/webhooks/internal/run"
)

// apiFlags is how to reach the API, and as whom.
type apiFlags struct {
	URL      string `name:"api-url" env:"WEBHOOKS_API" default:"http://localhost:5000" help:"Where the API is."`
	Token    string `name:"token" env:"WEBHOOKS_TOKEN" help:"Token of a session, as signing in returns it; better set in the environment than on the command line."`
	Username string `name:"username" env:"WEBHOOKS_USERNAME" help:"Who to sign in as for this command, if there is no token."`
	Password string `name:"password" env:"WEBHOOKS_PASSWORD" help:"The user's password; better set in the environment than on the command line. Without it you are asked for it."`
}

// keyFlag is for commands that change something.
type keyFlag struct {
	Key string `name:"idempotency-key" placeholder:"KEY" help:"Repeat a command whose outcome is unknown, with the key that it named: it is not done twice. Repeat it as it was, and write times out that were given as how long ago."`
}

const (
	// requestTimeout is longer than the API takes to answer anything.
	requestTimeout = 45 * time.Second
	// answerLimit is more than the longest page of a list, in bytes.
	answerLimit = 8 << 20
	// tries are for requests that are answered with 503, or not at all.
	tries = 4
	// mostWait is how long it waits between two tries at most.
	mostWait = 5 * time.Second
)

// apiClient speaks to the API as a user.
type apiClient struct {
	base  *url.URL
	http  *http.Client
	token string
	// own says that the session was begun by this command, which ends it.
	own bool
	// wait returns after that time, or with an error when ctx ends.
	wait func(ctx context.Context, d time.Duration) error
}

func newAPIClient(base string) (*apiClient, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, &run.UsageError{Err: errors.New("--api-url (WEBHOOKS_API) must be of the form http://HOST:PORT")}
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
		ForceAttemptHTTP2:     true,
	}
	return &apiClient{
		base: u, wait: sleep,
		// A redirect is followed nowhere: the token is for this address alone.
		http: &http.Client{
			Transport: transport, Timeout: requestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// withAPI does something with a client that is signed in, and signs it out if it
// was signed in for this.
func (f apiFlags) withAPI(ctx context.Context, do func(*apiClient) error) error {
	c, err := newAPIClient(f.URL)
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	if err := c.signIn(ctx, f, askPassword); err != nil {
		return err
	}
	defer c.signOut(ctx)
	return do(c)
}

func (c *apiClient) signIn(ctx context.Context, f apiFlags, ask func(context.Context, string) (string, error)) error {
	if f.Token != "" {
		c.token = f.Token
		return nil
	}
	if f.Username == "" {
		return &run.UsageError{Err: errors.New("not signed in: set WEBHOOKS_TOKEN to a token, or name a user with --username (WEBHOOKS_USERNAME)")}
	}
	password := f.Password
	if password == "" {
		var err error
		if password, err = ask(ctx, f.Username); err != nil {
			return err
		}
	}
	var answer struct {
		Token string `json:"token"`
	}
	err := c.do(ctx, http.MethodPost, "/api/auth/login", nil, map[string]string{"username": f.Username, "password": password}, &answer, "")
	if refused, ok := errors.AsType[*answerError](err); ok && refused.status == http.StatusUnauthorized {
		return fmt.Errorf("sign in as %s: the name or the password is wrong", f.Username)
	}
	if err != nil {
		return fmt.Errorf("sign in as %s: %w", f.Username, err)
	}
	if answer.Token == "" {
		return fmt.Errorf("sign in as %s: the answer has no token; is %s the webhooks' API?", f.Username, c.base)
	}
	c.token, c.own = answer.Token, true
	return nil
}

// signOut ends the session, if it was begun for this command. One that can't be
// ended now ends by itself.
func (c *apiClient) signOut(ctx context.Context) {
	if !c.own {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, _ = c.once(ctx, http.MethodPost, "/api/auth/logout", nil, nil, "")
}

// askPassword asks for a password on the terminal, which does not show it.
func askPassword(ctx context.Context, user string) (string, error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", &run.UsageError{Err: errors.New("there is no terminal to ask for the password on: set WEBHOOKS_PASSWORD")}
	}
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("ask for the password: %w", err)
	}
	fmt.Fprintf(os.Stderr, "password of %s: ", user)
	type typed struct {
		password []byte
		err      error
	}
	// Nothing ends a read from a terminal: on Ctrl-C it is left behind, and the
	// process ends.
	read := make(chan typed, 1)
	go func() {
		password, err := term.ReadPassword(fd)
		read <- typed{password, err}
	}()
	defer fmt.Fprintln(os.Stderr)
	select {
	case <-ctx.Done():
		return "", errors.Join(ctx.Err(), term.Restore(fd, before))
	case t := <-read:
		if t.err != nil {
			return "", fmt.Errorf("ask for the password: %w", t.err)
		}
		return string(t.password), nil
	}
}

// get asks a question.
func (c *apiClient) get(ctx context.Context, path string, query url.Values, into any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, into, "")
}

// command has something done, once, however often it is asked. Without a key of
// an earlier try it draws one.
func (c *apiClient) command(ctx context.Context, method, path string, body, into any, key string) error {
	if key == "" {
		key = uuid.NewString()
	}
	err := c.do(ctx, method, path, nil, body, into, key)
	if refused, ok := errors.AsType[*answerError](err); ok && !refused.passing() {
		return err
	}
	if _, away := errors.AsType[*unreachableError](err); away || err == nil {
		return err
	}
	return fmt.Errorf("%w\nIt may have been done all the same. To find out, repeat the command with --idempotency-key %s", err, key)
}

// do makes a request and decodes its answer. It tries again when the API asks
// for that, and when an answer got lost.
func (c *apiClient) do(ctx context.Context, method, path string, query url.Values, body, into any, key string) error {
	for try := 1; ; try++ {
		answer, err := c.once(ctx, method, path, query, body, key)
		if err == nil {
			if err := json.Unmarshal(answer, into); err != nil {
				return fmt.Errorf("%s %s was answered with JSON that this command does not understand: are both of one version? %w", method, path, err)
			}
			return nil
		}
		pause := time.Second
		refused, answered := errors.AsType[*answerError](err)
		_, away := errors.AsType[*unreachableError](err)
		if answered && refused.wait > 0 {
			pause = refused.wait
		}
		if try == tries || away || answered && !refused.passing() || ctx.Err() != nil || c.wait(ctx, min(pause, mostWait)) != nil {
			return err
		}
	}
}

// once makes a request and returns the body of its answer.
func (c *apiClient) once(ctx context.Context, method, path string, query url.Values, body any, key string) ([]byte, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	target := strings.TrimSuffix(c.base.String(), "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, content)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// The URL in its text has been named already.
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return nil, &unreachableError{c.base.String(), err}
		}
		return nil, fmt.Errorf("no answer from %s: %w", c.base, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer of %s: %w", c.base, err)
	case len(answer) > answerLimit:
		return nil, fmt.Errorf("the answer of %s is larger than %d MiB: ask for less with --limit", c.base, answerLimit>>20)
	case resp.StatusCode/100 == 2 && json.Valid(answer):
		return answer, nil
	}
	return nil, newAnswerError(c.base.String(), resp, answer)
}

// unreachableError says that there was nobody to send a request to.
type unreachableError struct {
	url string
	err error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("nobody answers at %s: does appointments run there? Another address is set with --api-url (WEBHOOKS_API): %v", e.url, e.err)
}

func (e *unreachableError) Unwrap() error { return e.err }

// answerError is an answer that is no success.
type answerError struct {
	status int
	text   string
	wait   time.Duration // as Retry-After asks for it, if it does
}

func (e *answerError) Error() string { return e.text }

// passing says that another try may go better. What a command did is unknown.
func (e *answerError) passing() bool {
	return e.status == http.StatusServiceUnavailable || e.status == http.StatusBadGateway || e.status == http.StatusGatewayTimeout
}

// newAnswerError reads an answer and says what to do about it.
func newAnswerError(base string, resp *http.Response, content []byte) *answerError {
	e := &answerError{status: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.wait = time.Duration(seconds) * time.Second
	}
	var body struct {
		Error string `json:"error"` // names the fields that are wrong, too
	}
	if json.Unmarshal(content, &body) != nil || body.Error == "" {
		e.text = fmt.Sprintf("%s answers %d, and not as the webhooks' API does: is --api-url (WEBHOOKS_API) right?", base, resp.StatusCode)
		return e
	}
	e.text = harmless(body.Error)
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		e.text += ": the session has ended or never was. Sign in again, and set WEBHOOKS_TOKEN to the new token, or use --username instead"
	case http.StatusForbidden:
		e.text += ": this takes a user with the role admin or integrator"
	case http.StatusTooManyRequests:
		e.text += fmt.Sprintf(" (%s)", short(e.wait))
	}
	return e
}

// pathOf joins parts of a path, each of them escaped.
func pathOf(parts ...string) string {
	escaped := slices.Clone(parts)
	for i, part := range parts {
		escaped[i] = url.PathEscape(part)
	}
	return "/api/" + strings.Join(escaped, "/")
}
