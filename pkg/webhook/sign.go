package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
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
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// StandardSignature returns the value of webhook-signature for an attempt at a
// delivery made at that time. A secret of the form whsec_<base64> is decoded,
// as Standard Webhooks says; any other is used as its bytes.
func StandardSignature(secret, id string, at time.Time, body []byte) string {
	return standardSignature(secret, id, strconv.FormatInt(at.Unix(), 10), body)
}

func standardSignature(secret, id, timestamp string, body []byte) string {
	key := []byte(secret)
	if encoded, ok := strings.CutPrefix(secret, standardPrefix); ok {
		if decoded, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			key = decoded
		}
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id))
	mac.Write([]byte{'.'})
	mac.Write([]byte(timestamp))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Sign sets the headers of one attempt at a delivery, made at that time.
func Sign(h http.Header, secret string, d *Delivery, at time.Time) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	h["Content-Type"] = []string{"application/json"}
	h["User-Agent"] = []string{UserAgent}
	h[HeaderEventType] = []string{d.EventType}
	h[HeaderDeliveryID] = []string{d.ID}
	h[HeaderAttempt] = []string{strconv.Itoa(d.Attempt)}
	h[HeaderSignature] = []string{Signature(secret, d.Body)}
	h[HeaderStandardID] = []string{d.ID}
	h[HeaderStandardTimestamp] = []string{timestamp}
	h[HeaderStandardSignature] = []string{standardSignature(secret, d.ID, timestamp, d.Body)}
	if d.Test() {
		h[HeaderTest] = []string{"true"}
	}
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
	want := []byte(standardSignature(secret, h.Get(HeaderStandardID), timestamp, body))
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
