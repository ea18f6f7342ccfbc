package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/test/harness"
)

// operate runs the operator's command against the deployment and returns what it
// shows.
func operate(t *testing.T, d *harness.Deployment, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), harness.Binary(t, "webhooks"), args...)
	cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+d.Brokers, "TOPIC_PREFIX="+d.Prefix)
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
