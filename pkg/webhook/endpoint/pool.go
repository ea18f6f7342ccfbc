package endpoint

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"time"
)

// pool keeps connections that speak HTTP/1.1, a bounded number to each host and of idle ones altogether.
type pool struct {
	perHost, idlePerHost, idleMost int
	life                           time.Duration // of an idle connection

	mu     sync.Mutex
	hosts  map[string]*host
	idle   list.List   // of *conn, the one that has been idle for longest in front
	reaper *time.Timer // nil while none is idle
	closed bool
}

// host is a scheme and an address, as long as somebody uses it or a connection is idle.
type host struct {
	key    string
	places chan struct{} // has an element for each connection in use
	users  int           // who has a place or waits for one
	idle   []*conn       // the one used last is the last
}

func newPool(cfg Config) *pool {
	return &pool{
		perHost: cfg.ConnsPerHost, idlePerHost: cfg.IdleConnsPerHost, idleMost: cfg.IdleConns, life: cfg.IdleTimeout,
		hosts: map[string]*host{},
	}
}

// enter waits for the right to use one of a host's connections; leave gives it back.
func (p *pool) enter(ctx context.Context, key string, deadline time.Time) (*host, error) {
	p.mu.Lock()
	h := p.hosts[key]
	if h == nil {
		h = &host{key: key, places: make(chan struct{}, p.perHost)}
		p.hosts[key] = h
	}
	h.users++
	p.mu.Unlock()
	select {
	case h.places <- struct{}{}:
		return h, nil
	default:
	}
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, errTimeout)
	defer cancel()
	select {
	case h.places <- struct{}{}:
		return h, nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		h.users--
		p.forget(h)
		return nil, context.Cause(ctx)
	}
}

// leave gives a place back, and the connection if it can be used again; else it is nil.
func (p *pool) leave(h *host, cn *conn) {
	surplus := p.keep(h, cn)
	if surplus != nil {
		_ = surplus.Close()
	}
}

// keep does what leave does, but for closing a connection that is one too many.
func (p *pool) keep(h *host, cn *conn) (surplus *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case cn == nil:
	case p.closed || len(h.idle) >= p.idlePerHost:
		surplus = cn
	default:
		cn.since = time.Now()
		cn.at = p.idle.PushBack(cn)
		h.idle = append(h.idle, cn)
		if p.reaper == nil {
			p.reaper = time.AfterFunc(p.life, p.reap)
		}
		if p.idle.Len() > p.idleMost {
			surplus = p.idle.Front().Value.(*conn)
			p.remove(surplus)
		}
	}
	<-h.places
	h.users--
	p.forget(h)
	return surplus
}

// forget forgets a host that nobody needs; the caller holds mu.
func (p *pool) forget(h *host) {
	if h.users == 0 && len(h.idle) == 0 {
		delete(p.hosts, h.key)
	}
}

// take returns the idle connection of a host that was used last, or nil. The caller has a place.
func (p *pool) take(h *host) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(h.idle) == 0 {
		return nil
	}
	cn := h.idle[len(h.idle)-1]
	p.drop(cn, len(h.idle)-1)
	return cn
}

// remove takes an idle connection out; the caller holds mu.
func (p *pool) remove(cn *conn) { p.drop(cn, slices.Index(cn.host.idle, cn)) }

// drop does what remove does, given where among its host's idle ones the connection is.
func (p *pool) drop(cn *conn, i int) {
	p.idle.Remove(cn.at)
	cn.host.idle = slices.Delete(cn.host.idle, i, i+1)
	p.forget(cn.host)
}

// reap closes connections that have been idle for too long.
func (p *pool) reap() {
	for _, cn := range p.expired() {
		_ = cn.Close()
	}
}

// expired takes out what reap closes, and sets the reaper to the next.
func (p *pool) expired() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaper = nil
	var old []*conn
	for e := p.idle.Front(); e != nil; e = p.idle.Front() {
		cn := e.Value.(*conn)
		if left := time.Until(cn.since.Add(p.life)); left > 0 {
			p.reaper = time.AfterFunc(left, p.reap)
			break
		}
		p.remove(cn)
		old = append(old, cn)
	}
	return old
}

// close closes idle connections now, and others when they are given back.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.reaper != nil {
		p.reaper.Stop()
	}
	for e := p.idle.Front(); e != nil; e = p.idle.Front() {
		cn := e.Value.(*conn)
		p.remove(cn)
		_ = cn.Close()
	}
}
