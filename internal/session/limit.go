package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// TooManyError says that too many sign-ins failed.
type TooManyError struct {
	// Wait is how long no sign-in is tried.
	Wait time.Duration
}

func (e *TooManyError) Error() string {
	return fmt.Sprintf("too many sign-ins failed; none is tried for %s", e.Wait)
}

// reserve counts a failure for each key, unless one of them has had too many:
// then it counts none and returns how many milliseconds that will last. Counted
// before the password is looked at, failures can't exceed the limit however
// many are tried at once.
var reserve = redis.NewScript(`
local wait = 0
for _, key in ipairs(KEYS) do
	if tonumber(redis.call('GET', key) or '0') >= tonumber(ARGV[1]) then
		wait = math.max(wait, redis.call('PTTL', key), 1)
	end
end
if wait > 0 then
	return wait
end
for _, key in ipairs(KEYS) do
	redis.call('INCR', key)
	if redis.call('PTTL', key) < 0 then
		redis.call('PEXPIRE', key, ARGV[2])
	end
end
return 0`)

// refund takes back what reserve counted.
var refund = redis.NewScript(`
for _, key in ipairs(KEYS) do
	if tonumber(redis.call('GET', key) or '0') > 0 then
		redis.call('DECR', key)
	end
end
return 0`)

// Attempt is a sign-in that may be tried. Unless one of its methods is called it
// counts as failed.
type Attempt struct {
	store      *Store
	name, addr string // keys
}

// Try asks whether a sign-in may be tried for a user name from an address. Its
// error is a *TooManyError if not.
func (s *Store) Try(ctx context.Context, username, addr string) (*Attempt, error) {
	a := &Attempt{store: s, name: s.countKey("n:", username), addr: s.countKey("a:", addr)}
	wait, err := reserve.Run(ctx, s.client, []string{a.name, a.addr}, s.cfg.Failures, s.cfg.Window.Milliseconds()).Int64()
	switch {
	case err != nil:
		return nil, unavailable("count a sign-in", err)
	case wait > 0:
		return nil, &TooManyError{Wait: time.Duration(wait) * time.Millisecond}
	}
	return a, nil
}

// countKey hides what was typed, which now and then is a password.
func (s *Store) countKey(kind, text string) string {
	sum := sha256.Sum256([]byte(text))
	return s.cfg.Prefix + kind + hex.EncodeToString(sum[:16])
}

// Succeeded forgets the user name's failures. Those of the address stay: one
// who knows a password could try those of others for ever.
func (a *Attempt) Succeeded(ctx context.Context) error {
	if err := a.store.client.Del(ctx, a.name).Err(); err != nil {
		return unavailable("count a sign-in", err)
	}
	if err := refund.Run(ctx, a.store.client, []string{a.addr}).Err(); err != nil {
		return unavailable("count a sign-in", err)
	}
	return nil
}

// Withdraw takes an attempt back that was not made.
func (a *Attempt) Withdraw(ctx context.Context) error {
	if err := refund.Run(ctx, a.store.client, []string{a.name, a.addr}).Err(); err != nil {
		return unavailable("count a sign-in", err)
	}
	return nil
}
