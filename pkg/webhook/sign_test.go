package webhook_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// The vector was computed with the specification's own Python function.
func TestSignatureIsTheSpecifications(t *testing.T) {
	got := webhook.Signature("test-secret", []byte(`{"event":"appointment.created"}`))
	want := "sha256=e5ff866eac175d9149dff699c3292e9b6b05537a28769ec7b17d47ca091558dd"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func signed(secret string, at time.Time) (http.Header, []byte) {
	d := &webhook.Delivery{
		ID: "7f6f3a52-6a0c-4a6e-9d8f-3f1f5f0f9a11", SubscriptionID: "webhook_subscription:1", EventType: "appointment.created",
		Attempt: 1, Body: []byte(`{"event":"appointment.created","data":{}}`),
	}
	h := http.Header{}
	webhook.NewSigner(secret).Sign(h.Set, d, at)
	return h, d.Body
}

func TestStandardLibraryVerifies(t *testing.T) {
	for name, secret := range map[string]string{
		"whsec": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"raw":   "test-secret",
	} {
		t.Run(name, func(t *testing.T) {
			h, body := signed(secret, time.Now())
			var wh *standard.Webhook
			var err error
			if strings.HasPrefix(secret, "whsec_") {
				wh, err = standard.NewWebhook(secret)
			} else {
				wh, err = standard.NewWebhookRaw([]byte(secret))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := wh.Verify(body, h); err != nil {
				t.Errorf("the Standard Webhooks library refuses it: %v", err)
			}
			if err := wh.Verify(append(body, ' '), h); err == nil {
				t.Error("the Standard Webhooks library takes a changed body")
			}
		})
	}
}

func TestVerify(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	h, body := signed("s", now)
	changed := func(name, value string) http.Header {
		c := h.Clone()
		c.Set(name, value)
		return c
	}
	for name, c := range map[string]struct {
		secret string
		h      http.Header
		body   string
		now    time.Time
		want   error
	}{
		"right":             {"s", h, string(body), now, nil},
		"other secret":      {"x", h, string(body), now, webhook.ErrSignature},
		"changed body":      {"s", h, string(body) + " ", now, webhook.ErrSignature},
		"no signature":      {"s", http.Header{}, string(body), now, webhook.ErrSignature},
		"changed id":        {"s", changed(webhook.HeaderStandardID, "other"), string(body), now, webhook.ErrSignature},
		"changed timestamp": {"s", changed(webhook.HeaderStandardTimestamp, "1700000001"), string(body), now, webhook.ErrSignature},
		"no number":         {"s", changed(webhook.HeaderStandardTimestamp, "soon"), string(body), now, webhook.ErrSignature},
		"one of several":    {"s", changed(webhook.HeaderStandardSignature, "v1,AAAA "+h.Get(webhook.HeaderStandardSignature)), string(body), now, nil},
		"old":               {"s", h, string(body), now.Add(6 * time.Minute), webhook.ErrStale},
		"of the future":     {"s", h, string(body), now.Add(-6 * time.Minute), webhook.ErrStale},
	} {
		t.Run(name, func(t *testing.T) {
			err := webhook.Verify(c.secret, c.h, []byte(c.body), c.now, 5*time.Minute)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestSignerIsSharedByMany(t *testing.T) {
	for _, secret := range []string{"test-secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"} {
		signer, now := webhook.NewSigner(secret), time.Now()
		var all sync.WaitGroup
		for n := range 8 {
			all.Go(func() {
				for i := range 200 {
					d := &webhook.Delivery{ID: fmt.Sprintf("%d-%d", n, i), EventType: "appointment.created", Attempt: 1, Body: fmt.Appendf(nil, `{"n":%d}`, i)}
					h := http.Header{}
					signer.Sign(h.Set, d, now)
					if err := webhook.Verify(secret, h, d.Body, now, time.Minute); err != nil {
						t.Errorf("%s: %v", d.ID, err)
					}
				}
			})
		}
		all.Wait()
	}
}
