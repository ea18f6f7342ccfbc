package sender

import (
	"context"
	"sync"
)

// lanes bounds the requests under way to each subscription, so that one which
// hangs can't take all of them.
type lanes struct {
	limit int
	mu    sync.Mutex
	byID  map[string]*lane
}

// lane exists for as long as somebody uses it or waits for it.
type lane struct {
	slots chan struct{}
	users int
}

// enter waits for a place in the subscription's lane and returns what gives it
// back.
func (l *lanes) enter(ctx context.Context, id string) (leave func(), err error) {
	l.mu.Lock()
	ln := l.byID[id]
	if ln == nil {
		ln = &lane{slots: make(chan struct{}, l.limit)}
		l.byID[id] = ln
	}
	ln.users++
	l.mu.Unlock()
	drop := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if ln.users--; ln.users == 0 {
			delete(l.byID, id)
		}
	}
	select {
	case ln.slots <- struct{}{}:
		return func() { <-ln.slots; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, context.Cause(ctx)
	}
}
