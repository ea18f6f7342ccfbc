package follow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/follow"
)

// These tests need a broker that does what they say, and so always run on the
// embedded one, in virtual time.

const table = "table"

// cluster starts a broker with one topic of that many partitions and returns
// the options to connect to it.
func cluster(t *testing.T, partitions int32) (*kfake.Cluster, []kgo.Opt) {
	t.Helper()
	net := &kfake.VirtualNetwork{}
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.ListenFn(net.Listen), kfake.SeedTopics(partitions, table),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelNone)),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.Dialer(net.DialContext), kgo.ProducerLinger(0)}
}

// isEnd says whether a request looks up high watermarks.
func isEnd(req kmsg.Request) bool {
	return req.(*kmsg.ListOffsetsRequest).Topics[0].Partitions[0].Timestamp == -1
}

func TestCallsShareLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, opts := cluster(t, 3)
		f, _ := begin(t, follow.Config{Kafka: opts, Topic: table})
		<-f.Restored()

		var lookups atomic.Int32
		hold, held := make(chan struct{}), make(chan struct{}, 1)
		c.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			if isEnd(req) && lookups.Add(1) == 1 {
				held <- struct{}{}
				<-hold
			}
			return nil, nil, false
		})
		var g sync.WaitGroup
		ask := func() {
			if err := f.Sync(t.Context()); err != nil {
				t.Error(err)
			}
		}
		g.Go(ask)
		<-held // the first look-up is on its way: it can't serve who asks now
		for range 500 {
			g.Go(ask)
		}
		synctest.Wait()
		close(hold)
		g.Wait()
		if n := lookups.Load(); n != 2 {
			t.Errorf("501 calls took %d look-ups, want 2: one that was on its way and one for all who asked since", n)
		}
	})
}

// A look-up that fails while the topic is being restored fails who asked for
// it, and delays the restore; it does not end it.
func TestRestoresAfterFailedLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, opts := cluster(t, 1)
		failures := 3
		c.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			if !isEnd(req) || failures == 0 {
				return nil, nil, false
			}
			failures--
			r := req.(*kmsg.ListOffsetsRequest)
			resp := r.ResponseKind().(*kmsg.ListOffsetsResponse)
			part := kmsg.NewListOffsetsResponseTopicPartition()
			part.ErrorCode = kerr.TopicAuthorizationFailed.Code
			top := kmsg.NewListOffsetsResponseTopic()
			top.Topic, top.Partitions = r.Topics[0].Topic, append(top.Partitions, part)
			resp.Topics = append(resp.Topics, top)
			return resp, nil, true
		})
		f, _ := begin(t, follow.Config{Kafka: opts, Topic: table})
		select {
		case <-f.Restored():
		case <-time.After(time.Minute):
			t.Fatal("not restored although the broker has recovered")
		}
	})
}

// Nobody waits for a follower that has ended, be it for an end or a position.
func TestEndsWaitsWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, opts := cluster(t, 1)
		hold := make(chan struct{})
		f, err := follow.New(follow.Config{Kafka: opts, Topic: table, Apply: func(int32, []*kgo.Record) {}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		<-f.Restored()
		c.ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.SleepControl(func() { <-hold })
			return nil, nil, false
		})
		waits := make(chan error, 3)
		go func() { waits <- f.Await(t.Context(), 0, 10) }()
		go func() { _, err := f.Ends(t.Context()); waits <- err }()
		synctest.Wait()
		go func() { waits <- f.Sync(t.Context()) }()
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		for range 3 {
			if err := <-waits; err == nil {
				t.Error("a wait ended well although nothing came")
			}
		}
		if _, err := f.Ends(t.Context()); !errors.Is(err, follow.ErrStopped) {
			t.Errorf("afterwards, Ends says %v", err)
		}
		close(hold)
	})
}

// A compacted topic has gaps: offsets that no record stands at, before, between
// and behind what is left, and tombstones.
func TestRestoresCompactedTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, opts := cluster(t, 1)
		w, err := kgo.NewClient(append(opts, kgo.TransactionalID("w"))...)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		plain, err := kgo.NewClient(opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		put := func(key string, value []byte) {
			t.Helper()
			testenv.Transaction(t, w, kgo.TryCommit, &kgo.Record{Topic: table, Key: []byte(key), Value: value})
		}
		for i := range 20 {
			put(fmt.Sprint("k", i%4), fmt.Append(nil, i)) // 16…19 stay
		}
		put("k0", nil)
		if err := plain.ProduceSync(t.Context(), &kgo.Record{Topic: table, Key: []byte("k1"), Value: []byte("last")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		testenv.Transaction(t, w, kgo.TryAbort, &kgo.Record{Topic: table, Key: []byte("k2"), Value: []byte("never")})
		policy, now := "compact", "0"
		if _, err := kadm.NewClient(plain).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
			{Name: "cleanup.policy", Value: &policy}, {Name: "delete.retention.ms", Value: &now},
		}, table); err != nil {
			t.Fatal(err)
		}
		c.Compact()

		f, s := begin(t, follow.Config{Kafka: opts, Topic: table})
		select {
		case <-f.Restored():
		case <-time.After(time.Minute):
			t.Fatal("never restored")
		}
		if s.count > 5 {
			t.Errorf("%d records were applied: nothing has been compacted", s.count)
		}
		for key, want := range map[string]string{"k0": "", "k1": "last", "k2": "18", "k3": "19"} {
			if got := s.get(key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		put("k0", []byte("again"))
		mustSync(t, f)
		if got := s.get("k0"); got != "again" {
			t.Errorf("k0 is %q after it was put again", got)
		}
	})
}
