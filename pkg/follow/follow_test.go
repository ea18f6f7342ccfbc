package follow_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/follow"
)

// seen is what a follower was given.
type seen struct {
	mu     sync.Mutex
	values map[string]string // by key; a tombstone removes
	count  int
}

func (s *seen) apply(_ int32, records []*kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		s.count++
		if r.Value == nil {
			delete(s.values, string(r.Key))
			continue
		}
		s.values[string(r.Key)] = string(r.Value)
	}
}

func (s *seen) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

// begin runs a follower for the rest of the test.
func begin(t *testing.T, cfg follow.Config) (*follow.Follower, *seen) {
	t.Helper()
	s := &seen{values: map[string]string{}}
	cfg.Apply = s.apply
	f, err := follow.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the follower ended with %v", err)
		}
	})
	return f, s
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustSync(t *testing.T, f *follow.Follower) {
	t.Helper()
	if err := f.Sync(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

func writer(t *testing.T, conf kafka.Config) *kgo.Client {
	t.Helper()
	return testenv.Client(t, conf, kgo.TransactionalID(conf.TopicPrefix+"writer"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
}

// A log that ends in a transaction's marker has an end that no record stands
// before; the follower reaches it all the same.
func TestReachesEndsBehindMarkers(t *testing.T) {
	for _, c := range []struct {
		name string
		ends []kgo.TransactionEndTry
		want string
	}{
		{"commit", []kgo.TransactionEndTry{kgo.TryCommit}, "0"},
		{"abort", []kgo.TransactionEndTry{kgo.TryAbort}, ""},
		{"commit, then abort", []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort}, "0"},
		{"abort, then commit", []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit}, "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := testenv.Kafka(t, nil)
			topic := conf.Topics().Events()
			w := writer(t, conf)
			f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
			for i, end := range c.ends {
				testenv.Transaction(t, w, end, &kgo.Record{Topic: topic, Partition: 1, Key: []byte("k"), Value: fmt.Append(nil, i)})
			}
			mustSync(t, f)
			if got := s.get("k"); got != c.want {
				t.Errorf("applied %q, want %q", got, c.want)
			}
			// The same from the start, as after a restart.
			again, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
			select {
			case <-again.Restored():
			case <-deadline(t).Done():
				t.Fatal("never restored")
			}
			if got := s.get("k"); got != c.want {
				t.Errorf("restored %q, want %q", got, c.want)
			}
		})
	}
}

// Whatever was acknowledged before Sync was called has been applied after it.
func TestSyncReflectsWhatWasAcknowledged(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
	w := writer(t, conf)
	plain := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range 60 {
		r := &kgo.Record{Topic: topic, Partition: int32(i % testenv.Partitions), Key: []byte("k"), Value: fmt.Append(nil, i)}
		if i%2 == 0 {
			testenv.Transaction(t, w, kgo.TryCommit, r)
		} else if err := plain.ProduceSync(deadline(t), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		mustSync(t, f)
		if got := s.get("k"); got != fmt.Sprint(i) {
			t.Fatalf("after %d was acknowledged, Sync shows %q", i, got)
		}
	}
}

// An open transaction holds readers back: Await waits for its end, and no
// What is stable can be read while a transaction is open; all that there is, only
// when it has ended.
func TestStableBeforeRestored(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	w := writer(t, conf)
	testenv.Transaction(t, w, kgo.TryCommit, &kgo.Record{Topic: topic, Partition: 0, Key: []byte("k"), Value: []byte("stable")})
	testenv.Begin(t, w, &kgo.Record{Topic: topic, Partition: 0, Key: []byte("k"), Value: []byte("v")})
	f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
	wait := func(reached <-chan struct{}, what string) {
		t.Helper()
		select {
		case <-reached:
		case <-deadline(t).Done():
			t.Fatalf("it is not %s", what)
		}
	}
	wait(f.Stable(), "read as far as it is stable")
	if got := s.get("k"); got != "stable" {
		t.Errorf("what is stable shows %q", got)
	}
	select {
	case <-f.Restored():
		t.Error("it is restored before the transaction has ended")
	default:
	}
	if err := w.EndTransaction(deadline(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	wait(f.Restored(), "restored")
	if got := s.get("k"); got != "v" {
		t.Errorf("what is restored shows %q", got)
	}
}

// record is shown before.
func TestAwaitsTheEndOfAnOpenTransaction(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
	w := writer(t, conf)
	r := &kgo.Record{Topic: topic, Partition: 0, Key: []byte("k"), Value: []byte("v")}
	testenv.Begin(t, w, r)
	ends, err := f.Ends(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if ends[0] != r.Offset+1 {
		t.Fatalf("the high watermark is %d, want %d", ends[0], r.Offset+1)
	}
	synced := make(chan error, 1)
	go func() { synced <- f.Sync(deadline(t)) }()
	if got := s.get("k"); got != "" {
		t.Errorf("%q was shown before it was committed", got)
	}
	if err := w.EndTransaction(deadline(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if got := s.get("k"); got != "v" {
		t.Errorf("Sync shows %q", got)
	}
}

func TestWaitsForTheTopic(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.TopicPrefix + "later"
	f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
	client := testenv.Client(t, conf)
	synced := make(chan error, 1)
	go func() { synced <- f.Sync(deadline(t)) }() // asked for before it is there
	select {
	case <-f.Restored():
		t.Fatal("restored without a topic")
	default:
	}
	if _, err := kadm.NewClient(client).CreateTopic(deadline(t), 2, -1, nil, topic); err != nil {
		t.Fatal(err)
	}
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(deadline(t), &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	mustSync(t, f)
	if got := s.get("k"); got != "v" {
		t.Errorf("Sync shows %q", got)
	}
}

// Records before the log's start are gone for everyone: a log that starts where
// it ends has been read.
func TestStartsWhereTheLogStarts(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	client := testenv.Client(t, conf, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	r := &kgo.Record{Topic: topic, Partition: 2, Key: []byte("k"), Value: []byte("v")}
	if err := client.ProduceSync(deadline(t), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	var del kadm.Offsets
	del.Add(kadm.Offset{Topic: topic, Partition: 2, At: r.Offset + 1})
	gone, err := kadm.NewClient(client).DeleteRecords(deadline(t), del)
	if err != nil || gone.Error() != nil {
		t.Fatal(err, gone.Error())
	}
	f, s := begin(t, follow.Config{Kafka: testenv.Options(t, conf), Topic: topic})
	mustSync(t, f)
	if s.get("k") != "" {
		t.Error("a deleted record was applied")
	}
}

func TestReportsProgress(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	topic := conf.Topics().Events()
	client := testenv.Client(t, conf)
	const n = 100
	for range n {
		client.Produce(t.Context(), &kgo.Record{Topic: topic, Key: []byte(uuid.NewString()), Value: []byte("v")}, nil)
	}
	if err := client.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	type report struct{ done, total int64 }
	var reports []report
	f, s := begin(t, follow.Config{
		Kafka: testenv.Options(t, conf), Topic: topic,
		Progress: func(done, total int64) { reports = append(reports, report{done, total}) },
	})
	select {
	case <-f.Restored():
	case <-deadline(t).Done():
		t.Fatal("never restored")
	}
	if last := reports[len(reports)-1]; last != (report{n, n}) {
		t.Errorf("the last report is %v", last)
	}
	if s.count != n {
		t.Errorf("restored %d records, want %d", s.count, n)
	}
}
