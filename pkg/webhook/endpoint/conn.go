package endpoint

import (
	"bufio"
	"cmp"
	"container/list"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"
)

// conn is a connection that speaks HTTP/1.1, for one request at a time. Whoever has it writes and reads himself: net/http's
// transport has two goroutines for each connection and hands every request and every answer from one to the other, which
// is a third of what a small request costs (BenchmarkBare). Answers are read by net/http's parser.
type conn struct {
	net.Conn
	host *host
	in   *bufio.Reader
	out  *bufio.Writer
	left int64 // how many bytes may still be read
	// Why nothing more can be read, if it is not that the endpoint has closed, or written: what net/http returns then may
	// be any consequence of it.
	lost, broken error

	since time.Time // idle; and where it is among the idle ones
	at    *list.Element
}

func newConn(h *host, c net.Conn) *conn {
	cn := &conn{Conn: c, host: h}
	cn.in, cn.out = bufio.NewReader(cn), bufio.NewWriter(cn)
	return cn
}

// Read implements io.Reader for in.
func (cn *conn) Read(p []byte) (n int, err error) {
	if cn.left <= 0 {
		err = errLargeHead
	} else {
		n, err = cn.Conn.Read(p[:min(int64(len(p)), cn.left)])
		cn.left -= int64(n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		cn.lost = err
	}
	return n, err
}

// Write implements io.Writer for out.
func (cn *conn) Write(p []byte) (int, error) {
	n, err := cn.Conn.Write(p)
	if err != nil {
		cn.broken = err
	}
	return n, err
}

// ask sends a request and returns when the answer's head is complete. It does not listen before all is sent: an endpoint
// that answers without reading, and closes at once, resets the connection and is seldom heard by anybody.
func (cn *conn) ask(t *target, r Request, cfg Config) (*http.Response, error) {
	if err := cn.send(t, r, cfg.UserAgent); err != nil {
		return nil, cmp.Or(cn.broken, err)
	}
	return cn.head(cfg.HeaderLimit)
}

// send writes a request whose header has been checked. net/http's Request.Write takes three times as long, for it has to
// look at a map's fields in order, and at much that a POST with its body at hand can't be.
func (cn *conn) send(t *target, r Request, agent string) error {
	head := append(cn.out.AvailableBuffer(), t.begin...)
	for _, f := range r.Header {
		head = appendField(head, f.Name, f.Value)
	}
	if !r.Header.has("User-Agent") {
		head = appendField(head, "User-Agent", agent)
	}
	head = appendField(head, "Content-Length", strconv.Itoa(len(r.Body)))
	if _, err := cn.out.Write(append(head, "\r\n"...)); err != nil {
		return err
	}
	if _, err := cn.out.Write(r.Body); err != nil {
		return err
	}
	return cn.out.Flush()
}

func appendField(head []byte, name, value string) []byte {
	return append(append(append(append(head, name...), ": "...), value...), "\r\n"...)
}

// head reads an answer's head, and those of interim answers before.
func (cn *conn) head(limit int64) (*http.Response, error) {
	cn.left = limit
	for {
		answer, err := http.ReadResponse(cn.in, nil)
		if err != nil && cn.lost != nil {
			err = cn.lost
		}
		if err != nil {
			return nil, err
		}
		if answer.StatusCode < 100 || answer.StatusCode > 199 || answer.StatusCode == http.StatusSwitchingProtocols {
			cn.left = math.MaxInt64
			return answer, nil
		}
	}
}

// interrupt ends what is being done on the connection.
func (cn *conn) interrupt() { _ = cn.SetDeadline(time.Unix(1, 0)) }
