package sender

import (
	"context"
	"maps"
	"slices"
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
	shard   *shard
	delay   time.Duration // of a retry topic; 0 for the others
	parked  bool          // it is of the topic of parked deliveries
	tracker *checkpoint.Tracker
	// intake ends when nothing new may be begun; hard ends when what is under way
	// has had its time.
	intake, hard     context.Context // the partition's own life
	stopIntake, kill context.CancelFunc
	// window holds a token for each record that is begun and not settled: those that
	// wait in lanes, those under way, and as many as wait for outcomes that are being
	// recorded.
	window   chan struct{}
	finished chan struct{} // closed when run has returned
	ended    chan struct{} // closed when it is stopped and no job is left

	mu      sync.Mutex
	queue   []*kgo.Record
	held    int64 // bytes of the records that are fed and not settled
	paused  bool
	fed     chan struct{} // has an element when the queue may have grown
	jobs    map[*job]struct{}
	closing bool  // no job may be added
	drained bool  // only those that are under way are left
	done    int64 // of parked deliveries: the last offset committed
}

func newPartition(s *Sender, sh *shard, tp topicPartition) *partition {
	p := &partition{
		topicPartition: tp, s: s, shard: sh, delay: s.delays[tp.topic], parked: tp.topic == s.cfg.Topics.Parked(),
		tracker: checkpoint.New(), window: make(chan struct{}, 2*s.cfg.Window+s.cfg.InFlight), fed: make(chan struct{}, 1),
		finished: make(chan struct{}), ended: make(chan struct{}), jobs: map[*job]struct{}{}, done: -1,
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

// ahead is how many times the window is read ahead, so that the partition is not
// empty before it is fetched again.
const ahead = 8

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
	if (len(p.queue) >= ahead*p.s.cfg.Window || p.held >= p.s.cfg.WindowBytes) && !p.paused {
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
	if p.paused && 2*len(p.queue) <= ahead*p.s.cfg.Window && 2*p.held <= p.s.cfg.WindowBytes {
		p.resume()
	}
}

func (p *partition) resume() {
	p.paused = false
	p.s.client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
}

// release tells that a record is held no longer.
func (p *partition) release(r *kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.letGo(r)
}

// letGo is release for who holds mu.
func (p *partition) letGo(r *kgo.Record) {
	n := size(r)
	p.s.held.Add(-n)
	p.held -= n
	p.relax()
}

// begin takes a job up, unless the partition is being taken away.
func (p *partition) begin(j *job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return false
	}
	p.jobs[j] = struct{}{}
	if j.drawn {
		p.s.drawer.bytes.Add(size(j.r))
	}
	return true
}

// end has done with a job, once: later calls do nothing.
func (p *partition) end(j *job, settled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, open := p.jobs[j]; !open {
		return
	}
	delete(p.jobs, j)
	if settled {
		j.tracker.Settle(j.r.Offset)
	}
	switch {
	case j.drawn:
		p.s.drawer.bytes.Add(-size(j.r))
	case settled:
		p.letGo(j.r)
		fallthrough
	default:
		<-p.window
	}
	if p.drained && len(p.jobs) == 0 {
		close(p.ended)
	}
}

// open returns the jobs that are not ended.
func (p *partition) open() []*job {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.jobs))
}

func (p *partition) stopped() bool { return p.intake.Err() != nil }

// run is the partition's goroutine.
func (p *partition) run() {
	defer close(p.finished)
	for {
		r := p.next()
		if r != nil && r.Attrs.IsControl() {
			p.skip(r)
			continue
		}
		// While Redis is away nothing is taken up: lanes would fill for no fault of
		// their endpoints.
		if r == nil || !p.due(r) || p.s.keeper.wait(p.intake) != nil || !p.take(r) {
			return
		}
	}
}

// skip settles a record that is none of ours.
func (p *partition) skip(r *kgo.Record) {
	p.tracker.Begin(r)
	p.tracker.Settle(r.Offset)
	p.release(r)
	if p.parked {
		p.shard.pass(p, r)
	}
}

// take takes a record up, and returns false if the intake has ended.
func (p *partition) take(r *kgo.Record) bool {
	d, err := parse(r)
	if p.parked && err == nil {
		p.release(r)
		p.shard.see(p, &job{p: p, r: r, d: d})
		return p.intake.Err() == nil
	}
	select {
	case p.window <- struct{}{}:
	case <-p.intake.Done():
		return false
	}
	late := err == nil && p.delay > 0 && time.Until(d.NotBefore) > 0
	// Before others see it: what is on its way to a topic can't be given up.
	j := &job{p: p, r: r, d: d, tracker: p.tracker, busy: err != nil || late}
	p.tracker.Begin(r)
	if p.parked { // now that it is open, commits don't pass it
		p.shard.pass(p, r)
	}
	if !p.begin(j) {
		return false
	}
	switch {
	case err != nil:
		p.s.bury(j, err)
	case late:
		p.s.goRound(j)
	default:
		for {
			wait := p.shard.admit(j)
			if wait == nil {
				return true
			}
			select {
			case <-wait:
			case <-p.intake.Done():
				return false
			}
		}
	}
	return true
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

// stop ends the intake, and gives up what waits.
func (p *partition) stop() {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.stopIntake()
	p.shard.drop(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drained = true; len(p.jobs) == 0 {
		close(p.ended)
	}
}

// await returns when everything under way is settled, or after ctx has ended
// and it has been given up.
func (p *partition) await(ctx context.Context) {
	<-p.finished
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.kill()
		p.shard.giveUp(p)
		<-p.ended
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

// committable returns the offset to commit, and false if there is nothing new.
func (p *partition) committable() (kgo.EpochOffset, bool) {
	if !p.parked {
		return p.tracker.Committable()
	}
	at, seen := p.shard.settled(p)
	if lowest, open := p.tracker.Lowest(); open {
		at = min(at, lowest)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Whose epoch it would be is not known. A wrong one would have the next reader
	// go back to where that epoch ended.
	return kgo.EpochOffset{Epoch: -1, Offset: at}, seen && at > p.done
}

func (p *partition) committed(at int64) {
	p.tracker.Committed(at)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = max(p.done, at)
}
