package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/embedded"
	"github.com/arsmedicatech/webhooks/pkg/transaction"
)

// crashDir, when set, makes this binary the process that is killed.
const crashDir = "EMBEDDED_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := leaveOpen(dir); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// leaveOpen writes a committed record and one in a transaction that stays open,
// says so, and waits to be killed.
func leaveOpen(dir string) error {
	ctx := context.Background()
	i, err := embedded.Start(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(i.Brokers()...), kgo.TransactionalID("open"), kgo.DefaultProduceTopic("t"))
	if err != nil {
		return err
	}
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, nil, "t"); err != nil {
		return err
	}
	for _, value := range []string{"committed", "open"} {
		if err := client.BeginTransaction(); err != nil {
			return err
		}
		record := kgo.StringRecord(value)
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			return err
		}
		if value == "committed" {
			if err := transaction.Known(ctx, client, record); err != nil {
				return err
			}
			if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

func start(ctx context.Context, t *testing.T, dir string) *embedded.Instance {
	t.Helper()
	i, err := embedded.Start(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func stop(t *testing.T, i *embedded.Instance) {
	t.Helper()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

// values reads committed records up to where the log ends.
func values(ctx context.Context, t *testing.T, i *embedded.Instance) []string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(i.Brokers()...), kgo.ConsumeTopics("t"), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	end, _ := ends.Lookup("t", 0)
	var found []string
	for next := int64(0); next < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("read up to %d of %d: %v", next, end.Offset, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if !r.Attrs.IsControl() {
				found = append(found, string(r.Value))
			}
		})
	}
	return found
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestDataSurvivesARestart(t *testing.T) {
	ctx, dir := deadline(t), t.TempDir()
	first := start(ctx, t, dir)
	client, err := kgo.NewClient(kgo.SeedBrokers(first.Brokers()...), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(ctx, kgo.StringRecord("kept")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	stop(t, first)
	second := start(ctx, t, dir)
	defer stop(t, second)
	if got := values(ctx, t, second); strings.Join(got, " ") != "kept" {
		t.Errorf("got %v", got)
	}
}

func TestADirectoryHasOneUser(t *testing.T) {
	ctx, dir := deadline(t), t.TempDir()
	first := start(ctx, t, dir)
	if _, err := embedded.Start(ctx, dir, slog.New(slog.DiscardHandler)); !errors.Is(err, embedded.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	stop(t, first)
	stop(t, start(ctx, t, dir)) // given back
}

// A transaction that was open when the process was killed is aborted, and
// nobody who reads to the end of the log waits for it.
func TestOpenTransactionsEndWithTheProcess(t *testing.T) {
	ctx, dir := deadline(t), t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	killed := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if said != "ready\n" || killed != nil {
		t.Fatalf("the other process said %q, %v, %v", said, err, killed)
	}
	i := start(ctx, t, dir)
	defer stop(t, i)
	if got := values(ctx, t, i); strings.Join(got, " ") != "committed" {
		t.Errorf("got %v", got)
	}
}

func TestRedisKeysExpire(t *testing.T) {
	ctx := deadline(t)
	i := start(ctx, t, "")
	defer stop(t, i)
	opts, err := redis.ParseURL(i.RedisURL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	if err := client.Set(ctx, "k", "v", 500*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for client.Exists(ctx, "k").Val() == 1 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the key does not expire")
		}
	}
}
