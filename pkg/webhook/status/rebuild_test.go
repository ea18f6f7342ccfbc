package status_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/status"
)

// fill makes deliveries that were delivered after a failure, and returns them.
func (e *env) fill(n int, sub string) []*made {
	e.t.Helper()
	var all []*made
	var records []*kgo.Record
	for range n {
		m := e.made(sub)
		all = append(all, m)
		records = append(records, m.record(), m.attempt(1, webhook.Failed), m.attempt(2, webhook.Delivered))
	}
	e.produce(records...)
	return all
}

// complete waits until everything that was filled is known, exactly.
func (e *env) complete(p *status.Projection, sub string, n int) {
	e.t.Helper()
	e.await(fmt.Sprintf("%d deliveries of %s are known", n, sub), func() bool {
		s, err := p.Stats(e.ctx, sub)
		if err != nil {
			return false
		}
		ids, _ := e.all(p, status.Query{SubscriptionID: sub, Status: webhook.Delivered, Limit: status.MaxLimit})
		return len(ids) == n && s.Behind == 0 && s.Waiting == 0 && s.Retrying == 0 &&
			s.Day.Delivered == n && s.Day.Failed == n && s.Day.Attempts() == 2*n
	})
}

// Redis is emptied while the projection runs: all of it is projected again, also
// what is in partitions that nothing comes from any more.
func TestEmptied(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	e.run(p)
	busy, idle := newSub(), newSub()
	e.fill(50, idle)
	e.fill(50, busy)
	e.complete(p, idle, 50)
	e.complete(p, busy, 50)
	e.empty()
	e.fill(10, busy)
	e.complete(p, busy, 60)
	e.complete(p, idle, 50)
	e.empty() // and nothing comes at all
	e.complete(p, busy, 60)
	e.complete(p, idle, 50)
}

// Redis comes back with an older state, while the projection runs: what came
// since is projected again, once.
func TestOlderState(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	e.run(p)
	sub := newSub()
	e.fill(20, sub)
	e.complete(p, sub, 20)
	restore := e.snapshot()
	e.fill(20, sub)
	e.complete(p, sub, 40)
	restore()
	e.complete(p, sub, 40)
}

// snapshot returns a function that puts Redis back to what it holds now.
func (e *env) snapshot() (restore func()) {
	e.t.Helper()
	var write []func(redis.Pipeliner)
	keys := e.db.Scan(e.ctx, 0, e.prefix+"*", 1000).Iterator()
	for keys.Next(e.ctx) {
		key := keys.Val()
		switch kind := e.db.Type(e.ctx, key).Val(); kind {
		case "string":
			value := e.db.Get(e.ctx, key).Val()
			write = append(write, func(p redis.Pipeliner) { p.Set(e.ctx, key, value, 0) })
		case "hash":
			value := e.db.HGetAll(e.ctx, key).Val()
			write = append(write, func(p redis.Pipeliner) { p.HSet(e.ctx, key, value) })
		case "zset":
			value := e.db.ZRangeWithScores(e.ctx, key, 0, -1).Val()
			write = append(write, func(p redis.Pipeliner) { p.ZAdd(e.ctx, key, value...) })
		default:
			e.t.Fatalf("%q is a %s", key, kind)
		}
	}
	return func() {
		e.t.Helper()
		_, err := e.db.TxPipelined(e.ctx, func(p redis.Pipeliner) error {
			keys := e.db.Scan(e.ctx, 0, e.prefix+"*", 1000).Iterator()
			for keys.Next(e.ctx) {
				p.Del(e.ctx, keys.Val())
			}
			for _, w := range write {
				w(p)
			}
			return nil
		})
		if err != nil {
			e.t.Fatal(err)
		}
	}
}

// While Redis is away questions are answered with an error, and nothing is lost.
func TestRedisAway(t *testing.T) {
	server := miniredis.RunT(t)
	e := begin(t, &redis.Options{Addr: server.Addr()})
	p := e.projection()
	stop := e.run(p)
	sub := newSub()
	e.fill(20, sub)
	e.complete(p, sub, 20)
	away := func() {
		t.Helper()
		server.SetError("LOADING Redis is loading the dataset in memory")
		m := e.fill(20, sub)[0]
		_, listErr := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Limit: 1})
		_, _, oneErr := p.Delivery(e.ctx, m.id)
		_, statsErr := p.Stats(e.ctx, sub)
		for _, err := range []error{listErr, oneErr, statsErr} {
			if !errors.Is(err, status.ErrUnavailable) {
				t.Errorf("while Redis is away: %v", err)
			}
		}
	}
	away()
	server.SetError("")
	e.complete(p, sub, 40)
	away()
	stop() // does not wait for Redis
	stop = e.run(p)
	server.SetError("")
	e.complete(p, sub, 60)
	stop()
}

// Two processes share the partitions, one goes and comes back: each record
// counts once.
func TestTwoProcesses(t *testing.T) {
	e := newEnv(t)
	p, other := e.projection(), e.projection()
	sub := newSub()
	e.run(p)
	stop := e.run(other)
	total := 0
	for i := range 4 {
		e.fill(100, sub)
		total += 100
		if i%2 == 0 {
			stop()
		} else {
			stop = e.run(other)
		}
	}
	e.complete(p, sub, total)
	e.complete(other, sub, total)
}

// A projection says how far behind it is, also before it has begun.
func TestBehind(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	sub := newSub()
	m := e.fill(10, sub)[0]
	if n, err := p.Behind(e.ctx); err != nil || n != 30 {
		t.Errorf("behind by %d, %v, want 30", n, err)
	}
	if page, err := p.Deliveries(e.ctx, status.Query{SubscriptionID: sub, Limit: 1}); err != nil || page.Behind != 30 || len(page.Deliveries) != 0 {
		t.Errorf("page %+v, %v", page, err)
	}
	if _, n, err := p.Delivery(e.ctx, m.id); !errors.Is(err, status.ErrNotFound) || n != 30 {
		t.Errorf("behind by %d, %v", n, err)
	}
	e.run(p)
	e.complete(p, sub, 10)
	// Markers of transactions are passed too.
	client := testenv.Client(t, e.kafka, kgo.TransactionalID(e.kafka.TopicPrefix+"router"))
	testenv.Transaction(t, client, kgo.TryCommit, e.made(sub).record())
	fresh := e.projection() // looks the ends up now
	e.await("nothing is behind", func() bool {
		s, err := fresh.Stats(e.ctx, sub)
		return err == nil && s.Waiting == 1 && s.Behind == 0
	})
}

// Records that are too old to be shown are not waited for.
func TestBehindOld(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	sub := newSub()
	for i := range 10 {
		m := e.made(sub)
		m.at = m.at.Add(-8 * 24 * time.Hour)
		if i == 9 {
			m.at = time.Now()
		}
		e.produce(m.record()) // one batch each: Kafka finds the first of a batch only
	}
	if n, err := p.Behind(e.ctx); err != nil || n != 1 {
		t.Errorf("behind by %d, %v, want 1", n, err)
	}
}

// Where a partition begins is an offset, decided before anything else can be
// appended: a time could lead past what comes meanwhile.
func TestStarts(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	topic := e.topics.Deliveries()
	manual := testenv.Client(t, e.kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for partition, young := range map[int32]int{1: 0, 2: 2} { // 0 is empty
		for i := range 3 + young {
			m := e.made(newSub())
			if i < 3 {
				m.at = m.at.Add(-8 * 24 * time.Hour)
			}
			r := m.record()
			r.Partition = partition
			if err := manual.ProduceSync(e.ctx, r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	starts, err := p.Starts(e.ctx, topic, []int32{0, 1, 2})
	if err != nil {
		t.Fatal(err)
	}
	for partition, want := range map[int32]int64{0: 0, 1: 3, 2: 3} {
		if got := starts[partition].EpochOffset().Offset; got != want {
			t.Errorf("partition %d begins at %d, want %d", partition, got, want)
		}
	}
}

// Metrics are told under the labels of the process, also after a rebuild.
func TestMetrics(t *testing.T) {
	e := newEnv(t)
	registry := prometheus.NewRegistry()
	p := e.projection(func(c *status.Config) {
		c.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"service": "appointments"}, registry)
	})
	e.run(p)
	sub := newSub()
	e.fill(10, sub)
	e.complete(p, sub, 10)
	e.empty()
	e.complete(p, sub, 10)
	values := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				found[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		return found
	}
	e.await("the metrics tell of a rebuild", func() bool {
		v := values()
		return v["webhooks_status_records_total projected appointments"] == 60 && v["webhooks_status_rebuilds_total appointments"] == 1 &&
			v["webhooks_status_handler_execution_time_seconds webhooks.attempts appointments true"] >= 2
	})
}

// A log that was made anew, or has lost its end, is shorter than what was projected
// of it: what comes is projected all the same.
func TestLogMadeAnew(t *testing.T) {
	e := newEnv(t)
	p := e.projection()
	for _, topic := range []string{e.topics.Deliveries(), e.topics.Backfill(), e.topics.Attempts()} {
		for n := range int32(testenv.Partitions) {
			if err := e.db.Set(e.ctx, p.PositionKey(topic, n), 33_120, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	e.run(p)
	sub := newSub()
	e.fill(20, sub)
	e.complete(p, sub, 20)
}
