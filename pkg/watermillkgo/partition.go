package watermillkgo

import (
	"context"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/checkpoint"
)

// size is what a record counts against the bound of bytes: what it holds, and
// about what holding it takes.
func size(r *kgo.Record) int64 {
	n := 256 + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 48 + len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// partition hands out the messages of one partition, in order. It lives from its
// first record to its revocation.
type partition struct {
	s       *subscription
	n       int32
	tracker *checkpoint.Tracker

	intake, hard         context.Context // the partition's own life
	stopIntake, stopHard context.CancelFunc
	// window holds a token for each message that is begun and not acked.
	window   chan struct{}
	lanes    sync.WaitGroup
	finished chan struct{} // closed when run has returned

	mu     sync.Mutex
	queue  []*kgo.Record
	behind map[string][]*kgo.Record // by key in flight: the begun that wait for it
	held   int64                    // bytes of the records that are fed and not acked
	paused bool
	fed    chan struct{} // has an element when the queue may have grown
}

func newPartition(s *subscription, n int32) *partition {
	p := &partition{
		s: s, n: n, tracker: checkpoint.New(),
		window: make(chan struct{}, s.cfg.MaxInFlight), behind: map[string][]*kgo.Record{},
		fed: make(chan struct{}, 1), finished: make(chan struct{}),
	}
	p.hard, p.stopHard = context.WithCancel(s.hard)
	p.intake, p.stopIntake = context.WithCancel(s.intake)
	return p
}

// feed takes fetched records. When there are enough it pauses the partition: its
// backlog stays in Kafka.
func (p *partition) feed(records []*kgo.Record) {
	p.mu.Lock()
	for _, r := range records {
		p.held += size(r)
	}
	p.queue = append(p.queue, records...)
	if p.held >= p.s.cfg.BufferBytes && !p.paused {
		p.paused = true
		p.s.client.PauseFetchPartitions(map[string][]int32{p.s.topic: {p.n}})
	}
	p.mu.Unlock()
	select {
	case p.fed <- struct{}{}:
	default:
	}
}

// next waits for the next records, as many as a message has at most, or returns
// none when the intake ends.
func (p *partition) next() []*kgo.Record {
	for {
		p.mu.Lock()
		if n := min(len(p.queue), p.s.cfg.BatchRecords); n > 0 {
			records := slices.Clone(p.queue[:n])
			clear(p.queue[:n])
			p.queue = p.queue[n:]
			p.mu.Unlock()
			return records
		}
		p.mu.Unlock()
		select {
		case <-p.fed:
		case <-p.intake.Done():
			return nil
		}
	}
}

// release tells that records are held no longer.
func (p *partition) release(records []*kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		p.held -= size(r)
	}
	if p.paused && 2*p.held <= p.s.cfg.BufferBytes {
		p.resume()
	}
}

func (p *partition) resume() {
	p.paused = false
	p.s.client.ResumeFetchPartitions(map[string][]int32{p.s.topic: {p.n}})
}

// run is the partition's goroutine.
func (p *partition) run() {
	defer close(p.finished)
	defer p.lanes.Wait()
	for {
		select {
		case p.window <- struct{}{}:
		case <-p.intake.Done():
			return
		}
		records := p.next()
		if len(records) == 0 || p.intake.Err() != nil {
			return
		}
		for _, r := range records {
			p.tracker.Begin(r)
		}
		p.begin(records)
	}
}

// begin hands the message of records out, or lets that of one record wait for
// that of its key which is in flight.
func (p *partition) begin(records []*kgo.Record) {
	r := records[0]
	if r.Key == nil || p.s.cfg.BatchRecords > 1 {
		p.lanes.Go(func() { p.settle(records) })
		return
	}
	key := string(r.Key)
	p.mu.Lock()
	defer p.mu.Unlock()
	if waiting, inFlight := p.behind[key]; inFlight {
		p.behind[key] = append(waiting, r)
		return
	}
	p.behind[key] = nil
	p.lanes.Go(func() {
		for r != nil && p.settle([]*kgo.Record{r}) {
			r = p.follower(key)
		}
	})
}

// follower returns the record that waits for the key, or nil if none does; then
// the key is not in flight any more.
func (p *partition) follower(key string) *kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.behind[key]
	if len(waiting) == 0 {
		delete(p.behind, key)
		return nil
	}
	r := waiting[0]
	p.behind[key] = slices.Delete(waiting, 0, 1)
	return r
}

// settle hands the message of records out until it is acked, and returns false if
// the partition ends first.
func (p *partition) settle(records []*kgo.Record) bool {
	for !p.deliver(records) {
		if !pause(p.intake, p.s.cfg.NackDelay) {
			return false
		}
	}
	for _, r := range records {
		p.tracker.Settle(r.Offset)
	}
	p.release(records)
	<-p.window
	return true
}

// deliver hands the message of records out once, and returns true if it was
// acked.
func (p *partition) deliver(records []*kgo.Record) bool {
	if p.intake.Err() != nil {
		return false
	}
	ctx, cancel := context.WithCancel(withRecords(p.hard, records))
	defer cancel()
	msg := p.message(records)
	msg.SetContext(ctx)
	select {
	case p.s.out <- msg:
	case <-p.intake.Done():
		return false
	}
	select {
	case <-msg.Acked():
		return true
	case <-msg.Nacked():
		return false
	case <-p.hard.Done():
	}
	select {
	case <-msg.Acked(): // just in time
		return true
	default:
		return false
	}
}

// message makes the message of records.
func (p *partition) message(records []*kgo.Record) *message.Message {
	if p.s.cfg.BatchRecords > 1 {
		return message.NewMessage(derivedUUID(records[0]), nil)
	}
	return p.s.cfg.Unmarshal(records[0])
}

// await ends the partition: it returns when everything in flight is acked, or
// after ctx has ended and it has been given up.
func (p *partition) await(ctx context.Context) {
	p.stopIntake()
	select {
	case <-p.finished:
	case <-ctx.Done():
		p.stopHard()
		<-p.finished
	}
	p.stopHard()
	// A partition that comes back to this subscription is fetched again.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		p.resume()
	}
	p.queue = nil
}
