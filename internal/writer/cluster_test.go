package writer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/arsmedicatech/webhooks/internal/writer"
)

// These tests run in virtual time and on a broker that does what they say, and
// so always on the embedded one.

func cluster(t *testing.T, dial func(*kfake.VirtualNetwork) func(context.Context, string, string) (net.Conn, error)) (*kfake.Cluster, where) {
	t.Helper()
	network := &kfake.VirtualNetwork{}
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.ListenFn(network.Listen), kfake.SeedTopics(1, "log"),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelNone)),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	dialer := network.DialContext
	if dial != nil {
		dialer = dial(network)
	}
	return c, where{[]kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.Dialer(dialer)}, "log", ""}
}

// held makes the process carry out an operation that does not end before the
// returned function is called, so that others wait behind it.
func held(p *process, value string) (release func(), answer chan error) {
	in, out := make(chan struct{}), make(chan struct{})
	answer = make(chan error, 1)
	go func() {
		answer <- p.group.Submit(p.t.Context(), 0, func(context.Context, *batch) ([]*kgo.Record, error) {
			close(in)
			<-out
			return []*kgo.Record{{Value: []byte(value)}}, nil
		})
	}()
	<-in
	return func() { close(out) }, answer
}

func TestOperationsShareTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		p := start(t, w, "g", "p", hooks{})
		p.owns()
		release, first := held(p, "first")
		const n = 200
		var g sync.WaitGroup
		for i := range n {
			g.Go(func() {
				if _, err := p.put(t.Context(), fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		if err := <-first; err != nil {
			t.Error(err)
		}
		g.Wait()

		markers, records := 0, 0
		client, err := kgo.NewClient(append(w.opts, kgo.ConsumeTopics(w.topic), kgo.KeepControlRecords(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for records < n+1 || markers < 2 {
			fetches := client.PollFetches(deadline(t))
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if r.Attrs.IsControl() {
					markers++
				} else {
					records++
				}
			})
		}
		if records != n+1 || markers != 2 {
			t.Errorf("%d records in %d transactions, want %d in 2", records, markers, n+1)
		}
	})
}

// A later operation of a transaction decides on what the earlier ones decided,
// and what one of them refused is not written.
func TestOperationsDecideOnTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		p := start(t, w, "g", "p", hooks{})
		p.owns()
		release, first := held(p, "first")
		refusal := errors.New("refused")
		var g sync.WaitGroup
		var applied atomic.Int32
		for range 50 { // as many buy as there are; there are three
			g.Go(func() {
				err := p.group.Submit(t.Context(), 0, func(_ context.Context, b *batch) ([]*kgo.Record, error) {
					if len(b.state()) >= 3 {
						return []*kgo.Record{{Value: []byte("refused")}}, refusal
					}
					b.pending = append(b.pending, "one")
					return []*kgo.Record{{Value: []byte("one")}}, nil
				})
				switch {
				case err == nil:
					applied.Add(1)
				case !errors.Is(err, refusal):
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		g.Wait()
		if err := <-first; err != nil {
			t.Error(err)
		}
		p.mustHold("first", "one", "one")
		if n := applied.Load(); n != 2 {
			t.Errorf("%d were applied, want 2", n)
		}
	})
}

// When the partition goes, the batch in flight is finished and everything that
// waits behind it is sent elsewhere, undone.
func TestAnswersTheQueueWhenItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		p := start(t, w, "g", "p", hooks{})
		p.owns()
		release, first := held(p, "first")
		const n = 20
		answers := make(chan error, n)
		for i := range n {
			go func() { _, err := p.put(t.Context(), fmt.Sprint(i)); answers <- err }()
		}
		synctest.Wait()
		stopped := make(chan struct{})
		go func() { p.stop(); close(stopped) }()
		synctest.Wait() // the group wants the partition back
		select {
		case <-stopped:
			t.Fatal("it was given back with a batch in flight")
		default:
		}
		release()
		if err := <-first; err != nil {
			t.Errorf("the batch in flight: %v, want it committed", err)
		}
		for range n {
			if err := <-answers; !errors.Is(err, writer.ErrNotOwner) {
				t.Errorf("an operation in the queue: %v, want ErrNotOwner", err)
			}
		}
		<-stopped
		next := start(t, w, "g", "next", hooks{})
		next.owns()
		next.mustHold("first")
	})
}

// Nothing is decided before the log has been folded to where it ended when the
// writer had initialised.
func TestServesWhenItHasFolded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		a := start(t, w, "g", "a", hooks{})
		a.owns()
		a.mustPut("1")
		a.stop()
		fold := make(chan struct{})
		b := start(t, w, "g", "b", hooks{beforeApply: func() { <-fold }})
		b.owns()
		decided := make(chan []string, 1)
		go func() {
			on, err := b.put(t.Context(), "2")
			if err != nil {
				t.Error(err)
			}
			decided <- on
		}()
		synctest.Wait()
		close(fold)
		if on := <-decided; !slices.Equal(on, []string{"1"}) {
			t.Errorf("decided on %v, want [1]", on)
		}
	})
}

// A batch that was written but could not be made part of the state leaves the
// writer in doubt: it begins again, and finds it in the log.
func TestBeginsAgainWhenTheStateIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		fail := true
		p := start(t, w, "g", "p", hooks{commit: func() error {
			if fail {
				fail = false
				return errors.New("no")
			}
			return nil
		}})
		p.owns()
		if _, err := p.put(t.Context(), "1"); !errors.Is(err, writer.ErrUnknown) {
			t.Errorf("%v, want ErrUnknown", err)
		}
		p.owns() // again
		p.mustPut("2", "1")
	})
}

// Whose caller gives up before its turn is not carried out, and says so; whose
// caller gives up later may have been.
func TestCallersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		p := start(t, w, "g", "p", hooks{})
		p.owns()
		ctx, cancel := context.WithCancel(t.Context())
		in, out := make(chan struct{}), make(chan struct{})
		taken, waiting := make(chan error, 1), make(chan error, 1)
		go func() {
			taken <- p.group.Submit(ctx, 0, func(context.Context, *batch) ([]*kgo.Record, error) {
				close(in)
				<-out
				return []*kgo.Record{{Value: []byte("taken")}}, nil
			})
		}()
		<-in
		go func() { _, err := p.put(ctx, "waiting"); waiting <- err }()
		synctest.Wait()
		cancel()
		if err := <-taken; !errors.Is(err, writer.ErrUnknown) {
			t.Errorf("given up while it was carried out: %v, want ErrUnknown", err)
		}
		if err := <-waiting; !errors.Is(err, writer.ErrNotOwner) {
			t.Errorf("given up while it waited: %v, want ErrNotOwner", err)
		}
		close(out)
		p.mustPut("next", "taken")
		p.mustHold("taken", "next")
	})
}

// The queue of a writer that can't serve is bounded.
func TestRefusesWhatDoesNotFitTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := cluster(t, nil)
		p := start(t, w, "g", "p", hooks{})
		p.owns()
		release, first := held(p, "first")
		const queue, more = 1024, 10
		answers := make(chan error, queue+more)
		for i := range queue + more {
			go func() { _, err := p.put(t.Context(), fmt.Sprint(i)); answers <- err }()
		}
		synctest.Wait()
		if len(answers) != more {
			t.Errorf("%d were refused at once, want %d", len(answers), more)
		}
		release()
		if err := <-first; err != nil {
			t.Error(err)
		}
		written := 0
		for range queue + more {
			if err := <-answers; err == nil {
				written++
			} else if !errors.Is(err, writer.ErrNotOwner) {
				t.Error(err)
			}
		}
		if written != queue {
			t.Errorf("%d were written, want %d", written, queue)
		}
	})
}

// The end of a transaction times out. Whether it was committed or will never
// be, the next decision knows.
func TestUnknownOutcome(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(*kfake.Cluster) // loses the request, or does nothing
		want []string             // what the log then holds
	}{
		{"the request is lost", func(c *kfake.Cluster) {
			c.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, true })
		}, []string{"1"}},
		{"the answer is lost", nil, []string{"1", "2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var deaf atomic.Bool
				broker, w := cluster(t, func(v *kfake.VirtualNetwork) func(context.Context, string, string) (net.Conn, error) {
					return func(ctx context.Context, network, address string) (net.Conn, error) {
						conn, err := v.DialContext(ctx, network, address)
						return &lossy{Conn: conn, deaf: &deaf}, err
					}
				})
				p := start(t, w, "g", "p", hooks{})
				p.owns()
				p.mustPut("1")
				if c.lose != nil {
					c.lose(broker)
				} else {
					deaf.Store(true)
				}
				if _, err := p.put(t.Context(), "2"); !errors.Is(err, writer.ErrUnknown) {
					t.Fatalf("the write whose outcome is unknown: %v, want ErrUnknown", err)
				}
				deaf.Store(false)
				p.mustPut("3", c.want...)
				p.mustHold(append(slices.Clone(c.want), "3")...)
			})
		})
	}
}

// lossy is a connection that goes silent when, while deaf is set, a request to
// end a transaction goes over it.
type lossy struct {
	net.Conn
	deaf   *atomic.Bool
	silent atomic.Bool
}

func (l *lossy) Write(b []byte) (int, error) {
	const key = 4 // behind the request's size
	if l.deaf.Load() && len(b) > key+1 && int(b[key])<<8|int(b[key+1]) == int(kmsg.EndTxn) {
		l.silent.Store(true)
	}
	return l.Conn.Write(b)
}

func (l *lossy) Read(b []byte) (int, error) {
	for {
		n, err := l.Conn.Read(b)
		if err != nil || !l.silent.Load() {
			return n, err
		}
	}
}
