package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/test/harness"
)

// operate runs the operator's command against the deployment and returns what it
// shows.
func operate(t *testing.T, d *harness.Deployment, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), harness.Binary(t, "webhooks"), args...)
	cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+d.Brokers, "TOPIC_PREFIX="+d.Prefix,
		"WEBHOOKS_API="+d.URL, "WEBHOOKS_USERNAME=admin", "WEBHOOKS_PASSWORD=admin")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("webhooks %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// What the operator sees in Kafka is what happened: the delivery with its attempt,
// and that nobody is behind.
func TestOperatorSeesDeliveries(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	sink := harness.NewSink(t, nil)
	sub := c.Subscribe(t, "appointment.*", sink.URL, secret)
	c.Book(t, "provider:1", day, "10:00", "10:30")
	sink.AwaitN(t, 1)
	d.Drained(t)
	id := sink.Requests()[0].ID()

	for _, what := range []string{"deliveries", "attempts"} {
		var record struct {
			DeliveryID     string `json:"delivery_id"`
			SubscriptionID string `json:"subscription_id"`
			Outcome        string `json:"outcome"`
		}
		out := operate(t, d, "tail", what, "--from", "earliest", "-n", "1", "--subscription", sub, "-o", "json")
		if err := json.Unmarshal(out, &record); err != nil {
			t.Fatal(err)
		}
		if record.DeliveryID != id || record.SubscriptionID != sub || what == "attempts" && record.Outcome != "delivered" {
			t.Errorf("of the %s it shows %s", what, out)
		}
		if strings.Contains(string(out), "patient:1") {
			t.Errorf("of the %s it shows patients' data: %s", what, out)
		}
	}

	var lag struct {
		Groups []struct {
			Group  string `json:"group"`
			State  string `json:"state"`
			Topics []struct {
				Topic string `json:"topic"`
				Lag   int    `json:"lag"`
			} `json:"topics"`
		} `json:"groups"`
	}
	out := operate(t, d, "lag", "-o", "json")
	if err := json.Unmarshal(out, &lag); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, g := range lag.Groups {
		for _, topic := range g.Topics {
			seen[strings.TrimPrefix(g.Group, d.Prefix)+" "+strings.TrimPrefix(topic.Topic, d.Prefix)] = topic.Lag
		}
	}
	for _, name := range []string{"webhook-router appointments.events", "webhook-sender webhooks.deliveries"} {
		if n, ok := seen[name]; !ok || n != 0 {
			t.Errorf("%s: lag %d, there %t, in\n%s", name, n, ok, out)
		}
	}
}

// The operator finds a delivery, sends it again, and replays the past.
func TestOperatorSendsAgain(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	c := d.SignIn(d.URL)
	sink := harness.NewSink(t, nil)
	sub := c.Subscribe(t, "appointment.*", sink.URL, secret)
	c.Book(t, "provider:1", day, "10:00", "10:30")
	first := sink.AwaitN(t, 1)[0]
	d.Drained(t)

	var resent struct {
		DeliveryID string `json:"delivery_id"`
	}
	ask := func(into any, args ...string) {
		t.Helper()
		out := operate(t, d, append(args, "-o", "json")...)
		if err := json.Unmarshal(out, into); err != nil {
			t.Fatalf("webhooks %s: %v in\n%s", strings.Join(args, " "), err, out)
		}
	}
	ask(&resent, "deliveries", "resend", first.ID())
	if again := sink.AwaitN(t, 2)[1]; again.ID() != resent.DeliveryID || again.ID() == first.ID() {
		t.Errorf("%s was sent again as %s, and the command tells of %s", first.ID(), again.ID(), resent.DeliveryID)
	}
	var replayed struct {
		Replay struct {
			ID    string `json:"id"`
			State string `json:"state"`
			Done  int    `json:"done"`
		} `json:"replay"`
	}
	ask(&replayed, "replay", "start", sub, "--from", "earliest", "--wait")
	if r := replayed.Replay; r.State != webhook.ReplayDone || r.Done != 1 {
		t.Errorf("the replay ended as %+v", r)
	}
	third := sink.AwaitN(t, 3)[2]
	awaitStatus(t, c, "/api/webhooks/"+sub+"/deliveries?status=delivered", func(a harness.Answer) bool {
		deliveries, _ := a["deliveries"].([]any)
		return len(deliveries) == 3
	})

	var list struct {
		Deliveries []struct {
			DeliveryID string `json:"delivery_id"`
			Status     string `json:"status"`
			Origin     string `json:"origin"`
		} `json:"deliveries"`
	}
	ask(&list, "deliveries", "list", sub)
	kinds := map[string]string{}
	for _, one := range list.Deliveries {
		kinds[one.DeliveryID], _, _ = strings.Cut(one.Origin, ":")
		if one.Status != webhook.Delivered {
			t.Errorf("%s is shown as %s", one.DeliveryID, one.Status)
		}
	}
	if want := map[string]string{first.ID(): "", resent.DeliveryID: webhook.OriginResend, third.ID(): webhook.OriginReplay}; !maps.Equal(kinds, want) {
		t.Errorf("the list shows %v, want %v", kinds, want)
	}
}
