// Command appointments serves the API of appointments and subscriptions.
package main

import (
	"os"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/run"
)

func main() {
	os.Exit(run.Main("appointments",
		"Serves the REST API of appointments and webhook subscriptions; what happens is appended to a Kafka topic of events.",
		&app.Appointments{}, os.Args[1:]))
}
