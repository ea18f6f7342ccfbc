package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type topicsCmd struct {
	Apply topicsApplyCmd `cmd:"" help:"Create the topics that are missing and set the policies that differ; can be run again at any time."`
}

type topicsApplyCmd struct {
	Kafka    kafka.Config        `embed:""`
	Settings kafka.TopicSettings `embed:""`
	Schedule string              `name:"retry-schedule" env:"RETRY_SCHEDULE" default:"1s,2s,4s,8s,16s" help:"Delays after each failed attempt; each has a topic of its own."`
	Wait     time.Duration       `name:"wait" env:"WAIT" default:"30s" help:"How long to wait for Kafka to come up."`
}

// Run creates and corrects topics. It fails if a difference remains.
func (c *topicsApplyCmd) Run(ctx context.Context) error {
	schedule, err := webhook.ParseSchedule(c.Schedule)
	if err != nil {
		return &run.UsageError{Err: fmt.Errorf("RETRY_SCHEDULE: %w", err)}
	}
	if err := c.Settings.Validate(); err != nil {
		return &run.UsageError{Err: err}
	}
	client, err := connect(ctx, c.Kafka, c.Wait)
	if err != nil {
		return err
	}
	defer client.Close()
	changes, err := kafka.Apply(ctx, kadm.NewClient(client), c.Settings.Replication, c.Settings.Topics(c.Kafka.Topics(), schedule))
	return report(os.Stdout, changes, err)
}

// kafkaWait is how long commands that look at a deployment wait for Kafka.
const kafkaWait = 10 * time.Second

// connect returns a client of a Kafka that answers, with further options.
func connect(ctx context.Context, conf kafka.Config, limit time.Duration, more ...kgo.Opt) (*kgo.Client, error) {
	if err := conf.Check(); err != nil {
		return nil, &run.UsageError{Err: err}
	}
	opts, err := conf.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, &run.UsageError{Err: err}
	}
	client, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	if err := waitForKafka(ctx, client, limit, conf.Brokers); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

func waitForKafka(ctx context.Context, client *kgo.Client, limit time.Duration, brokers []string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for said := false; ; said = true {
		err := client.Ping(ctx)
		if err == nil {
			return nil
		}
		if !said {
			fmt.Fprintf(os.Stderr, "waiting up to %s for Kafka at %v\n", limit, brokers)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kafka at %v does not answer: %w", brokers, err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func report(w io.Writer, changes []kafka.Change, err error) error {
	refused := 0
	for _, c := range changes {
		sign := "+"
		if c.Refused {
			sign = "!"
			refused++
		}
		fmt.Fprintf(w, "%s %s: %s\n", sign, c.Topic, c.Action)
	}
	switch {
	case err != nil:
		return err
	case refused > 0:
		return fmt.Errorf("%d topics differ in what can't be changed, see above", refused)
	case len(changes) == 0:
		fmt.Fprintln(w, "all topics are as they should be")
	}
	return nil
}
