package writer_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/follow"
)

// process is one of several that share the partitions of a topic. Its state is
// the list of values on partition 0, in order.
type process struct {
	t      *testing.T
	group  *writer.Group[*batch]
	follow *follow.Follower
	// sampled gets a value whenever the end of partition 0 is sampled, which a
	// writer does when it has initialised.
	sampled chan struct{}
	stop    func() // ends the process and waits

	mu     sync.Mutex
	values []string
}

// hooks change what a process does; nil does nothing.
type hooks struct {
	beforeEnd, afterEnd, beforeAwait, beforeApply func()

	commit func() error
}

// batch decides on the process's state. It is committed when the follower has
// read it back.
type batch struct {
	p       *process
	pending []string
	commit  func() error
}

func (b *batch) Commit(ctx context.Context, records []*kgo.Record) error {
	if b.commit != nil {
		if err := b.commit(); err != nil {
			return err
		}
	}
	return b.p.follow.Await(ctx, 0, records[len(records)-1].Offset+1)
}

func (b *batch) state() []string {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	return append(slices.Clone(b.p.values), b.pending...)
}

// where is what a process needs to know of its surroundings.
type where struct {
	opts          []kgo.Opt
	topic, prefix string
}

// start runs a process as a member of a group. Processes of different groups
// each believe that they own all partitions.
func start(t *testing.T, w where, group, name string, h hooks) *process {
	t.Helper()
	p := &process{t: t, sampled: make(chan struct{}, 1000)}
	call := func(f func()) {
		if f != nil {
			f()
		}
	}
	var err error
	p.follow, err = follow.New(follow.Config{Kafka: w.opts, Topic: w.topic, Apply: func(partition int32, records []*kgo.Record) {
		call(h.beforeApply)
		p.apply(partition, records)
	}})
	if err != nil {
		t.Fatal(err)
	}
	p.group, err = writer.New(writer.Config[*batch]{
		Kafka: w.opts, Topic: w.topic, Group: w.prefix + group, TransactionalID: w.prefix + "writer", Advertise: name,
		Begin: func(int32) *batch { return &batch{p: p, commit: h.commit} },
		Await: func(ctx context.Context, partition int32, offset int64) error {
			if partition == 0 {
				call(h.beforeAwait)
			}
			return p.follow.Await(ctx, partition, offset)
		},
		End: func(ctx context.Context, partition int32) (int64, error) {
			if partition == 0 {
				call(h.beforeEnd)
				defer func() { p.sampled <- struct{}{} }()
				defer call(h.afterEnd)
			}
			ends, err := p.follow.Ends(ctx)
			if err != nil {
				return 0, err
			}
			return ends[partition], nil
		},
		Log: testenv.Log(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	following, cancelFollow := context.WithCancel(context.Background())
	writing, cancelWrite := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- p.follow.Run(following) }()
	go func() { ended <- p.group.Run(writing) }()
	p.stop = sync.OnceFunc(func() {
		cancelWrite()
		err := <-ended
		cancelFollow()
		if err2 := <-ended; err != nil || err2 != nil {
			t.Errorf("%s ended with %v, %v", name, err, err2)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *process) apply(partition int32, records []*kgo.Record) {
	if partition != 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		p.values = append(p.values, string(r.Value))
	}
}

// owns waits until the process has taken partition 0 over.
func (p *process) owns() {
	p.t.Helper()
	select {
	case <-p.sampled:
	case <-deadline(p.t).Done():
		p.t.Fatal("the process never took the partition over")
	}
}

// put appends a value and returns the state it was decided on.
func (p *process) put(ctx context.Context, value string) (on []string, err error) {
	err = p.group.Submit(ctx, 0, func(_ context.Context, b *batch) ([]*kgo.Record, error) {
		on = b.state()
		b.pending = append(b.pending, value)
		return []*kgo.Record{{Value: []byte(value)}}, nil
	})
	return on, err
}

func (p *process) mustPut(value string, on ...string) {
	p.t.Helper()
	got, err := p.put(deadline(p.t), value)
	if err != nil {
		p.t.Fatalf("put %s: %v", value, err)
	}
	if !slices.Equal(got, on) {
		p.t.Errorf("%s was decided on %v, want %v", value, got, on)
	}
}

// mustHold compares what is committed with what should be.
func (p *process) mustHold(want ...string) {
	p.t.Helper()
	if err := p.follow.Sync(deadline(p.t)); err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.values, want) {
		p.t.Errorf("the log holds %v, want %v", p.values, want)
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
