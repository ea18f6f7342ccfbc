package subscription_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/appointment"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/subscription"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/registry"
)

// world is what the services find around them: how far the event log and the
// routers are, and who answers.
type world struct {
	t    *testing.T
	conf kafka.Config
	keys *seal.Keyring
	// granting is the group with which the instances read the attempts; "" for not.
	granting string

	mu           sync.Mutex
	ends, routed []int64
	down         error              // what Ends and Routed say
	asked        chan struct{}      // if set, gets a value whenever either is asked
	sampling     chan chan struct{} // if set, Ends hands over what it then waits for
}

// written returns the records of the first n transactions, which have one each
// behind their intents.
func (w *world) written(n int) []*kgo.Record {
	w.t.Helper()
	records := testenv.Read(w.t, w.conf, w.conf.Topics().Subscriptions(), 2*n)
	return slices.DeleteFunc(records, func(r *kgo.Record) bool { return string(r.Key) == "intent" })
}

func newWorld(t *testing.T) *world {
	t.Helper()
	keys, err := seal.Parse(seal.NewKey("a"))
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, conf: testenv.Kafka(t, nil), keys: keys, ends: []int64{0, 0, 0}, routed: []int64{0, 0, 0}}
}

func (w *world) at(ends, routed []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends, w.routed = ends, routed
}

func (w *world) isDown(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = err
}

type instance struct {
	*subscription.Service
	reg  *registry.Registry
	url  string
	stop func()
}

func (w *world) start(url string) *instance {
	w.t.Helper()
	reg, err := registry.New(registry.Config{Kafka: testenv.Options(w.t, w.conf), Topic: w.conf.Topics().Subscriptions(), Log: testenv.Log(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	position := func(of *[]int64) func(context.Context) ([]int64, error) {
		return func(context.Context) ([]int64, error) {
			if w.asked != nil {
				w.asked <- struct{}{}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(*of), w.down
		}
	}
	ends := func(ctx context.Context) ([]int64, error) {
		if w.sampling != nil {
			goOn := make(chan struct{})
			w.sampling <- goOn
			<-goOn
		}
		return position(&w.ends)(ctx)
	}
	var attempts string
	if w.granting != "" {
		attempts = w.conf.Topics().Attempts()
	}
	s, err := subscription.New(subscription.Config{
		Attempts: attempts, DisablingGroup: w.conf.TopicPrefix + w.granting,
		Kafka: testenv.Options(w.t, w.conf), Topic: w.conf.Topics().Subscriptions(), Group: w.conf.TopicPrefix + "subscriptions",
		TransactionalID: w.conf.TopicPrefix + "subscriptions", Advertise: url,
		Ends: ends, Routed: position(&w.routed),
		CheckURL: func(u string) error {
			if !strings.HasPrefix(u, "http") {
				return errors.New("must be a URL")
			}
			return nil
		},
		Seal: w.keys.Seal, Log: testenv.Log(w.t),
	}, reg)
	if err != nil {
		w.t.Fatal(err)
	}
	reading, stopReading := context.WithCancel(context.Background())
	serving, stopServing := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- reg.Run(reading) }()
	go func() { ended <- s.Run(serving) }()
	i := &instance{Service: s, reg: reg, url: url}
	i.stop = sync.OnceFunc(func() {
		stopServing()
		err := <-ended
		stopReading()
		if err2 := <-ended; err != nil || err2 != nil {
			w.t.Errorf("%s ended with %v, %v", url, err, err2)
		}
	})
	w.t.Cleanup(i.stop)
	return i
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func meta() appointment.Meta { return appointment.Meta{Actor: "user:1", Command: uuid.NewString()} }

func keyed(key, body string) appointment.Meta {
	m := meta()
	m.Idempotency = appointment.Fingerprint("user:1", "POST /api/webhooks", key, []byte(body))
	return m
}

// among carries a command out on whichever instance owns the table; nobody
// does while it is handed over.
func among(t *testing.T, command func(*instance) error, instances ...*instance) error {
	t.Helper()
	ctx := deadline(t)
	for n := 0; ; n++ {
		err := command(instances[n%len(instances)])
		var elsewhere *appointment.ElsewhereError
		if !errors.As(err, &elsewhere) && !errors.Is(err, appointment.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
	}
}

const secret = "whsec_not-to-be-seen"

func valid() subscription.Create {
	return subscription.Create{EventName: "appointment.created", TargetURL: "https://example.org/", Secret: secret, Enabled: true}
}

func create(t *testing.T, m appointment.Meta, c subscription.Create, instances ...*instance) (*webhook.Subscription, error) {
	t.Helper()
	var made *webhook.Subscription
	err := among(t, func(i *instance) (err error) { made, err = i.Create(deadline(t), m, c); return err }, instances...)
	return made, err
}

func mustCreate(t *testing.T, c subscription.Create, instances ...*instance) *webhook.Subscription {
	t.Helper()
	made, err := create(t, meta(), c, instances...)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func mustChange(t *testing.T, s *instance, id string, c subscription.Change) *webhook.Subscription {
	t.Helper()
	changed, err := s.Change(deadline(t), meta(), id, c)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func refusedWith(t *testing.T, err error, code string) {
	t.Helper()
	var r *appointment.Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("got %v, want a refusal %s", err, code)
	}
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	made := mustCreate(t, valid(), s)
	if made.Version != 1 || !strings.HasPrefix(made.ID, "webhook_subscription:") || made.CreatedBy != "user:1" || !made.Enabled {
		t.Errorf("made %+v", made)
	}
	off := mustCreate(t, subscription.Create{EventName: "appointment.*", TargetURL: "http://localhost/", Secret: "s"}, s)
	changed := mustChange(t, s, made.ID, subscription.Change{TargetURL: new("https://example.com/"), Enabled: new(false), IfVersion: 1})
	if changed.Version != 2 || changed.TargetURL != "https://example.com/" || changed.Enabled || changed.EventName != made.EventName {
		t.Errorf("changed %+v", changed)
	}
	if same := mustChange(t, s, made.ID, subscription.Change{Enabled: new(false)}); same.Version != 2 {
		t.Errorf("a change of nothing leads to version %d", same.Version)
	}
	_, err := s.Change(deadline(t), meta(), made.ID, subscription.Change{Enabled: new(true), IfVersion: 1})
	refusedWith(t, err, "version_mismatch")
	refusedWith(t, s.Delete(deadline(t), meta(), made.ID, 1), "version_mismatch")
	_, err = s.Change(deadline(t), meta(), "webhook_subscription:none", subscription.Change{})
	refusedWith(t, err, "subscription_not_found")

	for name, c := range map[string]struct {
		event   string
		enabled *bool
		want    []string
	}{
		"all": {want: []string{off.ID, made.ID}}, "event": {event: "appointment.*", want: []string{off.ID}},
		"enabled": {enabled: new(true)}, "disabled": {enabled: new(false), want: []string{off.ID, made.ID}},
	} {
		found, err := s.List(deadline(t), c.event, c.enabled)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, sub := range found {
			ids = append(ids, sub.ID)
		}
		slices.Sort(ids)
		slices.Sort(c.want)
		if !slices.Equal(ids, c.want) {
			t.Errorf("%s: %v, want %v", name, ids, c.want)
		}
		if !slices.IsSortedFunc(found, func(a, b *webhook.Subscription) int { return b.CreatedAt.Compare(a.CreatedAt) }) {
			t.Errorf("%s: not the newest first", name)
		}
	}
	if err := s.Delete(deadline(t), meta(), made.ID, 2); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(deadline(t), made.ID)
	refusedWith(t, err, "subscription_not_found")
	refusedWith(t, s.Delete(deadline(t), meta(), made.ID, 0), "subscription_not_found")
	_, err = s.Change(deadline(t), meta(), made.ID, subscription.Change{Enabled: new(true)})
	refusedWith(t, err, "subscription_not_found")
	if found, err := s.List(deadline(t), "", nil); err != nil || len(found) != 1 {
		t.Errorf("after the deletion: %v, %v", found, err)
	}
}

func TestValidation(t *testing.T) {
	s := newWorld(t).start("http://a")
	made := mustCreate(t, valid(), s)
	for name, c := range map[string]struct {
		edit   func(*subscription.Create)
		fields []string
	}{
		"event":         {func(c *subscription.Create) { c.EventName = "appointment.no_show" }, []string{"event_name"}},
		"everything":    {func(c *subscription.Create) { c.EventName = "*" }, []string{"event_name"}},
		"url":           {func(c *subscription.Create) { c.TargetURL = "file:///" }, []string{"target_url"}},
		"no secret":     {func(c *subscription.Create) { c.Secret = "" }, []string{"secret"}},
		"long secret":   {func(c *subscription.Create) { c.Secret = strings.Repeat("x", 513) }, []string{"secret"}},
		"all of them":   {func(c *subscription.Create) { *c = subscription.Create{} }, []string{"event_name", "target_url", "secret"}},
		"nothing wrong": {func(c *subscription.Create) { c.EventName, c.Secret = "appointment.*", strings.Repeat("x", 512) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			create := valid()
			c.edit(&create)
			_, created := s.Create(deadline(t), meta(), create)
			_, changed := s.Change(deadline(t), meta(), made.ID, subscription.Change{
				EventName: &create.EventName, TargetURL: &create.TargetURL, Secret: &create.Secret,
			})
			for _, err := range []error{created, changed} {
				var fields []string
				if r, ok := errors.AsType[*appointment.Refusal](err); ok {
					for _, d := range r.Details {
						fields = append(fields, d.Field)
					}
					if create.Secret != "" && strings.Contains(r.Message, create.Secret) {
						t.Error("the refusal tells the secret")
					}
				} else if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(fields, c.fields) {
					t.Errorf("complains of %v, want %v", fields, c.fields)
				}
			}
		})
	}
}

// No record shows a secret, and each opens with the keys and for its owner only.
func TestSecretsAreSealed(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	made := mustCreate(t, valid(), s)
	mustChange(t, s, made.ID, subscription.Change{Secret: new(secret + "2")})
	if err := s.Delete(deadline(t), meta(), made.ID, 0); err != nil {
		t.Fatal(err)
	}
	for i, r := range w.written(3) {
		if strings.Contains(string(r.Value), secret) {
			t.Errorf("record %d shows the secret", i)
		}
		var sub webhook.Subscription
		if err := json.Unmarshal(r.Value, &sub); err != nil {
			t.Fatal(err)
		}
		want := secret
		if i > 0 {
			want += "2"
		}
		if got, err := w.keys.Open(sub.ID, sub.Secret); err != nil || got != want {
			t.Errorf("record %d holds another secret (%v)", i, err)
		}
	}
}

// A repeat with its key answers as the first did, whatever has become of the
// subscription since, also after a restart.
func TestIdempotencyKey(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	first, err := create(t, keyed("k", "body"), valid(), s)
	if err != nil {
		t.Fatal(err)
	}
	mustChange(t, s, first.ID, subscription.Change{EventName: new("appointment.*"), TargetURL: new("http://localhost/"), Enabled: new(false)})
	same := func(a, b *webhook.Subscription) bool {
		return a.ID == b.ID && a.EventName == b.EventName && a.TargetURL == b.TargetURL && a.Enabled == b.Enabled &&
			a.Version == b.Version && a.CreatedAt.Equal(b.CreatedAt) && a.UpdatedAt.Equal(b.UpdatedAt)
	}
	for _, step := range []string{"changed", "deleted", "swept", "restarted"} {
		switch step {
		case "deleted":
			if err := s.Delete(deadline(t), meta(), first.ID, 0); err != nil {
				t.Fatal(err)
			}
		case "swept": // the key is remembered for longer
			if err := subscription.Sweep(s.Service, deadline(t)); err != nil {
				t.Fatal(err)
			}
		case "restarted":
			s.stop()
			s = w.start("http://b")
		}
		again, err := create(t, keyed("k", "body"), valid(), s)
		if err != nil || !same(again, first) {
			t.Errorf("%s: the repeat answers %+v (%v), the first %+v", step, again, err, first)
		}
		_, err = create(t, keyed("k", "another body"), valid(), s)
		refusedWith(t, err, "idempotency_key_reused")
	}
	if found, err := s.List(deadline(t), "", nil); err != nil || len(found) != 0 {
		t.Errorf("%v, %v: want none besides the deleted one", found, err)
	}
}

// What the system disables says why until somebody enables it again, and is
// disabled for whoever has seen the version that it still is.
func TestDisable(t *testing.T) {
	w := newWorld(t)
	s := w.start("http://a")
	made, err := create(t, keyed("k", "body"), valid(), s)
	if err != nil {
		t.Fatal(err)
	}
	show := func(version int, enabled bool, reason string) *webhook.Subscription {
		t.Helper()
		sub, err := s.Get(deadline(t), made.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := value(sub.Disabled).Reason; sub.Version != version || sub.Enabled != enabled || got != reason {
			t.Fatalf("version %d, enabled %v, disabled for %q; want %d, %v, %q", sub.Version, sub.Enabled, got, version, enabled, reason)
		}
		return sub
	}
	disable := func(id string, version int) {
		t.Helper()
		if err := s.Disable(deadline(t), id, version, webhook.DisabledGone); err != nil {
			t.Fatal(err)
		}
	}
	w.at([]int64{4, 0, 0}, []int64{0, 0, 0})
	mustChange(t, s, made.ID, subscription.Change{Secret: new("other")})
	disable(made.ID, 1) // has been changed since
	disable("webhook_subscription:none", 1)
	show(2, true, "")
	before := time.Now()
	disable(made.ID, 2)
	sub := show(3, false, webhook.DisabledGone)
	if sub.UpdatedBy != "system" || sub.CreatedBy != "user:1" || sub.Disabled.At.Before(before.Add(-time.Millisecond)) || sub.Disabled.At.After(time.Now()) {
		t.Errorf("disabled %+v at %v", sub, sub.Disabled.At)
	}
	if last := sub.Rules[len(sub.Rules)-1]; last.Active || !slices.Equal(last.From, []int64{4, 0, 0}) {
		t.Errorf("its last rule is %+v, want one that begins at 4", last)
	}
	disable(made.ID, 3) // is disabled
	mustChange(t, s, made.ID, subscription.Change{Enabled: new(false)})
	show(3, false, webhook.DisabledGone)
	mustChange(t, s, made.ID, subscription.Change{TargetURL: new("https://example.net/")})
	show(4, false, webhook.DisabledGone)
	if again, err := create(t, keyed("k", "body"), valid(), s); err != nil || again.Disabled != nil || !again.Enabled {
		t.Errorf("the repeat answers %+v (%v), as the first did not", again, err)
	}
	mustChange(t, s, made.ID, subscription.Change{Enabled: new(true)})
	show(5, true, "")
	mustChange(t, s, made.ID, subscription.Change{Enabled: new(true)})
	show(5, true, "")
	disable(made.ID, 5)
	show(6, false, webhook.DisabledGone)
	if err := s.Delete(deadline(t), meta(), made.ID, 0); err != nil {
		t.Fatal(err)
	}
	disable(made.ID, 7) // is deleted
	if e, _ := s.reg.Get(made.ID); e.Subscription.Version != 7 {
		t.Errorf("a deleted one came to version %d", e.Subscription.Version)
	}
	other := mustCreate(t, valid(), s)
	w.isDown(errors.New("the log is away"))
	if err := s.Disable(deadline(t), other.ID, 1, webhook.DisabledGone); !errors.Is(err, appointment.ErrUnavailable) {
		t.Errorf("without positions: %v, want ErrUnavailable", err)
	}
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
