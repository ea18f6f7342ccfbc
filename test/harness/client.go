package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// Client speaks to the API as a user.
type Client struct {
	URL   string
	Token string
	http  *http.Client
}

// NewClient makes a client that is not signed in.
func NewClient(url string) *Client {
	return &Client{URL: url, http: &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256},
	}}
}

// SignIn returns a client of an instance of the API, signed in as admin.
func (d *Deployment) SignIn(url string) *Client {
	d.tb.Helper()
	c := NewClient(url)
	answer := c.Must(d.tb, http.StatusOK, http.MethodPost, "/api/auth/login", map[string]any{"username": "admin", "password": "admin"})
	c.Token, _ = answer["token"].(string)
	return c
}

// Answer is the body of an answer.
type Answer map[string]any

// Object returns a member that is an object.
func (a Answer) Object(name string) Answer {
	o, _ := a[name].(map[string]any)
	return o
}

// String returns a member that is a string.
func (a Answer) String(name string) string {
	s, _ := a[name].(string)
	return s
}

// Do makes a request; body nil sends none. The error is of the connection; any
// status is an answer.
func (c *Client) Do(method, path string, body any, headers ...string) (int, Answer, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil, fmt.Errorf("encode request: %w", err)
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, c.URL+path, reader)
	if err != nil {
		return 0, nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	var answer Answer
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return resp.StatusCode, nil, fmt.Errorf("%s %s: status %d, and no JSON: %w", method, path, resp.StatusCode, err)
	}
	return resp.StatusCode, answer, nil
}

// Must makes a request that has to be answered with the status.
func (c *Client) Must(tb testing.TB, status int, method, path string, body any, headers ...string) Answer {
	tb.Helper()
	got, answer, err := c.Do(method, path, body, headers...)
	if err != nil {
		tb.Fatalf("%s %s: %v", method, path, err)
	}
	if got != status {
		tb.Fatalf("%s %s: status %d, want %d: %v", method, path, got, status, answer)
	}
	return answer
}

// Subscribe makes a subscription and returns its id.
func (c *Client) Subscribe(tb testing.TB, event, url, secret string) string {
	tb.Helper()
	return c.Must(tb, http.StatusCreated, http.MethodPost, "/api/webhooks",
		map[string]any{"event_name": event, "target_url": url, "secret": secret}).Object("subscription").String("id")
}

// Book makes an appointment and returns its id.
func (c *Client) Book(tb testing.TB, provider, date, start, end string) string {
	tb.Helper()
	return c.Must(tb, http.StatusCreated, http.MethodPost, "/api/appointments", map[string]any{
		"patient_id": "patient:1", "provider_id": provider, "appointment_date": date, "start_time": start, "end_time": end,
	}).Object("appointment").String("id")
}
