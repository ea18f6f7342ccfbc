// Command webhook-router joins events with subscriptions and writes the
// deliveries.
package main

import (
	"os"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/run"
)

func main() {
	os.Exit(run.Main("webhook-router",
		"Joins appointment events with webhook subscriptions: one delivery record per event and matching subscription, exactly once.",
		&app.Router{}, os.Args[1:]))
}
