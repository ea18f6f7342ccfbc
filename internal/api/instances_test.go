package api_test

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/events"
)

// forwards collects the command ids of requests that came from another instance.
type forwards struct {
	mu  sync.Mutex
	ids []string
}

func (f *forwards) watch(r *http.Request) {
	if id := r.Header.Get("X-Command-Id"); id != "" {
		f.mu.Lock()
		f.ids = append(f.ids, id)
		f.mu.Unlock()
	}
}

// shared waits until the group has that many members, each with partitions.
func (d *deployment) shared(t *testing.T, group string, members int) {
	t.Helper()
	admin := kadm.NewClient(testenv.Client(t, d.kafka))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		described, err := admin.DescribeGroups(ctx, group)
		check(t, err)
		have := 0
		for _, m := range described[group].Members {
			if a, ok := m.Assigned.AsConsumer(); ok && len(a.Topics) > 0 && len(a.Topics[0].Partitions) > 0 {
				have++
			}
		}
		if have == members && described[group].State == "Stable" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d of %d members have partitions", have, members)
		case <-tick.C:
		}
	}
}

// Whichever instance is asked, the one that writes the calendar answers.
func TestInstances(t *testing.T) {
	d := deploy(t)
	var atA, atB forwards
	a := d.start(t, atA.watch)
	b := d.start(t, atB.watch)
	d.shared(t, d.kafka.TopicPrefix+"appointments", 2)
	callers := []*caller{a.as(session.Admin), b.as(session.Admin)}

	// A provider of each partition.
	providers := map[int32]string{}
	for i := 0; len(providers) < testenv.Partitions; i++ {
		id := "provider:" + strconv.Itoa(i)
		providers[events.Partition(id, testenv.Partitions)] = id
	}
	made := 0
	for _, provider := range providers {
		for i, c := range callers {
			other := callers[1-i]
			start, end := strconv.Itoa(10+i)+":00", strconv.Itoa(10+i)+":30"
			key := []string{"Idempotency-Key", uuid.NewString()}
			body := booking("patient:1", provider, start, end)
			first := c.call("POST", "/api/appointments", body, key...).want(201)
			if first.header.Get("ETag") != `"1"` || len(first.header.Values("X-Content-Type-Options")) != 1 {
				t.Errorf("headers %v", first.header)
			}
			// The same command elsewhere is answered as the first was.
			if again := other.call("POST", "/api/appointments", body, key...).want(201); again.raw != first.raw {
				t.Errorf("the repeat is answered %s, the first was %s", again.raw, first.raw)
			}
			path := "/api/appointments/" + first.text("appointment", "id")
			other.call("GET", path, "").want(200)
			other.call("POST", "/api/appointments", body).refused(409, "time_conflict")
			other.call("PUT", path, `{"notes":"n"}`, "If-Match", `"1"`).want(200)
			c.call("PUT", path, `{"notes":"m"}`, "If-Match", `"1"`).refused(412, "version_mismatch")
			c.call("POST", path+"/confirm", "", "Origin", origin).want(200)
			made += 3
		}
	}
	ids := map[string]bool{}
	for _, f := range []*forwards{&atA, &atB} {
		if len(f.ids) == 0 {
			t.Error("an instance was forwarded nothing")
		}
		for _, id := range f.ids {
			if uuid.Validate(id) != nil || ids[id] {
				t.Errorf("the command id %q is wrong or came twice", id)
			}
			ids[id] = true
		}
	}
	// The log names the commands by the ids that they were forwarded under.
	found := 0
	for _, r := range testenv.Read(t, d.kafka, d.kafka.Topics().Events(), made) {
		e, err := events.Decode(r)
		check(t, err)
		if ids[e.Command] {
			found++
		}
	}
	if found == 0 {
		t.Error("no event has the id of a forwarded command")
	}
}

// Subscriptions are one partition: one instance writes them, both take commands.
func TestInstancesSubscriptions(t *testing.T) {
	d := deploy(t)
	var atA, atB forwards
	a := d.start(t, atA.watch)
	b := d.start(t, atB.watch)
	callers := []*caller{a.as(session.Admin), b.as(session.Admin)}
	for i, c := range callers {
		other := callers[1-i]
		path := "/api/webhooks/" + c.call("POST", "/api/webhooks", hook("appointment.*", "")).want(201).text("subscription", "id")
		other.call("GET", path, "").want(200)
		other.call("PUT", path, `{"enabled":false}`, "If-Match", `"1"`).want(200)
		c.call("DELETE", path, "", "If-Match", `"2"`).want(200)
		other.call("GET", path, "").refused(404, "subscription_not_found")
	}
	if len(atA.ids)+len(atB.ids) == 0 {
		t.Error("nothing was forwarded")
	}
}

// When an instance goes, the other takes over, and commands wait for that.
func TestInstanceLeaves(t *testing.T) {
	d := deploy(t)
	a := d.start(t, nil)
	b := d.start(t, nil)
	d.shared(t, d.kafka.TopicPrefix+"appointments", 2)
	c := b.as(session.Admin)
	for i := range 6 {
		c.book("patient:1", "provider:"+strconv.Itoa(i), "10:00", "10:30")
	}
	a.stop()
	for i := range 6 {
		c.call("POST", "/api/appointments", booking("patient:1", "provider:"+strconv.Itoa(i), "10:15", "10:45")).refused(409, "time_conflict")
		c.book("patient:1", "provider:"+strconv.Itoa(i), "11:00", "11:30")
	}
}
