package webhook

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// The headers of a request that carry or are covered by a signature. The
// webhook-* ones are those of the Standard Webhooks specification
// (https://www.standardwebhooks.com).
const (
	HeaderSignature         = "X-Signature"
	HeaderEventType         = "X-Event-Type"
	HeaderDeliveryID        = "X-Delivery-Id"
	HeaderAttempt           = "X-Delivery-Attempt"
	HeaderStandardID        = "Webhook-Id"
	HeaderStandardTimestamp = "Webhook-Timestamp"
	HeaderStandardSignature = "Webhook-Signature"
	// HeaderTest is there, with the value true, on examples only.
	HeaderTest = "X-Webhook-Test"
)

// UserAgent is sent with every request.
const UserAgent = "ArsMedicaTech-Webhooks/1.0"

const standardPrefix = "whsec_"

// Signature returns the value of X-Signature: the HMAC-SHA256 of the body with
// the secret's bytes as key.
func Signature(secret string, body []byte) string {
	return newMAC([]byte(secret)).signature(body)
}

// StandardSignature returns the value of webhook-signature for an attempt at a
// delivery made at that time. A secret of the form whsec_<base64> is decoded,
// as Standard Webhooks says; any other is used as its bytes.
func StandardSignature(secret, id string, at time.Time, body []byte) string {
	return newMAC(standardKey(secret)).standardSignature(id, strconv.FormatInt(at.Unix(), 10), body)
}

func standardKey(secret string) []byte {
	if encoded, ok := strings.CutPrefix(secret, standardPrefix); ok {
		if key, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			return key
		}
	}
	return []byte(secret)
}

// mac makes one signature after the other with the same key.
type mac struct {
	hash hash.Hash
	// What is given to an interface's method can't be on the stack.
	sum, text []byte
}

func newMAC(key []byte) *mac { return &mac{hash: hmac.New(sha256.New, key)} }

func (m *mac) signature(body []byte) string {
	m.hash.Write(body)
	m.end()
	m.text = hex.AppendEncode(append(m.text[:0], "sha256="...), m.sum)
	return string(m.text)
}

func (m *mac) standardSignature(id, timestamp string, body []byte) string {
	m.text = append(append(append(append(m.text[:0], id...), '.'), timestamp...), '.')
	m.hash.Write(m.text)
	m.hash.Write(body)
	m.end()
	m.text = base64.StdEncoding.AppendEncode(append(m.text[:0], "v1,"...), m.sum)
	return string(m.text)
}

func (m *mac) end() {
	m.sum = m.hash.Sum(m.sum[:0])
	m.hash.Reset()
}

// A Signer signs with one secret. It is safe for concurrent use, and remembers
// what can be computed once.
type Signer struct {
	key, standardKey []byte
	// idle is ready for another signature. Signing is short: hardly ever do two want
	// it at a time. A sync.Pool for each secret would burden the collector.
	idle atomic.Pointer[macs]
}

type macs struct{ plain, standard *mac } // the same if the keys are

// NewSigner returns a Signer for a subscription's secret, as it was given by its
// owner.
func NewSigner(secret string) *Signer {
	return &Signer{key: []byte(secret), standardKey: standardKey(secret)}
}

// Sign sets the header fields of one attempt at a delivery, made at that time.
// set may be the method of an http.Header, or one that appends.
func (s *Signer) Sign(set func(name, value string), d *Delivery, at time.Time) {
	m := s.idle.Swap(nil)
	if m == nil {
		m = s.newMACs()
	}
	defer s.idle.Store(m)
	timestamp := strconv.FormatInt(at.Unix(), 10)
	set("User-Agent", UserAgent)
	set("Content-Type", "application/json")
	set(HeaderEventType, d.EventType)
	set(HeaderDeliveryID, d.ID)
	set(HeaderAttempt, strconv.Itoa(d.Attempt))
	set(HeaderSignature, m.plain.signature(d.Body))
	set(HeaderStandardID, d.ID)
	set(HeaderStandardTimestamp, timestamp)
	set(HeaderStandardSignature, m.standard.standardSignature(d.ID, timestamp, d.Body))
	if d.Test() {
		set(HeaderTest, "true")
	}
}

func (s *Signer) newMACs() *macs {
	plain := newMAC(s.key)
	if bytes.Equal(s.key, s.standardKey) {
		return &macs{plain, plain}
	}
	return &macs{plain, newMAC(s.standardKey)}
}

// Errors of Verify.
var (
	ErrSignature = errors.New("the signature does not match")
	ErrStale     = errors.New("the timestamp is too far from now")
)

// Verify is for receivers: it checks both signatures of a request and that its
// timestamp is within the tolerance of now (5 minutes is usual), which keeps a
// recorded request from being played again later. It returns an error that
// wraps ErrSignature or ErrStale, or nil.
func Verify(secret string, h http.Header, body []byte, now time.Time, tolerance time.Duration) error {
	if !hmac.Equal([]byte(h.Get(HeaderSignature)), []byte(Signature(secret, body))) {
		return fmt.Errorf("%s: %w", HeaderSignature, ErrSignature)
	}
	timestamp := h.Get(HeaderStandardTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", HeaderStandardTimestamp, ErrSignature)
	}
	want := []byte(newMAC(standardKey(secret)).standardSignature(h.Get(HeaderStandardID), timestamp, body))
	matched := false
	for got := range strings.FieldsSeq(h.Get(HeaderStandardSignature)) {
		matched = matched || hmac.Equal([]byte(got), want)
	}
	if !matched {
		return fmt.Errorf("%s: %w", HeaderStandardSignature, ErrSignature)
	}
	if off := now.Sub(time.Unix(seconds, 0)); off.Abs() > tolerance {
		return fmt.Errorf("%s is off by %s: %w", HeaderStandardTimestamp, off.Round(time.Second), ErrStale)
	}
	return nil
}
