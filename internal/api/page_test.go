package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"

	"github.com/arsmedicatech/webhooks/internal/session"
)

// Lists come in pages of as many items as are asked for, each item once and in the
// order of the whole list, which is what comes without a limit.
func TestPages(t *testing.T) {
	c := deploy(t).start(t, nil).as(session.Admin)
	var one string
	for _, start := range []string{"10:00", "11:00", "12:00", "13:00", "14:00"} {
		one = c.book("patient:1", "provider:1", start, start[:3]+"30")
		c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(http.StatusCreated)
	}
	for _, start := range []string{"14:10", "14:20", "14:05", "14:15"} {
		c.call("PUT", "/api/appointments/"+one, `{"start_time":"`+start+`","end_time":"15:00"}`).want(http.StatusOK)
	}
	for path, list := range map[string]string{
		"/api/appointments": "appointments", "/api/webhooks": "subscriptions", "/api/appointments/" + one + "/history": "events",
	} {
		read := func(query string) (ids []string, next string) {
			t.Helper()
			var body map[string]json.RawMessage
			var items []struct{ ID string }
			check(t, json.Unmarshal([]byte(c.call("GET", path+query, "").want(http.StatusOK).raw), &body))
			check(t, json.Unmarshal(body[list], &items))
			if text := body["next_cursor"]; text != nil {
				check(t, json.Unmarshal(text, &next))
			}
			for _, item := range items {
				ids = append(ids, item.ID)
			}
			return ids, next
		}
		whole, next := read("")
		if len(whole) != 5 || next != "" {
			t.Fatalf("%s lists %v, and then %q", path, whole, next)
		}
		var all []string
		pages := 0
		for cursor := ""; pages == 0 || cursor != ""; pages++ {
			var ids []string
			ids, cursor = read("?limit=2&cursor=" + cursor)
			all = append(all, ids...)
		}
		if pages != 3 || !slices.Equal(all, whole) {
			t.Errorf("%s lists %v on %d pages, and %v as a whole", path, all, pages, whole)
		}
		for _, wrong := range []string{"?limit=0", "?limit=201", "?limit=x", "?cursor=x"} {
			c.call("GET", path+wrong, "").refused(http.StatusBadRequest, "invalid_input")
		}
	}
}
