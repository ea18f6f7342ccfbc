// Package embedded is Kafka and Redis in this process, for trying out,
// developing and testing: franz-go's kfake with a data directory, and miniredis.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gofrs/flock"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/transaction"
)

// ErrInUse says that another process works in the data directory.
var ErrInUse = errors.New("the data directory is in use by another process")

// Instance is a running broker and a running Redis.
type Instance struct {
	lock  *flock.Flock
	kafka *kfake.Cluster
	redis *miniredis.Miniredis
	front *front
	stop  chan struct{}
	ticks sync.WaitGroup
}

// Start runs both. The broker keeps its data in the directory, each write
// synced; Redis begins empty, for all it holds can be rebuilt. An empty
// directory keeps nothing.
func Start(ctx context.Context, dir string, log *slog.Logger) (*Instance, error) {
	i := &Instance{stop: make(chan struct{})}
	if err := i.start(ctx, dir, log); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

// Free returns ErrInUse if another process works in the directory.
func Free(dir string) error {
	path := filepath.Join(dir, "lock")
	if _, err := os.Stat(path); err != nil {
		return nil // nobody ever has; Start finds out what else is wrong
	}
	lock := flock.New(path)
	locked, err := lock.TryLock()
	switch {
	case err != nil:
		return fmt.Errorf("lock the data directory: %w", err)
	case !locked:
		return ErrInUse
	}
	if err := lock.Unlock(); err != nil {
		return fmt.Errorf("give the data directory back: %w", err)
	}
	return nil
}

func (i *Instance) start(ctx context.Context, dir string, log *slog.Logger) error {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelNone)),
		kfake.BrokerConfigs(map[string]string{"default.replication.factor": "1"}),
	}
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		i.lock = flock.New(filepath.Join(dir, "lock"))
		locked, err := i.lock.TryLock()
		switch {
		case err != nil:
			return fmt.Errorf("lock the data directory: %w", err)
		case !locked:
			i.lock = nil
			return ErrInUse
		}
		opts = append(opts, kfake.DataDir(filepath.Join(dir, "kafka")), kfake.SyncWrites())
	}
	var err error
	if i.kafka, err = kfake.NewCluster(opts...); err != nil {
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	if err := i.closeTransactions(ctx); err != nil {
		return err
	}
	i.redis = miniredis.NewMiniRedis()
	if err := i.redis.Start(); err != nil {
		return fmt.Errorf("start the embedded Redis: %w", err)
	}
	if i.front, err = newFront(i.redis.Server()); err != nil {
		return err
	}
	i.ticks.Go(i.tick)
	log.Debug("embedded broker and Redis run", "kafka", i.Brokers(), "redis", i.RedisURL())
	return nil
}

// tick lets miniredis's keys grow older, which they don't by themselves. Each
// time it looks through all of them and nobody else is served: the more there
// are, the more seldom it does so.
func (i *Instance) tick() {
	const (
		shortest = time.Second
		share    = 50 // of the time, at most one in so many is spent on it
	)
	last, wait := time.Now(), shortest
	for {
		t := time.NewTimer(wait)
		select {
		case <-i.stop:
			t.Stop()
			return
		case <-t.C:
		}
		now := time.Now()
		i.redis.FastForward(now.Sub(last))
		last, wait = now, max(shortest, share*time.Since(now))
	}
}

// closeTransactions ends each log that has records in a marker. A transaction
// that was open when the process was killed is taken for aborted when the broker
// starts again, but without a marker in the log; who reads to the log's end
// would wait for one for ever. Each start has a transactional id of its own,
// for what an old one left open confuses later readers.
func (i *Instance) closeTransactions(ctx context.Context) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(i.Brokers()...),
		kgo.TransactionalID("embedded-"+uuid.NewString()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
	)
	if err != nil {
		return fmt.Errorf("look at the embedded broker: %w", err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list the embedded broker's topics: %w", err)
	}
	if len(topics) == 0 {
		return nil
	}
	ends, err := adm.ListEndOffsets(ctx, topics.Names()...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("find the ends of the embedded broker's logs: %w", err)
	}
	var records []*kgo.Record
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			records = append(records, &kgo.Record{Topic: o.Topic, Partition: o.Partition})
		}
	})
	if len(records) == 0 {
		return nil
	}
	if err := client.BeginTransaction(); err != nil {
		return fmt.Errorf("end open transactions: %w", err)
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("end open transactions: %w", err)
	}
	if err := transaction.Known(ctx, client, records...); err != nil {
		return fmt.Errorf("end open transactions: %w", err)
	}
	if err := client.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("end open transactions: %w", err)
	}
	return nil
}

// Brokers returns the broker's address.
func (i *Instance) Brokers() []string { return i.kafka.ListenAddrs() }

// RedisURL returns where Redis is.
func (i *Instance) RedisURL() string { return "redis://" + i.front.listener.Addr().String() }

// Close stops both and gives the directory back.
func (i *Instance) Close() error {
	close(i.stop)
	i.ticks.Wait()
	var err error
	if i.front != nil {
		err = i.front.close()
	}
	if i.redis != nil {
		i.redis.Close()
	}
	if i.kafka != nil {
		i.kafka.Close()
	}
	if i.lock != nil {
		err = errors.Join(err, i.lock.Unlock())
	}
	if err != nil {
		return fmt.Errorf("close the embedded broker and Redis: %w", err)
	}
	return nil
}
