package sender_test

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/dedupe"
)

// network is in memory, so that time can be virtual: it passes when nobody has
// anything to do, and nothing else takes any.
type network struct {
	kfake.VirtualNetwork
	t       *testing.T
	cluster *kfake.Cluster
	port    int
}

// inVirtualTime runs a test on a broker, endpoints and claims in memory.
func inVirtualTime(t *testing.T, schedule webhook.Schedule, test func(t *testing.T, b *bench)) {
	t.Helper()
	// A bubble's timers share one context of the race detector, also where a timer's
	// channel is looked at while others fire: on two threads that crashed once (Go
	// 1.26.8). On one it can't.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		n := &network{t: t, port: 8000}
		var err error
		n.cluster, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(n.Listen))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.cluster.Close)
		conf := kafka.Config{Brokers: n.cluster.ListenAddrs()}
		b := &bench{t: t, topics: conf.Topics(), schedule: schedule, claims: new(dedupe.Memory), virtual: n}
		b.kafka = append(testenv.Options(t, conf), kgo.Dialer(n.DialContext))
		b.endpoint.Dial = n.DialContext
		b.connect()
		settings := kafka.DefaultTopicSettings()
		settings.Partitions = testenv.Partitions
		if _, err := kafka.Apply(t.Context(), kadm.NewClient(b.client), -1, settings.Topics(b.topics, schedule)); err != nil {
			t.Fatal(err)
		}
		test(t, b)
	})
}

// serve starts a server and returns its URL.
func (n *network) serve(handler http.Handler) string {
	n.t.Helper()
	n.port++
	address := fmt.Sprintf("localhost:%d", n.port)
	listener, err := n.Listen("tcp", address)
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			n.t.Errorf("serve: %v", err)
		}
	})
	n.t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return "http://" + address
}

// stopping begins to stop a sender, lets everything happen that needs no time,
// and returns what waits for the end and says how long that took.
func stopping(snd *running) (wait func() time.Duration) {
	began := time.Now()
	stopped := make(chan struct{})
	go func() { defer close(stopped); snd.stop() }()
	synctest.Wait()
	return func() time.Duration {
		<-stopped
		return time.Since(began)
	}
}
