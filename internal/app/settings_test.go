package app

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/testenv"
)

// What is wrong with the settings is said all at once, each in its line.
func TestSettingsAreNamedAtOnce(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users.json")
	if err := os.WriteFile(users, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"KAFKA_BROKERS", "REDIS_URL", "SEALING_KEYS", "USERS_FILE"} {
		t.Setenv(name, "")
	}
	conf := kafka.Config{Brokers: []string{"localhost:9092"}}
	redis, keys := Redis{URL: "redis://localhost"}, seal.NewKey("k")
	for name, c := range map[string]struct {
		program run.Program
		want    []string // what each line begins with
	}{
		"appointments without any": {&Appointments{},
			[]string{"KAFKA_BROKERS", "REDIS_URL", "SEALING_KEYS", "USERS_FILE"}},
		"appointments with wrong ones": {&Appointments{Kafka: conf, Redis: Redis{URL: "http://x"}, SealingKeys: "k", UsersFile: users, TransactionalID: "t",
			Targets: Targets{AllowNetworks: []string{"10.0.0.0"}}, Proxies: []string{"10.0.0.0/33"}},
			[]string{"REDIS_URL", "SEALING_KEYS", "USERS_FILE", "HANDOVER_WAIT", "ALLOW_NETWORKS", "TRUSTED_PROXIES"}},
		"sender without any": {&Sender{}, []string{"KAFKA_BROKERS", "REDIS_URL", "SEALING_KEYS"}},
		"sender with one":    {&Sender{Kafka: conf, Redis: redis, SealingKeys: keys, Retries: Retries{Schedule: "x"}}, []string{"REQUEST_TIMEOUT", "RETRY_SCHEDULE"}},
		"router":             {&Router{Ahead: 1, From: "yesterday"}, []string{"KAFKA_BROKERS", "--from"}},
	} {
		if strings.HasSuffix(name, "without any") {
			parser, err := kong.New(c.program, run.Options("test", "")...)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(nil); err != nil {
				t.Errorf("%s: %v, before anything else could be said", name, err)
			}
		}
		err := c.program.Run(t.Context(), &run.Env{Log: testenv.Log(t), Health: &run.Health{}})
		if _, ok := errors.AsType[*run.UsageError](err); !ok {
			t.Fatalf("%s: %v, want an error of settings", name, err)
		}
		lines := strings.Split(err.Error(), "\n")
		for i, line := range lines {
			if len(lines) != len(c.want) || !strings.HasPrefix(line, c.want[i]) {
				t.Errorf("%s: %q, want lines on %v", name, lines, c.want)
				break
			}
		}
	}
}
