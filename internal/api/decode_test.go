package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

func TestDecodeBoundsErrors(t *testing.T) {
	var body strings.Builder
	body.WriteString("{")
	for range 1000 {
		body.WriteString(`"` + strings.Repeat("ä", 500) + `":1,`)
	}
	body.WriteString(`"x":1}`)
	err := decode([]byte(body.String()))
	var refused *appointment.Refusal
	if !errors.As(err, &refused) || len(refused.Details) != maxProblems || len(refused.Message) > 10_000 {
		t.Errorf("error %.200v", err)
	}
}

// What decode takes, encoding/json takes too and understands in the same way;
// and nothing that is not a field gets through.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		``, ` `, `{}`, `{"notes":"x","enabled":true}`, `{"notes":null}`, `{"notes":1}`, `{"notes":"a","notes":"b"}`, `{"Notes":"x"}`,
		`{"notes":{"a":[1,{"b":2}]}}`, `{"enabled":"true"}`, `{} {}`, `[]`, `null`, `"x"`, `{"notes":"\ud800\u0000"}`, "{\"notes\":\"\xff\"}",
		`{"notes":"x"`, `{"notes"}`, `{"notes":"x",}`, `{"":""}`, "\ufeff{}", `{"n\u006ftes":"x"}`,
		`{"rate_limit":{"per_second":5,"burst":7}}`, `{"rate_limit": null}`, `{"rate_limit":{"per_second":5,"x":{}}}`, strings.Repeat(`{"notes":`, 50),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var notes *string
		var enabled *bool
		var limit *webhook.RateLimit
		err := decode(body, text("notes", &notes), flag("enabled", &enabled), rateLimit(func(l *webhook.RateLimit) { limit = l }))
		if err != nil {
			p := explain(err)
			if p.status != 400 || p.message == "" || !utf8.ValidString(p.message) {
				t.Fatalf("%q is refused with %+v", body, p)
			}
			return
		}
		if strings.TrimSpace(string(body)) == "" {
			return
		}
		var all map[string]any
		if err := json.Unmarshal(body, &all); err != nil {
			t.Fatalf("%q was taken, but: %v", body, err)
		}
		if want, ok := all["notes"].(string); ok != (notes != nil) || ok && *notes != want {
			t.Errorf("%q: notes is %v, want %q", body, notes, want)
		}
		if want, ok := all["enabled"].(bool); ok != (enabled != nil) || ok && *enabled != want {
			t.Errorf("%q: enabled is %v, want %v", body, enabled, want)
		}
		said, ok := all["rate_limit"].(map[string]any)
		if ok != (limit != nil) || ok && said["per_second"] != float64(limit.PerSecond) {
			t.Errorf("%q: the limit is %v, want %v", body, limit, said)
		}
		delete(said, "per_second")
		delete(said, "burst")
		if len(said) > 0 {
			t.Errorf("%q was taken with %v", body, said)
		}
		delete(all, "rate_limit")
		delete(all, "notes")
		delete(all, "enabled")
		if len(all) > 0 {
			t.Errorf("%q was taken with %v", body, all)
		}
	})
}
