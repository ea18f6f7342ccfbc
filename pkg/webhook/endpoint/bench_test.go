package endpoint_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// The bodies of an appointment's webhook are about this long.
var benchBody = bytes.Repeat([]byte("x"), 400)

// BenchmarkBare is the floor: net/http with its defaults, but for the connections it keeps.
func BenchmarkBare(b *testing.B) {
	eachSink(b, func(b *testing.B, url string) {
		transport := &http.Transport{MaxIdleConnsPerHost: 64}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		run(b, func() int {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, bytes.NewReader(benchBody))
			if err != nil {
				return 0
			}
			for _, f := range benchHeader() {
				req.Header.Set(f.Name, f.Value)
			}
			answer, err := client.Do(req)
			if err != nil {
				return 0
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			return answer.StatusCode
		})
	})
}

func BenchmarkPost(b *testing.B) {
	eachSink(b, func(b *testing.B, url string) {
		client := newClient(b, endpoint.Config{})
		run(b, func() int {
			return client.Post(b.Context(), endpoint.Request{URL: url, Header: benchHeader(), Body: benchBody}).Status
		})
	})
}

// run posts from as many goroutines as the default configuration has connections for.
func run(b *testing.B, post func() int) {
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if status := post(); status != http.StatusOK {
				b.Errorf("status %d", status)
			}
		}
	})
}

func benchHeader() endpoint.Header {
	return endpoint.Header{
		{"Content-Type", "application/json"},
		{"User-Agent", "ArsMedicaTech-Webhooks/1.0"},
		{"X-Event-Type", "appointment.created"},
		{"X-Delivery-Id", "6f1f2a53-8d0e-4c55-9c8f-6f8f2f1d1a11"},
		{"X-Delivery-Attempt", "1"},
		{"X-Signature", "sha256=0000000000000000000000000000000000000000000000000000000000000000"},
		{"Webhook-Id", "6f1f2a53-8d0e-4c55-9c8f-6f8f2f1d1a11"},
		{"Webhook-Timestamp", "1700000000"},
		{"Webhook-Signature", "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
	}
}

// eachSink runs a benchmark against a server that costs nearly nothing, so that the client's part shows, with and
// without a body in the answer.
func eachSink(b *testing.B, bench func(b *testing.B, url string)) {
	for name, answer := range map[string]string{
		"empty": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"body":  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"success\":true}",
	} {
		b.Run(name, func(b *testing.B) {
			bench(b, serve(b, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				for {
					if !readHead(in) {
						return
					}
					if _, err := in.Discard(len(benchBody)); err != nil {
						return
					}
					if _, err := io.WriteString(conn, answer); err != nil {
						return
					}
				}
			}))
		})
	}
}
