// Command webhook-sender POSTs deliveries to their endpoints.
package main

import (
	"os"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/run"
)

func main() {
	os.Exit(run.Main("webhook-sender",
		"POSTs webhook deliveries, signed, to their endpoints, tries again after 1, 2, 4, 8 and 16 seconds, and keeps what failed as dead letters.",
		&app.Sender{}, os.Args[1:]))
}
