package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/bcrypt"

	"github.com/arsmedicatech/webhooks/internal/testenv"
)

func hash(t *testing.T, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func load(t *testing.T, content string) (*Users, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadUsers(path)
}

func TestHashPassword(t *testing.T) {
	h, err := HashPassword("admin")
	if err != nil || bcrypt.CompareHashAndPassword([]byte(h), []byte("admin")) != nil {
		t.Fatalf("HashPassword = %q, %v", h, err)
	}
	for _, wrong := range []string{"", strings.Repeat("x", 73)} {
		if _, err := HashPassword(wrong); err == nil {
			t.Errorf("a password of %d bytes was hashed", len(wrong))
		}
	}
	if _, err := HashPassword(strings.Repeat("x", 72)); err != nil {
		t.Errorf("a password of 72 bytes: %v", err)
	}
}

func TestLoadUsersRefuses(t *testing.T) {
	h := hash(t, "secret")
	user := func(id, name, role, hash string) string {
		return `{"id":"` + id + `","username":"` + name + `","role":"` + role + `","password_hash":"` + hash + `"}`
	}
	for _, c := range []struct{ name, content, want string }{
		{"no JSON", `users`, "not the JSON of users"},
		{"unknown field", `{"users":[],"groups":[]}`, `unknown field "groups"`},
		{"trailing", `{"users":[` + user("1", "a", "admin", h) + `]} {}`, "follows"},
		{"wrong type", `{"users":[{"id":1}]}`, ": id must not be a number"},
		{"no users", `{"users":[]}`, "has no users"},
		{"no id", `{"users":[` + user("", "a", "admin", h) + `]}`, "id is missing"},
		{"no name", `{"users":[` + user("1", "", "admin", h) + `]}`, "username is missing"},
		{"same name", `{"users":[` + user("1", "a", "admin", h) + `,` + user("2", "a", "staff", h) + `]}`, `user 2 ("a"): another user has the same username`},
		{"same id", `{"users":[` + user("1", "a", "admin", h) + `,` + user("1", "b", "staff", h) + `]}`, `another user has the same id "1"`},
		{"unknown role", `{"users":[` + user("1", "a", "root", h) + `]}`, `role is "root"`},
		{"clear password", `{"users":[` + user("1", "a", "admin", "letmein") + `]}`, "not a bcrypt hash"},
		{"long hash", `{"users":[` + user("1", "a", "admin", h+"x") + `]}`, "not a bcrypt hash"},
		{"dear hash", `{"users":[` + user("1", "a", "admin", strings.Replace(h, "$04$", "$31$", 1)) + `]}`, "cost 31"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.content)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), h[10:]) || strings.Contains(err.Error(), "letmein") || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error shows too much: %v", err)
			}
		})
	}
	if _, err := LoadUsers(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file was read")
	}
}

func TestVerify(t *testing.T) {
	long := strings.Repeat("x", 72)
	u, err := load(t, `{"users":[{"id":"user:1","username":"ann","role":"staff","password_hash":"`+hash(t, "secret")+`"},
		{"id":"user:2","username":"bob","role":"patient","password_hash":"`+hash(t, long)+`"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	want := User{"user:1", "ann", Staff}
	if got, err := u.Verify(t.Context(), "ann", "secret"); err != nil || got != want {
		t.Errorf("Verify = %v, %v", got, err)
	}
	if got, ok := u.ByID("user:1"); !ok || got != want {
		t.Errorf("ByID = %v, %v", got, ok)
	}
	for _, c := range [][2]string{{"ann", "Secret"}, {"ann", ""}, {"Ann", "secret"}, {"", ""}, {"eve", "x"}, {"bob", long + "y"}} {
		if _, err := u.Verify(t.Context(), c[0], c[1]); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("Verify(%q, %q): %v", c[0], c[1], err)
		}
	}
	// All turns are taken: it waits until its caller gives up.
	for range cap(u.checker.slots) {
		u.checker.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.Verify(ctx, "ann", "secret"); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify without a turn: %v", err)
	}
}

// The dummy costs what the dearest user costs, or the time would tell.
func TestUnknownNamesCostAsMuch(t *testing.T) {
	dear, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost+1)
	if err != nil {
		t.Fatal(err)
	}
	u, err := load(t, `{"users":[{"id":"1","username":"ann","role":"staff","password_hash":"`+string(dear)+`"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if cost, err := bcrypt.Cost(u.checker.dummy); err != nil || cost != bcrypt.MinCost+1 {
		t.Errorf("the dummy's cost is %d, %v", cost, err)
	}
}

func store(t *testing.T, cfg StoreConfig) (*Store, *redis.Client) {
	t.Helper()
	cfg.Redis, cfg.Prefix = testenv.Redis(t), "t"+uuid.NewString()[:8]+":"
	s, err := NewStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(cfg.Redis)
	t.Cleanup(func() { _ = s.Close(); _ = client.Close() })
	return s, client
}

func TestSessions(t *testing.T) {
	s, client := store(t, StoreConfig{})
	ctx, ann := t.Context(), User{"user:1", "ann", Staff}
	token, err := s.Create(ctx, ann)
	if err != nil {
		t.Fatal(err)
	}
	if other, _ := s.Create(ctx, ann); other == token || len(token) != 43 {
		t.Errorf("tokens %q and %q", token, other)
	}
	keys, err := client.Keys(ctx, s.cfg.Prefix+"*").Result()
	if err != nil || len(keys) != 2 {
		t.Fatalf("keys %v, %v", keys, err)
	}
	for _, key := range keys {
		if strings.Contains(key+client.Get(ctx, key).Val(), token) {
			t.Errorf("the token is stored: %s", key)
		}
	}
	// Each use gives the session its whole life again.
	client.Expire(ctx, s.key(token), time.Minute)
	if got, err := s.Get(ctx, token); err != nil || got != ann {
		t.Fatalf("Get = %v, %v", got, err)
	}
	if ttl := client.TTL(ctx, s.key(token)).Val(); ttl < 11*time.Hour || ttl > 12*time.Hour {
		t.Errorf("the session lasts %v more", ttl)
	}
	if err := s.Delete(ctx, token); err != nil {
		t.Fatal(err)
	}
	for _, unknown := range []string{token, "", "x", strings.Repeat("x", 43)} {
		if _, err := s.Get(ctx, unknown); !errors.Is(err, ErrNoSession) {
			t.Errorf("Get(%q): %v", unknown, err)
		}
	}
}

func TestLimit(t *testing.T) {
	s, client := store(t, StoreConfig{})
	ctx := t.Context()
	refused := func(name, addr string) bool {
		_, err := s.Try(ctx, name, addr)
		if tooMany, ok := errors.AsType[*TooManyError](err); ok {
			if tooMany.Wait <= 0 || tooMany.Wait > 5*time.Minute {
				t.Errorf("wait of %v", tooMany.Wait)
			}
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		return false
	}
	for i := range 10 {
		if refused("ann", "10.0.0."+string(rune('0'+i))) {
			t.Fatalf("attempt %d was refused", i+1)
		}
	}
	if !refused("ann", "10.0.1.1") {
		t.Error("the 11th attempt on a user name was allowed")
	}
	if refused("bob", "10.0.1.1") {
		t.Error("another user name was refused")
	}
	for i := range 9 {
		refused("u"+string(rune('0'+i)), "10.0.1.1")
	}
	if !refused("eve", "10.0.1.1") {
		t.Error("the 11th attempt from an address was allowed")
	}
	for _, key := range client.Keys(ctx, s.cfg.Prefix+"*").Val() {
		if client.PTTL(ctx, key).Val() <= 0 || strings.Contains(key, "ann") {
			t.Errorf("the counter %s never ends, or names the user", key)
		}
	}
}

func TestLimitForgets(t *testing.T) {
	s, _ := store(t, StoreConfig{Failures: 2})
	ctx := t.Context()
	try := func() *Attempt {
		t.Helper()
		a, err := s.Try(ctx, "ann", "::1")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for range 3 { // without any effect
		if err := try().Withdraw(ctx); err != nil {
			t.Fatal(err)
		}
	}
	try()
	if err := try().Succeeded(ctx); err != nil {
		t.Fatal(err)
	}
	try() // the user name's failure is forgotten, the address's is not
	if _, err := s.Try(ctx, "bob", "::1"); err == nil {
		t.Error("a success made the address's failures forgotten")
	}
	if _, err := s.Try(ctx, "ann", "::2"); err != nil {
		t.Errorf("a success left the user name's failures: %v", err)
	}
}

func TestLimitHoldsForAttemptsAtOnce(t *testing.T) {
	s, _ := store(t, StoreConfig{})
	var allowed atomic.Int32
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if _, err := s.Try(t.Context(), "ann", "::1"); err == nil {
				allowed.Add(1)
			}
		})
	}
	all.Wait()
	if n := allowed.Load(); n != 10 {
		t.Errorf("%d attempts at once were allowed", n)
	}
}

func TestUnavailable(t *testing.T) {
	s, err := NewStore(StoreConfig{Redis: &redis.Options{Addr: "127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	_, created := s.Create(ctx, User{})
	_, got := s.Get(ctx, strings.Repeat("x", 43))
	_, tried := s.Try(ctx, "ann", "::1")
	for i, err := range []error{created, got, tried, s.Delete(ctx, "x")} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if _, err := NewStore(StoreConfig{}); err == nil {
		t.Error("a store without Redis was made")
	}
}
