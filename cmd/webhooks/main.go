// Command webhooks is the operator's: it runs everything in one process for
// trying out, receives webhooks for trying out, looks after the topics and keys
// of a deployment, and shows and repairs what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/arsmedicatech/webhooks/internal/run"
)

type cli struct {
	Dev        devCmd        `cmd:"" help:"Run everything in this process, on an embedded Kafka and Redis, to try it out."`
	Listen     listenCmd     `cmd:"" help:"Receive webhooks: verify their signatures and show them."`
	Topics     topicsCmd     `cmd:"" help:"Look after a deployment's topics."`
	Deliveries deliveriesCmd `cmd:"" help:"See what became of deliveries, and send one again."`
	Replay     replayCmd     `cmd:"" help:"Deliver a part of the past again, or for the first time."`
	Lag        lagCmd        `cmd:"" help:"Show how far behind the deployment's processes are in each topic."`
	Tail       tailCmd       `cmd:"" help:"Follow a topic: events, deliveries, attempts or dead letters."`
	Keys       keysCmd       `cmd:"" help:"Look after the keys that secrets are sealed with."`
	Users      usersCmd      `cmd:"" help:"Look after the users who may sign in."`
}

func main() { os.Exit(execute(os.Args[1:])) }

// execute runs the command and returns its exit code: 2 for a wrong setting, 1
// for other trouble.
func execute(args []string) int {
	var c cli
	parser, err := kong.New(&c, append(run.Options("webhooks",
		"Webhooks for appointments, from a log in Kafka."), kong.UsageOnError())...)
	if err != nil {
		fmt.Fprintf(os.Stderr, "webhooks: %s\n", err)
		return 1
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "webhooks: %s (--help explains)\n", err)
		return 2
	}
	if parsed.Command() == "dev" {
		return run.Serve("webhooks dev", &c.Dev) // has signals and logs of its own
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "webhooks: %s\n", err)
		if _, ok := errors.AsType[*run.UsageError](err); ok {
			return 2
		}
		return 1
	}
	return 0
}
