// Package kafka holds what every process needs to talk to Kafka: the settings
// of the connection, the topics with their policies, and the wait for a broker
// that is not up yet.
package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"github.com/twmb/franz-go/plugin/kslog"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Config is how to reach Kafka. The tags are the settings' names, see
// internal/run.
type Config struct {
	Brokers     []string `name:"kafka-brokers" env:"KAFKA_BROKERS" placeholder:"HOST:PORT" help:"Kafka's bootstrap brokers, separated by commas."`
	TopicPrefix string   `name:"topic-prefix" env:"TOPIC_PREFIX" help:"Put before the name of each topic, consumer group and transactional id."`
	TLS         bool     `name:"kafka-tls" env:"KAFKA_TLS" help:"Connect with TLS."`
	CAFile      string   `name:"kafka-ca-file" env:"KAFKA_CA_FILE" type:"path" placeholder:"FILE" help:"Certificates (PEM) to trust instead of the system's."`
	CertFile    string   `name:"kafka-cert-file" env:"KAFKA_CERT_FILE" type:"path" placeholder:"FILE" help:"Client certificate (PEM)."`
	KeyFile     string   `name:"kafka-key-file" env:"KAFKA_KEY_FILE" type:"path" placeholder:"FILE" help:"Key of the client certificate (PEM)."`
	SASL        string   `name:"kafka-sasl" env:"KAFKA_SASL" enum:",plain,scram-sha-256,scram-sha-512" default:"" placeholder:"MECHANISM" help:"SASL mechanism: plain, scram-sha-256 or scram-sha-512."`
	User        string   `name:"kafka-user" env:"KAFKA_USER" help:"SASL user."`
	Password    string   `name:"kafka-password" env:"KAFKA_PASSWORD" help:"SASL password; better set in the environment than on the command line."`
}

// Topics names the deployment's topics.
func (c Config) Topics() webhook.Topics { return webhook.Topics{Prefix: c.TopicPrefix} }

// Check says what is wrong with the settings, in one sentence. It is not called
// Validate: kong would call that while it reads them, and say nothing of what
// else is wrong.
func (c Config) Check() error {
	switch {
	case len(c.Brokers) == 0:
		return errors.New("KAFKA_BROKERS is not set: name at least one broker, as in KAFKA_BROKERS=localhost:9092")
	case c.SASL != "" && (c.User == "" || c.Password == ""):
		return errors.New("KAFKA_SASL is set but KAFKA_USER or KAFKA_PASSWORD is not")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("KAFKA_CERT_FILE and KAFKA_KEY_FILE go together: set both or none")
	case !c.TLS && (c.CAFile != "" || c.CertFile != ""):
		return errors.New("KAFKA_CA_FILE or KAFKA_CERT_FILE is set but KAFKA_TLS is not")
	}
	for _, b := range c.Brokers {
		if strings.TrimSpace(b) == "" || strings.Contains(b, "/") {
			return fmt.Errorf("KAFKA_BROKERS: %q is not HOST:PORT", b)
		}
	}
	return nil
}

// Options returns the options that all clients of a process share.
func (c Config) Options(log *slog.Logger) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.WithLogger(chatty{kslog.New(log.With("component", "kafka"))}),
		// A broker that comes back should be found at once; the default backs
		// off to 2.5 s.
		kgo.RetryBackoffFn(func(tries int) time.Duration { return min(time.Second, 50*time.Millisecond<<min(tries, 5)) }),
		kgo.MetadataMinAge(250 * time.Millisecond),
		// A partition that is newly assigned, or resumed, is asked for only when
		// the fetch under way has come back, and one of idle partitions comes back
		// after this wait; the default of 5 s would be every rebalance's price.
		kgo.FetchMaxWait(250 * time.Millisecond),
	}
	if c.TLS {
		conf, err := c.tls()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(conf))
	}
	switch c.SASL {
	case "plain":
		opts = append(opts, kgo.SASL(plain.Auth{User: c.User, Pass: c.Password}.AsMechanism()))
	case "scram-sha-256":
		opts = append(opts, kgo.SASL(scram.Auth{User: c.User, Pass: c.Password}.AsSha256Mechanism()))
	case "scram-sha-512":
		opts = append(opts, kgo.SASL(scram.Auth{User: c.User, Pass: c.Password}.AsSha512Mechanism()))
	}
	return opts, nil
}

// chatty is the client's logger: what it calls information is of interest to
// who looks for a fault, and to nobody else.
type chatty struct{ kgo.Logger }

// Log implements kgo.Logger.
func (l chatty) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	if level == kgo.LogLevelInfo {
		level = kgo.LogLevelDebug
	}
	l.Logger.Log(level, msg, keyvals...)
}

func (c Config) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("KAFKA_CA_FILE: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("KAFKA_CA_FILE: %s holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("KAFKA_CERT_FILE: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

// WaitFor returns when Kafka answers and has the topics, each with its
// policies; until then it waits and says so. It returns an error only if ctx
// ends or a topic is such that going on would lose data.
func WaitFor(ctx context.Context, client *kgo.Client, log *slog.Logger, topics []Topic) error {
	adm := kadm.NewClient(client)
	said := ""
	for {
		missing, err := check(ctx, adm, topics)
		var wrong *PolicyError
		switch {
		case errors.As(err, &wrong):
			return err
		case err == nil && len(missing) == 0:
			return nil
		}
		why := "waiting for topics; create them with: webhooks topics apply"
		attrs := []any{"missing", strings.Join(missing, " ")}
		if err != nil {
			why, attrs = "waiting for Kafka", []any{"error", err}
		}
		if why != said {
			log.Warn(why, attrs...)
			said = why
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", why, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func check(ctx context.Context, adm *kadm.Client, topics []Topic) (missing []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := describe(ctx, adm, topics)
	if err != nil {
		return nil, err
	}
	for _, t := range topics {
		f, ok := found[t.Name]
		if !ok {
			missing = append(missing, t.Name)
			continue
		}
		if err := t.refuse(f); err != nil {
			return nil, err
		}
	}
	return missing, nil
}
