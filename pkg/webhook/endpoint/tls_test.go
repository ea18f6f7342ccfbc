package endpoint_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	tests := []struct {
		name  string
		cert  tls.Certificate
		setup func(*httptest.Server)
		class string
	}{
		{name: "good", cert: ca.issue(t, "127.0.0.1", time.Hour)},
		{name: "wrong host", cert: ca.issue(t, "127.0.0.2", time.Hour), class: endpoint.ClassTLS},
		{name: "expired", cert: ca.issue(t, "127.0.0.1", -time.Minute), class: endpoint.ClassTLS},
		{name: "unknown authority", cert: newAuthority(t).issue(t, "127.0.0.1", time.Hour), class: endpoint.ClassTLS},
		{name: "self-signed", cert: newAuthority(t).self, class: endpoint.ClassTLS},
		{
			name: "TLS 1.1", cert: ca.issue(t, "127.0.0.1", time.Hour), class: endpoint.ClassTLS,
			setup: func(s *httptest.Server) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		},
		{
			name: "wants a certificate of ours", cert: ca.issue(t, "127.0.0.1", time.Hour), class: endpoint.ClassTLS,
			setup: func(s *httptest.Server) {
				s.TLS.ClientAuth, s.TLS.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := ca.serve(t, test.cert, test.setup, func(_ http.ResponseWriter, r *http.Request) {
				if test.class != "" {
					t.Error("a request arrived")
				}
			})
			client := newClient(t, endpoint.Config{RootCAs: ca.pool})
			got := client.Post(t.Context(), endpoint.Request{URL: url + "?hidden", Body: []byte("{}")})
			status := 200
			if test.class != "" {
				status = 0
			}
			expect(t, got, status, test.class)
		})
	}
}

func TestTLSWithSomethingElse(t *testing.T) {
	for name, handle := range map[string]func(net.Conn){
		"speaks HTTP":            then(say("HTTP/1.1 400 Bad Request\r\n\r\n"), block),
		"closes":                 func(net.Conn) {},
		"resets":                 resetAfterHello,
		"sends noise":            repeat("\x16\x03\x03\xff\xff"),
		"says it has no such":    then(say("\x15\x03\x03\x00\x02\x02\x28"), block),
		"sends many empty parts": repeat("\x16\x03\x03\x00\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := strings.Replace(serve(t, handle), "http:", "https:", 1)
			got := newClient(t, endpoint.Config{}).Post(t.Context(), endpoint.Request{URL: url})
			expect(t, got, 0, endpoint.ClassTLS)
		})
	}
}

// resetAfterHello resets once the handshake has begun: before, dialling itself
// may notice.
func resetAfterHello(c net.Conn) {
	_, _ = io.ReadFull(c, make([]byte, 1))
	reset(c)
}

func TestHTTP2(t *testing.T) {
	ca := newAuthority(t)
	big := strings.Repeat("b", 1<<20)
	tests := []struct {
		name   string
		limit  int64 // of the head's bytes, if not the default
		handle http.HandlerFunc
		status int
		class  string
		answer string
	}{
		{
			name:   "answers",
			handle: func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) },
			status: 200, answer: "{}",
		},
		{
			name:   "sends a huge body",
			handle: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) },
			status: 200, answer: big[:1024],
		},
		{
			name: "sends too many headers", limit: 8 << 10,
			handle: func(w http.ResponseWriter, _ *http.Request) {
				for i := range 12 {
					w.Header().Set("A"+strconv.Itoa(i), big[:1024])
				}
			},
			class: endpoint.ClassTooLarge,
		},
		{
			name:   "sends a huge header",
			handle: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("A", big) },
			class:  endpoint.ClassProtocol, // the connection is given up before it is known how huge
		},
		{
			name: "sends interim answers without end",
			handle: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", big[:1024]) // once: the server may still be writing the last one
				for r.Context().Err() == nil {
					w.WriteHeader(http.StatusEarlyHints)
				}
			},
			class: endpoint.ClassTooLarge,
		},
		{
			name:   "resets the stream",
			handle: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			class:  endpoint.ClassReset,
		},
		{
			name:   "answers never",
			handle: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			class:  endpoint.ClassTimeout,
		},
		{
			name: "stops within the body",
			handle: func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusAccepted)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			},
			status: 202,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := ca.serve(t, ca.issue(t, "127.0.0.1", time.Hour), nil, func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					t.Errorf("came with %s", r.Proto)
				}
				test.handle(w, r)
			})
			cfg := endpoint.Config{
				RootCAs: ca.pool, HeaderLimit: test.limit, Timeout: time.Minute, BodyTimeout: 100 * time.Millisecond,
			}
			if test.class == endpoint.ClassTimeout {
				cfg.Timeout = 100 * time.Millisecond
			}
			got := newClient(t, cfg).Post(t.Context(), endpoint.Request{URL: url, Body: []byte("{}")})
			expect(t, got, test.status, test.class)
			if string(got.Answer) != test.answer {
				t.Errorf("got the answer %.100q, want %.100q", got.Answer, test.answer)
			}
		})
	}
}

func TestHTTP2SharesAConnection(t *testing.T) {
	ca := newAuthority(t)
	var opened atomic.Int32
	url := ca.serve(t, ca.issue(t, "127.0.0.1", time.Hour), func(s *httptest.Server) {
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				opened.Add(1)
			}
		}
	}, func(http.ResponseWriter, *http.Request) {})
	client := newClient(t, endpoint.Config{RootCAs: ca.pool})
	for range 10 {
		expect(t, client.Post(t.Context(), endpoint.Request{URL: url}), 200, "")
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("10 posts opened %d connections", n)
	}
}

// authority issues certificates.
type authority struct {
	pool *x509.CertPool
	self tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	ca := &authority{pool: x509.NewCertPool()}
	ca.self = newCertificate(t, nil, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1")},
	})
	ca.pool.AddCert(ca.self.Leaf)
	return ca
}

func (ca *authority) issue(t *testing.T, address string, validFor time.Duration) tls.Certificate {
	return newCertificate(t, &ca.self, &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validFor),
		IPAddresses: []net.IP{net.ParseIP(address)},
	})
}

// serve starts an HTTPS server that offers HTTP/2.
func (ca *authority) serve(t *testing.T, cert tls.Certificate, setup func(*httptest.Server), handle http.HandlerFunc) string {
	server := httptest.NewUnstartedServer(handle)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if setup != nil {
		setup(server)
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// newCertificate signs a certificate, by itself if there is no issuer.
func newCertificate(t *testing.T, issuer *tls.Certificate, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.Subject = pkix.Name{CommonName: rand.Text()}
	parent, signer := template, any(key)
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
