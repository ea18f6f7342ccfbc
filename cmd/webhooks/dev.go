package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/embedded"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type devCmd struct {
	Listen      string      `name:"listen" env:"LISTEN" default:"127.0.0.1:5000" help:"Address of the API. Loopback only: everybody knows the password."`
	AdminListen string      `name:"admin-listen" env:"ADMIN_LISTEN" default:"127.0.0.1:9090" help:"Address of /healthz, /readyz and /metrics."`
	DataDir     string      `name:"data-dir" env:"DATA_DIR" default:".webhooks" type:"path" help:"Directory that keeps everything from one start to the next."`
	Origins     []string    `name:"cors-origins" env:"CORS_ORIGINS" placeholder:"ORIGIN" help:"Origins of web pages that may use the API with cookies, such as http://localhost:3000; by default none."`
	LogLevel    string      `name:"log-level" env:"LOG_LEVEL" enum:"debug,info,warn,error" default:"info" help:"Lowest level that is logged: debug, info, warn or error."`
	LogFormat   string      `name:"log-format" env:"LOG_FORMAT" enum:"auto,text,json" default:"auto" help:"Form of the log: text, json, or auto for text on a terminal and JSON elsewhere."`
	Retries     app.Retries `embed:""`
	Sending     app.Sending `embed:""`
}

// Common implements run.Program.
func (c *devCmd) Common() *run.Settings {
	return &run.Settings{AdminListen: c.AdminListen, LogLevel: c.LogLevel, LogFormat: c.LogFormat}
}

// Prepare finds settings that are wrong, and a directory that is in use.
func (c *devCmd) Prepare() error {
	if err := loopback(c.Listen); err != nil {
		return &run.UsageError{Err: err}
	}
	if _, err := c.Retries.Parse(); err != nil {
		return &run.UsageError{Err: err}
	}
	if err := c.Sending.Check(); err != nil {
		return &run.UsageError{Err: err}
	}
	return c.inUse(embedded.Free(c.DataDir))
}

// inUse explains that another process has the directory.
func (c *devCmd) inUse(err error) error {
	if errors.Is(err, embedded.ErrInUse) {
		return &run.UsageError{Err: fmt.Errorf("%s is in use by another webhooks dev: stop it, or choose another directory with --data-dir", c.DataDir)}
	}
	return err
}

// Run implements run.Program.
func (c *devCmd) Run(ctx context.Context, env *run.Env) error {
	schedule, err := c.Retries.Parse()
	if err != nil {
		return &run.UsageError{Err: err}
	}
	// Before anything is made: a second start should change nothing.
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return &run.UsageError{Err: run.PortError(err, c.Listen, "--listen")}
	}
	instance, err := embedded.Start(ctx, c.DataDir, env.Log)
	if err != nil {
		_ = l.Close() // nothing was served
		return c.inUse(err)
	}
	services, err := c.services(ctx, env, instance, schedule)
	if err == nil {
		services.Appointments.Listener = l
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() error { return services.Run(gctx, env) })
		g.Go(func() error { return c.announce(gctx, env, l.Addr().String(), instance) })
		err = g.Wait()
	}
	return errors.Join(err, instance.Close())
}

func loopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("--listen %s is not HOST:PORT", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("--listen %s is not a loopback address, and dev signs in admin with the password admin: use 127.0.0.1, or run the services themselves", addr)
	}
	return nil
}

// services sets the three up on the embedded broker and Redis.
func (c *devCmd) services(ctx context.Context, env *run.Env, instance *embedded.Instance, schedule webhook.Schedule) (*app.All, error) {
	// The embedded broker wants transactional ids that are new at each start, so
	// the instance, from which they derive, is.
	id := "dev-" + uuid.NewString()[:8]
	conf := kafka.Config{Brokers: instance.Brokers()}
	keys, err := c.keys()
	if err != nil {
		return nil, err
	}
	users, err := c.users()
	if err != nil {
		return nil, err
	}
	if err := applyTopics(ctx, env, conf, schedule); err != nil {
		return nil, err
	}
	return app.NewEmbedded(app.EmbeddedConfig{
		Kafka: conf, RedisURL: instance.RedisURL(), InstanceID: id, SealingKeys: keys, UsersFile: users, Listen: c.Listen, Retries: c.Retries, Sending: c.Sending, Origins: c.Origins,
	}), nil
}

func applyTopics(ctx context.Context, env *run.Env, conf kafka.Config, schedule webhook.Schedule) error {
	opts, err := conf.Options(env.Log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("connect to the embedded broker: %w", err)
	}
	defer client.Close()
	settings := kafka.DefaultTopicSettings()
	settings.Partitions = devPartitions
	_, err = kafka.Apply(ctx, kadm.NewClient(client), 1, settings.Topics(conf.Topics(), schedule))
	return err
}

// devPartitions is small: on one machine more only cost.
const devPartitions = 4

// keys returns the sealing key of the data directory, made at the first start.
func (c *devCmd) keys() (string, error) {
	path := filepath.Join(c.DataDir, "sealing-key")
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key = []byte(seal.NewKey("dev"))
		err = os.WriteFile(path, key, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("the key that secrets are sealed with: %w", err)
	}
	return string(key), nil
}

// users returns the file of the only user, admin with the password admin.
func (c *devCmd) users() (string, error) {
	path := filepath.Join(c.DataDir, "users.json")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	hash, err := session.HashPassword("admin")
	if err != nil {
		return "", err
	}
	file := fmt.Sprintf(`{"users": [{"id": "user:admin", "username": "admin", "role": "admin", "password_hash": %q}]}`+"\n", hash)
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		return "", fmt.Errorf("the users of dev: %w", err)
	}
	return path, nil
}

// announce waits until all is ready and says what to do next.
func (c *devCmd) announce(ctx context.Context, env *run.Env, addr string, instance *embedded.Instance) error {
	for len(env.Health.Problems()) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, port, _ := net.SplitHostPort(addr)
	day := time.Now().AddDate(0, 0, 1).Format(time.DateOnly)
	fmt.Printf(`
Ready on http://localhost:%[1]s. Data is in %[2]s. Ctrl-C stops.
Kafka is at %[4]s

What becomes of each delivery is shown there: sign in as admin with the password admin.

To see webhooks arrive, receive them in a second terminal:

  go run ./cmd/webhooks listen --port 8000 --secret test-secret

and paste these into a third:

  TOKEN=$(curl -s http://localhost:%[1]s/api/auth/login -H 'Content-Type: application/json' -d '{"username":"admin","password":"admin"}' | sed 's/.*"token":"\([^"]*\)".*/\1/')

  curl -s http://localhost:%[1]s/api/webhooks -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{"event_name":"appointment.*","target_url":"http://localhost:8000/webhook","secret":"test-secret"}'

  curl -s http://localhost:%[1]s/api/appointments -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{"patient_id":"patient:1","provider_id":"provider:1","appointment_date":"%[3]s","start_time":"10:00","end_time":"10:30"}'

`, port, c.DataDir, day, strings.Join(instance.Brokers(), ","))
	return nil
}
