package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrUnavailable is wrapped by errors of Redis.
	ErrUnavailable = errors.New("redis can't be reached at the moment")
	// ErrNoSession says that the token is of no session, or of one that ended.
	ErrNoSession = errors.New("there is no such session")
)

// StoreConfig of a Store. Only Redis has no default.
type StoreConfig struct {
	// Redis says how to reach the server, as redis.ParseURL returns it.
	Redis *redis.Options
	// Prefix begins the name of every key. Default "session:".
	Prefix string
	// Life is how long a session lasts after its last use. Default 12 h.
	Life time.Duration
	// Failures is how many sign-ins may fail in Window, for a user name and for
	// an address. Default 10.
	Failures int
	// Window is what Failures are counted in; it begins with the first. Default
	// 5 min.
	Window time.Duration
}

func (c StoreConfig) withDefaults() (StoreConfig, error) {
	if c.Prefix == "" {
		c.Prefix = "session:"
	}
	if c.Life == 0 {
		c.Life = 12 * time.Hour
	}
	if c.Failures == 0 {
		c.Failures = 10
	}
	if c.Window == 0 {
		c.Window = 5 * time.Minute
	}
	switch {
	case c.Redis == nil:
		return c, errors.New("session: StoreConfig.Redis is missing")
	case c.Life < time.Second || c.Window < time.Second || c.Failures < 1:
		return c, fmt.Errorf("session: a life of %v and %d failures in %v make no sense", c.Life, c.Failures, c.Window)
	}
	return c, nil
}

// Store keeps sessions in Redis. Its methods may be called from any goroutine;
// their errors wrap ErrUnavailable unless they say otherwise.
type Store struct {
	cfg    StoreConfig
	client *redis.Client
}

// NewStore checks the configuration; it does not dial. The caller must Close the
// store.
func NewStore(cfg StoreConfig) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	opts := *cfg.Redis
	if opts.DialTimeout == 0 {
		opts.DialTimeout = time.Second
	}
	if opts.ReadTimeout == 0 {
		opts.ReadTimeout = 2 * time.Second
	}
	if opts.WriteTimeout == 0 {
		opts.WriteTimeout = 2 * time.Second
	}
	opts.DialerRetries = 1
	// A count that is repeated would count twice.
	opts.MaxRetries = -1
	return &Store{cfg: cfg, client: redis.NewClient(&opts)}, nil
}

// Close disconnects.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close the session store: %w", err)
	}
	return nil
}

const tokenBytes = 32

// key names a session. Whoever reads Redis learns no token from it.
func (s *Store) key(token string) string {
	sum := sha256.Sum256([]byte(token))
	return s.cfg.Prefix + "s:" + hex.EncodeToString(sum[:])
}

// Create begins a session of the user and returns its token, which is random and
// kept nowhere.
func (s *Store) Create(ctx context.Context, user User) (token string, err error) {
	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // never fails, says its documentation
	token = base64.RawURLEncoding.EncodeToString(random)
	value, err := json.Marshal(user)
	if err != nil {
		return "", fmt.Errorf("encode a session: %w", err)
	}
	if err := s.client.Set(ctx, s.key(token), value, s.cfg.Life).Err(); err != nil {
		return "", unavailable("begin a session", err)
	}
	return token, nil
}

// Get returns the user of a session, which lasts its whole life again, or
// ErrNoSession.
func (s *Store) Get(ctx context.Context, token string) (User, error) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return User{}, ErrNoSession
	}
	value, err := s.client.GetEx(ctx, s.key(token), s.cfg.Life).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return User{}, ErrNoSession
	case err != nil:
		return User{}, unavailable("look up a session", err)
	}
	var user User
	if err := json.Unmarshal(value, &user); err != nil {
		return User{}, fmt.Errorf("%w: its value is not a user", ErrNoSession)
	}
	return user, nil
}

// Delete ends a session, if there is one.
func (s *Store) Delete(ctx context.Context, token string) error {
	if err := s.client.Del(ctx, s.key(token)).Err(); err != nil {
		return unavailable("end a session", err)
	}
	return nil
}

func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}
