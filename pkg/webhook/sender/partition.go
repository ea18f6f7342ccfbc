package sender

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// partition takes the records of one assigned partition, in order and each when
// it is due, and has them delivered. It lives from assignment to revocation.
type partition struct {
	topicPartition
	s       *Sender
	delay   time.Duration // of a retry topic; 0 for deliveries
	tracker *checkpoint.Tracker
	// intake ends when nothing new may be begun; hard ends when what is under way
	// has had its time.
	intake, hard     context.Context // the partition's own life
	stopIntake, kill context.CancelFunc
	// window holds a token for each record that is begun and not settled.
	window     chan struct{}
	deliveries sync.WaitGroup
	finished   chan struct{} // closed when run has returned

	mu     sync.Mutex
	queue  []*kgo.Record
	held   int64 // bytes of the records that are fed and not settled
	paused bool
	fed    chan struct{} // has an element when the queue may have grown
}

func newPartition(s *Sender, tp topicPartition) *partition {
	p := &partition{
		topicPartition: tp, s: s, delay: s.delays[tp.topic], tracker: checkpoint.New(),
		window: make(chan struct{}, s.cfg.Window), fed: make(chan struct{}, 1), finished: make(chan struct{}),
	}
	p.intake, p.stopIntake = context.WithCancel(s.work)
	p.hard, p.kill = context.WithCancel(s.work)
	return p
}

// size is what a record counts against the bound of bytes.
func size(r *kgo.Record) int64 {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// feed takes polled records. When there are enough, in number or in bytes, it
// pauses the partition: its backlog stays in Kafka.
func (p *partition) feed(records []*kgo.Record) {
	var n int64
	for _, r := range records {
		n += size(r)
	}
	p.s.held.Add(n)
	p.mu.Lock()
	p.held += n
	p.queue = append(p.queue, records...)
	if (len(p.queue) >= p.s.cfg.Window || p.held >= p.s.cfg.WindowBytes) && !p.paused {
		p.paused = true
		p.s.client.PauseFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
	p.mu.Unlock()
	select {
	case p.fed <- struct{}{}:
	default:
	}
}

// next waits for the next record, or returns nil when the intake ends.
func (p *partition) next() *kgo.Record {
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			r := p.queue[0]
			p.queue[0] = nil
			p.queue = p.queue[1:]
			p.relax()
			p.mu.Unlock()
			return r
		}
		p.mu.Unlock()
		select {
		case <-p.fed:
		case <-p.intake.Done():
			return nil
		}
	}
}

// relax resumes a paused partition when at most half of what it may hold is
// left; the caller holds mu.
func (p *partition) relax() {
	if p.paused && 2*len(p.queue) <= p.s.cfg.Window && 2*p.held <= p.s.cfg.WindowBytes {
		p.resume()
	}
}

func (p *partition) resume() {
	p.paused = false
	p.s.client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
}

// release tells that a record is held no longer.
func (p *partition) release(r *kgo.Record) {
	n := size(r)
	p.s.held.Add(-n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held -= n
	p.relax()
}

// run is the partition's goroutine.
func (p *partition) run() {
	defer close(p.finished)
	defer p.deliveries.Wait()
	for {
		r := p.next()
		if r != nil && r.Attrs.IsControl() {
			p.tracker.Begin(r)
			p.tracker.Settle(r.Offset)
			p.release(r)
			continue
		}
		if r == nil || p.intake.Err() != nil || !p.due(r) {
			return
		}
		select {
		case p.window <- struct{}{}:
		case <-p.intake.Done():
			return
		}
		p.tracker.Begin(r)
		p.deliveries.Add(1)
		p.s.pool.run(func() {
			defer p.deliveries.Done()
			defer func() { <-p.window }()
			if p.s.settle(p.intake, p.hard, r, p.delay) {
				p.tracker.Settle(r.Offset)
				p.release(r)
			}
		})
	}
}

// due waits until the record's turn has come, and returns false if the intake
// ends first. All records of a retry topic wait for the same delay, so that none
// waits behind one that is due later.
func (p *partition) due(r *kgo.Record) bool {
	if p.delay == 0 {
		return true
	}
	at := r.Timestamp.Add(p.delay)
	if d, err := webhook.ParseDelivery(r); err == nil && d.NotBefore.Before(at) {
		at = d.NotBefore
	}
	wait := time.NewTimer(time.Until(at))
	defer wait.Stop()
	select {
	case <-wait.C:
		return true
	case <-p.intake.Done():
		return false
	}
}

// stop ends the intake.
func (p *partition) stop() { p.stopIntake() }

// await returns when everything under way is settled, or after ctx has ended
// and it has been given up.
func (p *partition) await(ctx context.Context) {
	select {
	case <-p.finished:
	case <-ctx.Done():
		p.kill()
		<-p.finished
	}
	p.kill()
	// A partition that comes back to this process is fetched again.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		p.resume()
	}
	// What is given up is let go with the partition.
	p.s.held.Add(-p.held)
	p.held, p.queue = 0, nil
}

func (p *partition) committable() (kgo.EpochOffset, bool) { return p.tracker.Committable() }
