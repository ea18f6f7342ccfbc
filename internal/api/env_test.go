package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/api"
	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/redelivery"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/session"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
	"github.com/arsmedicatech/webhooks/pkg/webhook/replay"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

const (
	origin   = "https://front.example.org"
	password = "pass-word-1"
)

// users are one of each role; a user's name is that of the role.
var users = map[session.Role]string{
	session.Admin: "user:admin", session.Staff: "user:staff", session.Provider: "provider:1",
	session.Patient: "patient:1", session.Integrator: "user:integrator",
}

// deployment is what the instances of the API share.
type deployment struct {
	kafka  kafka.Config
	redis  *redis.Options
	status *redis.Options // for the status of deliveries
	prefix string
	users  string
	keys   *seal.Keyring
	log    *slog.Logger
}

func deploy(t *testing.T) *deployment {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for role, id := range users {
		all = append(all, fmt.Sprintf(`{"id":%q,"username":%q,"role":%q,"password_hash":%q}`, id, role, role, hash))
	}
	d := &deployment{
		kafka: testenv.Kafka(t, webhook.DefaultSchedule()), redis: testenv.Redis(t),
		log:    testenv.Log(t),
		prefix: "t" + uuid.NewString()[:8] + ":", users: filepath.Join(t.TempDir(), "users.json"),
	}
	d.status = d.redis
	if err := os.WriteFile(d.users, []byte(`{"users":[`+strings.Join(all, ",")+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.keys, err = seal.Parse(seal.NewKey("test")); err != nil {
		t.Fatal(err)
	}
	return d
}

// instance is one process of the service.
type instance struct {
	t   *testing.T
	url string
	// metrics are those of the API.
	metrics *prometheus.Registry
	// stop ends it before the test does.
	stop func()
}

// start runs an instance until the test ends. watch, if not nil, sees its
// requests first.
func (d *deployment) start(t *testing.T, watch func(*http.Request)) *instance {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	in := &instance{t: t, url: "http://" + server.Listener.Addr().String(), metrics: prometheus.NewRegistry()}
	topics, log := d.kafka.Topics(), d.log
	appointments, err := appointment.New(appointment.Config{
		Kafka: testenv.Options(t, d.kafka), Topic: topics.Events(), Group: d.kafka.TopicPrefix + "appointments",
		TransactionalID: d.kafka.TopicPrefix + "a", Advertise: in.url, Log: log,
	}, testenv.Partitions)
	check(t, err)
	reg, err := registry.New(registry.Config{Kafka: testenv.Options(t, d.kafka), Topic: topics.Subscriptions(), Log: log})
	check(t, err)
	subscriptions, err := subscription.New(subscription.Config{
		Kafka: testenv.Options(t, d.kafka), Topic: topics.Subscriptions(), Group: d.kafka.TopicPrefix + "subscriptions",
		TransactionalID: d.kafka.TopicPrefix + "s", Advertise: in.url, Ends: appointments.Ends,
		Attempts: topics.Attempts(), DisablingGroup: d.kafka.TopicPrefix + "disabling",
		Routed: func(context.Context) ([]int64, error) { return make([]int64, testenv.Partitions), nil },
		CheckURL: func(u string) error {
			if !strings.HasPrefix(u, "https://") {
				return errors.New("must begin with https://")
			}
			return nil
		},
		Seal: d.keys.Seal, Log: log,
	}, reg)
	check(t, err)
	replays, err := replay.NewTable(replay.TableConfig{Kafka: testenv.Options(t, d.kafka), Topic: topics.Replays(), Log: log})
	check(t, err)
	deliveries, err := status.New(status.Config{
		Kafka: testenv.Options(t, d.kafka), Topics: topics, Group: d.kafka.TopicPrefix + "status", Redis: d.status, Prefix: d.prefix + "st:", Log: log,
	})
	check(t, err)
	again, err := redelivery.New(redelivery.Config{Kafka: testenv.Options(t, d.kafka), Topics: topics, Replays: replays, Subscriptions: reg, Deliveries: deliveries})
	check(t, err)
	known, err := session.LoadUsers(d.users)
	check(t, err)
	sessions, err := session.NewStore(session.StoreConfig{Redis: d.redis, Prefix: d.prefix})
	check(t, err)
	handler, err := api.New(api.Config{
		Appointments: appointments, Subscriptions: subscriptions, Redelivery: again, Deliveries: deliveries, Users: known, Sessions: sessions, Peers: d.keys,
		Origins: []string{origin}, HandoverWait: 20 * time.Second, Log: log, Metrics: in.metrics,
	})
	check(t, err)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if watch != nil {
			watch(r)
		}
		handler.ServeHTTP(w, r)
	})
	server.Start()

	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return appointments.Run(ctx) })
	g.Go(func() error { return reg.Run(ctx) })
	g.Go(func() error { return subscriptions.Run(ctx) })
	g.Go(func() error { return replays.Run(ctx) })
	g.Go(func() error { return deliveries.Run(ctx) })
	in.stop = sync.OnceFunc(func() {
		server.Close()
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("the services ended with: %v", err)
		}
		again.Close()
		_ = deliveries.Close()
		_ = sessions.Close()
	})
	t.Cleanup(in.stop)
	for _, restored := range []<-chan struct{}{appointments.Restored(), reg.Restored(), replays.Restored()} {
		select {
		case <-restored:
		case <-ctx.Done():
			t.Fatal("the services ended")
		}
	}
	return in
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reply is an answer, decoded.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	raw    string
	body   map[string]json.RawMessage
}

// call sends a request; headers are names and values in turn.
func (in *instance) call(method, path, body string, headers ...string) *reply {
	in.t.Helper()
	req, err := http.NewRequestWithContext(in.t.Context(), method, in.url+path, strings.NewReader(body))
	check(in.t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	check(in.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	check(in.t, err)
	r := &reply{t: in.t, status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &r.body); err != nil {
			in.t.Fatalf("%s %s: the answer %q is no JSON object: %v", method, path, raw, err)
		}
	}
	return r
}

// text returns a member of the answer as text, "" if it is not there. A path of
// names goes down.
func (r *reply) text(path ...string) string {
	r.t.Helper()
	at := r.body
	for i, name := range path {
		value := at[name]
		if i == len(path)-1 {
			var s string
			if json.Unmarshal(value, &s) == nil {
				return s
			}
			return string(value)
		}
		at = nil
		check(r.t, json.Unmarshal(value, &at))
	}
	return ""
}

// want fails the test unless the answer is a success of that status.
func (r *reply) want(status int) *reply {
	r.t.Helper()
	if r.status != status || r.text("success") != "true" {
		r.t.Fatalf("answer %d %s, want %d", r.status, r.raw, status)
	}
	return r
}

// refused fails the test unless the answer is an error of that status and code,
// about that field if one is named.
func (r *reply) refused(status int, code string, field ...string) *reply {
	r.t.Helper()
	if r.status != status || r.text("code") != code || r.text("error") == "" || r.text("success") != "false" {
		r.t.Fatalf("answer %d %s, want %d %s", r.status, r.raw, status, code)
	}
	var details []appointment.Problem
	if len(field) > 0 {
		check(r.t, json.Unmarshal(r.body["details"], &details))
	}
	for i, f := range field {
		if len(details) != len(field) || details[i].Field != f || details[i].Problem == "" {
			r.t.Fatalf("details %v, want about %v", details, field)
		}
	}
	return r
}

// caller is a user who is signed in at an instance.
type caller struct {
	*instance
	token string
}

func (in *instance) as(role session.Role) *caller {
	in.t.Helper()
	r := in.call("POST", "/api/auth/login", fmt.Sprintf(`{"username":%q,"password":%q}`, role, password)).want(200)
	return &caller{in, r.text("token")}
}

func (c *caller) call(method, path, body string, headers ...string) *reply {
	c.t.Helper()
	return c.instance.call(method, path, body, append([]string{"Authorization", "Bearer " + c.token}, headers...)...)
}

// book makes an appointment and returns its id.
func (c *caller) book(patient, provider, start, end string) string {
	c.t.Helper()
	return c.call("POST", "/api/appointments", booking(patient, provider, start, end)).want(201).text("appointment", "id")
}

func booking(patient, provider, start, end string) string {
	return fmt.Sprintf(`{"patient_id":%q,"provider_id":%q,"appointment_date":"2030-05-06","start_time":%q,"end_time":%q}`,
		patient, provider, start, end)
}
