package sender_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// short is a ladder that takes no time.
var short = webhook.Schedule{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 4 * time.Millisecond, 5 * time.Millisecond}

func TestDelivered(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte("thank you"))
	})
	s := b.subscribe(rc.url)
	snd := b.start()
	d := b.deliver(s)
	got := rc.next()
	snd.stop()

	if !bytes.Equal(got.body, d.Body) {
		t.Errorf("body %s, want %s", got.body, d.Body)
	}
	if err := webhook.Verify("first secret", got.header, got.body, time.Now(), 5*time.Minute); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "ArsMedicaTech-Webhooks/1.0", "X-Event-Type": "appointment.created",
		"X-Delivery-Id": d.ID, "Webhook-Id": d.ID, "X-Delivery-Attempt": "1",
	} {
		if got.header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.header.Get(name), want)
		}
	}
	a := b.attempts(1)[0]
	if a.DeliveryID != d.ID || a.Attempt != 1 || a.Outcome != webhook.Delivered || a.Status != http.StatusAccepted || a.Answer != "thank you" || a.NextAttemptAt != nil {
		t.Errorf("recorded as %+v", a)
	}
	b.wantAllCommitted(b.topics.Deliveries())

	// What is committed is not read again.
	snd = b.start()
	after := b.deliver(s)
	rc.next()
	snd.stop()
	rc.wantOnce(t, d.ID, after.ID)
	b.wantCount(b.topics.Attempts(), 2)
	b.wantCount(b.topics.DeadLetters(), 0)
}

func TestRetriedUntilDead(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(status(http.StatusInternalServerError))
	s := b.subscribe(rc.url)
	snd := b.start()
	d := b.deliver(s)
	dead := b.deadLetters(1)[0]
	recorded := b.attempts(6)
	snd.stop()

	for n := 1; n <= 6; n++ {
		got := rc.next()
		if want := string(rune('0' + n)); got.header.Get("X-Delivery-Attempt") != want || !bytes.Equal(got.body, d.Body) {
			t.Errorf("request %d has attempt %s and body %s", n, got.header.Get("X-Delivery-Attempt"), got.body)
		}
	}
	byAttempt := map[int]*webhook.Attempt{}
	for _, a := range recorded {
		byAttempt[a.Attempt] = a
	}
	for i, delay := range short {
		n := i + 1
		a := byAttempt[n]
		if a == nil || a.Outcome != webhook.Failed || a.Status != 500 || a.Error != "status" || a.NextAttemptAt == nil {
			t.Fatalf("attempt %d is recorded as %+v", n, a)
		}
		b.wantCount(b.topics.Retry(delay), 1)
		waiting, err := webhook.ParseDelivery(b.read(b.topics.Retry(delay), 1)[0])
		if err != nil {
			t.Fatal(err)
		}
		if waiting.ID != d.ID || waiting.Attempt != n+1 || len(waiting.History) != n || !bytes.Equal(waiting.Body, d.Body) || waiting.Subscription != d.Subscription {
			t.Errorf("after attempt %d, %+v waits", n, waiting)
		}
		if waiting.NotBefore.Before(a.At.Add(delay).Truncate(time.Millisecond)) || !waiting.NotBefore.Equal(a.NextAttemptAt.Truncate(time.Millisecond)) {
			t.Errorf("attempt %d at %s is followed not before %s, recorded as %s", n, a.At, waiting.NotBefore, a.NextAttemptAt)
		}
	}
	if last := byAttempt[6]; last == nil || last.Outcome != webhook.Dead || last.NextAttemptAt != nil {
		t.Errorf("the last attempt is recorded as %+v", last)
	}
	if dead.Reason != webhook.ReasonExhausted || dead.Source.Topic != b.topics.Retry(short[4]) || dead.Delivery == nil {
		t.Fatalf("dead letter %+v", dead)
	}
	if dead.Delivery.DeliveryID != d.ID || dead.Delivery.Body != string(d.Body) || len(dead.Delivery.Attempts) != 6 {
		t.Errorf("dead delivery %+v", dead.Delivery)
	}
	for i, past := range dead.Delivery.Attempts {
		if past.Attempt != i+1 || past.Status != 500 {
			t.Errorf("its attempt %d: %+v", i+1, past)
		}
	}
	b.wantCount(b.topics.Attempts(), 6)
	b.wantAllCommitted(b.topics.Deliveries())
	for _, delay := range short {
		b.wantAllCommitted(b.topics.Retry(delay))
	}
}

func TestKnownAsDelivered(t *testing.T) {
	b := newBench(t, short)
	w := watch(b)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	snd := b.start()
	first := b.deliver(s) // its arrival says that Redis is open
	rc.next()
	known := newDelivery(s)
	if err := b.settle(known.ID, 1, webhook.Delivered); err != nil {
		t.Fatal(err)
	}
	b.send(b.topics.Deliveries(), known)
	last := b.deliver(s)
	rc.next()
	if id := <-w.settled; id != known.ID {
		t.Errorf("%s was found settled, want %s", id, known.ID)
	}
	snd.stop()
	rc.wantOnce(t, first.ID, last.ID)
	b.wantCount(b.topics.Attempts(), 2)
	b.wantAllCommitted(b.topics.Deliveries())
}

func TestDiscarded(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(nil)
	disabled, deleted, gone := b.subscribe(rc.url), b.subscribe(rc.url), b.subscribe(rc.url)
	want := map[string]string{}
	for s, why := range map[*subscription]string{disabled: "subscription_disabled", deleted: "subscription_deleted", gone: "subscription_deleted"} {
		want[b.deliver(s).ID] = why
	}
	disabled.Enabled = false
	b.put(disabled)
	deleted.Deleted = true
	b.put(deleted)
	tomb := b.produce(&kgo.Record{Topic: b.topics.Subscriptions(), Key: []byte(gone.ID)})

	snd := b.start(knowing(tomb))
	for _, a := range b.attempts(3) {
		if a.Outcome != webhook.Discarded || a.Error != want[a.DeliveryID] || a.Attempt != 1 {
			t.Errorf("recorded as %+v, want discarded because of %s", a, want[a.DeliveryID])
		}
	}
	snd.stop()
	rc.wantOnce(t)
	b.wantCount(b.topics.Attempts(), 3)
	b.wantCount(b.topics.DeadLetters(), 0)
	b.wantAllCommitted(b.topics.Deliveries())
}

// A repaired URL and a new secret help deliveries that wait.
func TestRetargetedAndRekeyed(t *testing.T) {
	b := newBench(t, short)
	changed := make(chan struct{})
	before := b.receive(func(w http.ResponseWriter, r *http.Request, _ int) {
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusBadGateway)
	})
	after := b.receive(nil)
	s := b.subscribe(before.url)
	snd := b.start()
	d := b.deliver(s)
	if got := before.next(); webhook.Verify("first secret", got.header, got.body, time.Now(), time.Hour) != nil {
		t.Error("the first attempt is not signed with the first secret")
	}
	s.TargetURL, s.Secret = after.url, "sealed:second secret"
	b.put(s)
	if err := snd.registry.Await(t.Context(), s.at.Partition, s.at.Offset+1); err != nil {
		t.Fatal(err)
	}
	close(changed)
	got := after.next()
	snd.stop()
	if err := webhook.Verify("second secret", got.header, got.body, time.Now(), time.Hour); err != nil {
		t.Error(err)
	}
	if got.header.Get("X-Delivery-Attempt") != "2" || !bytes.Equal(got.body, d.Body) {
		t.Errorf("attempt %s with body %s", got.header.Get("X-Delivery-Attempt"), got.body)
	}
	before.wantOnce(t, d.ID)
	after.wantOnce(t, d.ID)
}

// Records that are no deliveries, or could never be settled, become dead
// letters, and their partition goes on.
func TestUnreadable(t *testing.T) {
	b := newBench(t, short)
	rc := b.receive(nil)
	s := b.subscribe(rc.url)
	key := []byte(s.ID)
	attempt256 := newDelivery(s)
	attempt256.Attempt = 256
	huge := newDelivery(s)
	huge.Body = bytes.Repeat([]byte("x"), 300<<10)
	positions := map[webhook.Source]int{} // to the bytes of the value that are kept
	note := func(r *kgo.Record, kept int) { positions[webhook.SourceOf(r)] = kept }
	note(b.produce(&kgo.Record{Topic: b.topics.Deliveries(), Key: key, Value: []byte("garbage")}), 7)
	note(b.send(b.topics.Deliveries(), attempt256), len(attempt256.Body))
	note(b.send(b.topics.Deliveries(), huge), len(huge.Body))
	note(b.produce(&kgo.Record{Topic: b.topics.Deliveries(), Key: key, Value: bytes.Repeat([]byte("y"), 900<<10)}), 0)
	note(b.produce(&kgo.Record{Topic: b.topics.Retry(short[0]), Key: key, Value: []byte("garbage")}), 7)
	d := b.deliver(s)

	snd := b.start()
	rc.next()
	for _, dead := range b.deadLetters(len(positions)) {
		kept, known := positions[dead.Source]
		if !known || dead.Reason != webhook.ReasonUnreadable || dead.Error == "" || dead.Record == nil || len(dead.Record.Value) != kept {
			text, _ := json.Marshal(dead)
			t.Errorf("dead letter %.300s", text)
		}
		delete(positions, dead.Source)
	}
	snd.stop()
	if len(positions) > 0 {
		t.Errorf("no dead letters of %v", positions)
	}
	rc.wantOnce(t, d.ID)
	b.wantAllCommitted(b.topics.Deliveries())
	b.wantAllCommitted(b.topics.Retry(short[0]))
}
