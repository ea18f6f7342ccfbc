package embedded

import (
	"fmt"
	"net"
	"sync"

	"github.com/alicebob/miniredis/v2/server"
)

// front is miniredis behind a listener of our own. miniredis writes each reply by
// itself, and a pipeline's replies would cost as many system calls as it has
// commands.
type front struct {
	listener net.Listener
	serving  sync.WaitGroup
}

func newFront(redis *server.Server) (*front, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the embedded Redis: %w", err)
	}
	f := &front{listener: listener}
	f.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			redis.ServeConn(&replies{Conn: conn})
		}
	})
	return f, nil
}

// close ends accepting; miniredis closes the connections.
func (f *front) close() error {
	err := f.listener.Close()
	f.serving.Wait()
	return err
}

// replies is a connection on which replies gather until the server waits for the
// next command, or there are many. One that ends the connection is lost: QUIT has
// no answer.
type replies struct {
	net.Conn
	mu      sync.Mutex
	reading bool // whoever reads commands waits for one: a reply is the last for now
	waiting []byte
}

// mostWaiting is how many bytes of replies gather at most, and one reply.
const mostWaiting = 64 << 10

func (c *replies) Read(p []byte) (int, error) {
	c.mu.Lock()
	err := c.flush()
	c.reading = err == nil
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.reading = false
	c.mu.Unlock()
	return n, err
}

func (c *replies) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, p...)
	if !c.reading && len(c.waiting) < mostWaiting {
		return len(p), nil
	}
	return len(p), c.flush()
}

// flush writes what waits; the caller holds mu.
func (c *replies) flush() error {
	if len(c.waiting) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.waiting)
	c.waiting = c.waiting[:0]
	return err
}
