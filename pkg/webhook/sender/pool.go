package sender

import "sync"

// pool runs functions on goroutines that it keeps. A request needs more stack
// than a new goroutine has; growing it anew for each delivery would cost more
// than signing it.
type pool struct {
	tasks chan func()
	idle  chan struct{} // a token for each goroutine that is kept idle
	stop  chan struct{}
	all   sync.WaitGroup
}

// newPool keeps at most so many goroutines idle; how many run is up to the
// caller.
func newPool(idle int) *pool {
	return &pool{tasks: make(chan func()), idle: make(chan struct{}, idle), stop: make(chan struct{})}
}

func (p *pool) run(task func()) {
	select {
	case p.tasks <- task:
	default:
		p.all.Go(func() { p.work(task) })
	}
}

func (p *pool) work(task func()) {
	for {
		task()
		select {
		case p.idle <- struct{}{}:
		default:
			return
		}
		select {
		case task = <-p.tasks:
			<-p.idle
		case <-p.stop:
			return
		}
	}
}

// close waits until every task has ended; none may be added any more.
func (p *pool) close() {
	close(p.stop)
	p.all.Wait()
}
