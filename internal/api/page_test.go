package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
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
			return c.listed(list, path+query)
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
		_, cursor := read("?limit=2")
		for _, wrong := range []string{
			"?limit=0", "?limit=201", "?limit=x", "?cursor=x", "?cursor=" + whole[0], "?cursor=" + cursor[1:], "?cursor=" + cursor[:len(cursor)-1], "?cursor=" + cursor + "A",
		} {
			c.call("GET", path+wrong, "").refused(http.StatusBadRequest, "invalid_input")
		}
	}
}

// listed reads a page of a list: the ids of its items, and the cursor of the next.
func (c *caller) listed(list, path string) (ids []string, next string) {
	c.t.Helper()
	r := c.call("GET", path, "").want(http.StatusOK)
	var items []struct{ ID string }
	check(c.t, json.Unmarshal(r.body[list], &items))
	for _, item := range items {
		ids = append(ids, item.ID)
	}
	return ids, r.text("next_cursor")
}

// A page begins where the one before ended, whatever became of the item that was
// its last: nothing else is left out, and nothing else comes twice.
func TestPagesWhileTheListChanges(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	for what, change := range map[string]func(id string){
		"later":    func(id string) { c.call("PUT", id, `{"start_time":"16:00","end_time":"16:30"}`).want(http.StatusOK) },
		"earlier":  func(id string) { c.call("PUT", id, `{"start_time":"08:00","end_time":"08:30"}`).want(http.StatusOK) },
		"next day": func(id string) { c.call("PUT", id, `{"appointment_date":"2030-05-07"}`).want(http.StatusOK) },
		"gone":     func(id string) { c.call("POST", id+"/cancel", "").want(http.StatusOK) },
	} {
		patient := "patient:" + strings.ReplaceAll(what, " ", "-")
		var made []string
		for _, start := range []string{"10:00", "11:00", "12:00", "13:00"} {
			made = append(made, c.book(patient, "provider:"+patient, start, start[:3]+"30"))
		}
		path := "/api/appointments?status=scheduled&date=2030-05-06&limit=2&patient_id=" + patient
		first, next := c.listed("appointments", path)
		change("/api/appointments/" + made[1])
		second, _ := c.listed("appointments", path+"&cursor="+next)
		if !slices.Equal(first, made[:2]) || !slices.Equal(second, made[2:]) {
			t.Errorf("%s: the pages are %v and %v, want the two halves of %v", what, first, second, made)
		}
	}

	// At the same time, of several providers.
	var all []string
	for _, provider := range []string{"provider:a", "provider:b", "provider:c", "provider:d"} {
		all = append(all, c.book("patient:twin", provider, "10:00", "10:30"))
	}
	slices.Sort(all)
	path := "/api/appointments?status=scheduled&limit=2&patient_id=patient:twin"
	_, next := c.listed("appointments", path)
	c.call("POST", "/api/appointments/"+all[1]+"/cancel", "").want(http.StatusOK)
	if second, _ := c.listed("appointments", path+"&cursor="+next); !slices.Equal(second, all[2:]) {
		t.Errorf("the second page is %v, want the second half of %v", second, all)
	}
	// Nothing is left behind the first page.
	for _, id := range all[2:] {
		c.call("POST", "/api/appointments/"+id+"/cancel", "").want(http.StatusOK)
	}
	if second, more := c.listed("appointments", path+"&cursor="+next); len(second) > 0 || more != "" {
		t.Errorf("the second page is %v, and then %q", second, more)
	}

	for range 4 {
		c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(http.StatusCreated)
	}
	subs, _ := c.listed("subscriptions", "/api/webhooks")
	_, next = c.listed("subscriptions", "/api/webhooks?limit=2")
	c.call("DELETE", "/api/webhooks/"+subs[1], "").want(http.StatusOK)
	if second, _ := c.listed("subscriptions", "/api/webhooks?limit=2&cursor="+next); !slices.Equal(second, subs[2:]) {
		t.Errorf("the second page is %v, want the second half of %v", second, subs)
	}
}

// A cursor goes on with the list that it is of, and with no other.
func TestCursorIsOfOneList(t *testing.T) {
	in := deploy(t).start(t, nil)
	c := in.as(session.Admin)
	one, other := c.book("patient:1", "provider:1", "10:00", "10:30"), c.book("patient:1", "provider:2", "11:00", "11:30")
	for _, id := range []string{one, other} {
		c.call("POST", "/api/appointments/"+id+"/confirm", "").want(http.StatusOK)
	}
	for range 2 {
		c.call("POST", "/api/webhooks", hook("appointment.created", "")).want(http.StatusCreated)
	}
	hooks, _ := c.listed("subscriptions", "/api/webhooks")
	for _, sub := range hooks {
		for range 2 {
			c.call("POST", "/api/webhooks/"+sub+"/replays", `{"from":"latest"}`).want(http.StatusCreated)
		}
	}
	for _, l := range []struct{ list, path, other string }{
		{"appointments", "/api/appointments?", "/api/appointments?status=confirmed&"},
		{"appointments", "/api/appointments?patient_id=patient:1&", "/api/appointments?patient_id=patient:2&"},
		{"appointments", "/api/appointments?", "/api/webhooks?"},
		{"subscriptions", "/api/webhooks?", "/api/webhooks?enabled=true&"},
		{"events", "/api/appointments/" + one + "/history?", "/api/appointments/" + other + "/history?"},
		{"replays", "/api/webhooks/" + hooks[0] + "/replays?", "/api/webhooks/" + hooks[1] + "/replays?"},
	} {
		_, next := c.listed(l.list, l.path+"limit=1")
		if second, more := c.listed(l.list, l.path+"limit=1&cursor="+next); len(second) != 1 || more != "" {
			t.Errorf("%s: the second page is %v, and then %q", l.path, second, more)
		}
		c.call("GET", l.other+"limit=1&cursor="+next, "").refused(http.StatusBadRequest, "invalid_input", "cursor")
	}
}
