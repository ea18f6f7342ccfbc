package webhook_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// A record is refused, or is a delivery that its own record says again.
func FuzzParseDelivery(f *testing.F) {
	id := webhook.DeliveryID("e", "s", "")
	f.Add([]byte("s"), []byte("{}"), id, "appointment.created", "0/1", "0/2", "2", "1700000000000", `[{"attempt":1,"status":500}]`)
	f.Add([]byte("s"), []byte("{}"), id, "x", "0/1", "0/2", "1", "-1", `null`)
	f.Add([]byte(nil), []byte(nil), "", "", "", "/", "", "", "")
	f.Add([]byte("s"), []byte("{}"), "{"+id+"}", "\r\n", "0/-1", "9/9223372036854775808", "-1", "9223372036854775807", "[")
	f.Fuzz(func(t *testing.T, key, body []byte, id, eventType, event, subscription, attempt, notBefore, history string) {
		r := &kgo.Record{Key: key, Value: body}
		for _, h := range [][2]string{
			{"delivery_id", id}, {"event_type", eventType}, {"event_position", event}, {"subscription_position", subscription},
			{"attempt", attempt}, {"not_before", notBefore}, {"history", history},
		} {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
		}
		d, err := webhook.ParseDelivery(r)
		if err != nil {
			return
		}
		again, err := d.Encode("t")
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		if d.Attempt == 1 && len(d.History) == 0 {
			return // the first attempt's record does not say when it is due
		}
		twice, err := webhook.ParseDelivery(again)
		if err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		if thrice, err := twice.Encode("t"); err != nil || !reflect.DeepEqual(thrice, again) {
			t.Fatalf("written as\n%+v\nand then as\n%+v, %v", again, thrice, err)
		}
	})
}

// A value is refused, or is a subscription that can be asked anything.
func FuzzParseSubscription(f *testing.F) {
	value, err := json.Marshal(subscription())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(subscriptionID), value, "appointment.created", int32(1), int64(5))
	f.Add([]byte("s"), []byte(`{"id":"s","event_name":"*","target_url":"u","version":1,"deleted":true,"rules":[{"from":null},{"from":[-1]}]}`), "", int32(-1), int64(-1))
	f.Add([]byte("s"), []byte(`{"id":"s","event_name":"*","target_url":"u","version":1,"deleted":true}`), "x", int32(0), int64(0))
	f.Add([]byte(nil), []byte("null"), "", int32(0), int64(0))
	f.Fuzz(func(t *testing.T, key, value []byte, eventType string, partition int32, offset int64) {
		s, err := webhook.ParseSubscription(key, value)
		if err != nil {
			return
		}
		if s.ID != string(key) || len(s.Rules) == 0 {
			t.Fatalf("%q is taken for a subscription of the key %q", value, key)
		}
		// Positions come from the log or from ParsePosition, never negative.
		s.Matches(eventType, webhook.Position{Partition: partition & 0x7fffffff, Offset: offset})
		s.Gone([]int64{offset})
		s.Prune([]int64{offset})
		if len(s.Rules) == 0 {
			t.Fatal("no rule is left")
		}
	})
}

// A value is refused, or is an attempt that is read the same when written again.
func FuzzParseAttempt(f *testing.F) {
	f.Add([]byte(`{"delivery_id":"d","subscription_id":"s","attempt":1,"outcome":"failed","next_attempt_at":"2026-09-01T12:00:00Z","latency_ms":1e-3}`))
	f.Add([]byte(`{"delivery_id":"d","subscription_id":"s","attempt":1,"outcome":"delivered","answer":"\ud800","at":"0001-01-01T00:00:00Z"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, value []byte) {
		a, err := webhook.ParseAttempt(value)
		if err != nil {
			return
		}
		first, err := json.Marshal(a)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := webhook.ParseAttempt(first)
		if err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		if second, err := json.Marshal(again); err != nil || string(second) != string(first) {
			t.Fatalf("written as %s and then as %s, %v", first, second, err)
		}
	})
}

// Whatever a stranger sends is refused without a panic; a signed request is
// always verified.
func FuzzVerify(f *testing.F) {
	f.Add("test-secret", []byte(`{}`), "id", int64(1_700_000_000), "sha256=00", "1700000000", "v1,AAAA")
	f.Add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", []byte(nil), "", int64(0), "", "", "")
	f.Add("whsec_%", []byte("\xff"), "a.b", int64(-1), "sha256=", "-9223372036854775808", " v1, v1a,x ")
	f.Fuzz(func(t *testing.T, secret string, body []byte, id string, unix int64, signature, timestamp, standard string) {
		now := time.Unix(unix%1e11, 0) // beyond the year 5000 the clock itself gives up
		h := http.Header{}
		h.Set(webhook.HeaderSignature, signature)
		h.Set(webhook.HeaderStandardID, id)
		h.Set(webhook.HeaderStandardTimestamp, timestamp)
		h.Set(webhook.HeaderStandardSignature, standard)
		if err := webhook.Verify(secret, h, body, now, time.Minute); err == nil {
			if signature != webhook.Signature(secret, body) {
				t.Fatal("a wrong signature is taken")
			}
		} else if !errors.Is(err, webhook.ErrSignature) && !errors.Is(err, webhook.ErrStale) {
			t.Fatalf("neither ErrSignature nor ErrStale: %v", err)
		}
		webhook.NewSigner(secret).Sign(h.Set, &webhook.Delivery{ID: id, EventType: "x", Attempt: 1, Body: body}, now)
		if err := webhook.Verify(secret, h, body, now, time.Minute); err != nil {
			t.Fatalf("a signed request is refused: %v", err)
		}
		if err := webhook.Verify(secret, h, append(body, 'x'), now, time.Minute); !errors.Is(err, webhook.ErrSignature) {
			t.Fatalf("another body is taken: %v", err)
		}
		if err := webhook.Verify(secret+"x", h, body, now, time.Minute); !errors.Is(err, webhook.ErrSignature) {
			t.Fatalf("another secret is taken: %v", err)
		}
	})
}
