package endpoint

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// Why a POST got no answer: stable words, for records and metrics.
const (
	ClassTimeout        = "timeout"         // no complete head in time
	ClassCancelled      = "cancelled"       // the caller's context ended
	ClassRefusedAddress = "refused_address" // the name leads to an address that is not allowed
	ClassDNS            = "dns"             // the name could not be resolved
	ClassDial           = "dial"            // no connection
	ClassTLS            = "tls"             // no handshake, or a certificate that proves nothing
	ClassReset          = "reset"           // the connection ended before the head did
	ClassTooLarge       = "too_large"       // a head beyond HeaderLimit
	ClassProtocol       = "protocol"        // an answer that is not HTTP
	ClassInvalid        = "invalid_request" // the URL or a header cannot be sent
)

// Classes returns every class, for metrics that want to know them beforehand.
func Classes() []string {
	return []string{
		ClassTimeout, ClassCancelled, ClassRefusedAddress, ClassDNS, ClassDial,
		ClassTLS, ClassReset, ClassTooLarge, ClassProtocol, ClassInvalid,
	}
}

// maxErrorText bounds the text of an Error: net/http quotes what it could not read, and the endpoint chose that.
const maxErrorText = 256

// Error is why a POST got no answer. Its text holds neither the URL's path nor its query.
type Error struct {
	Class string
	Err   error
}

func (e *Error) Error() string {
	text := e.Err.Error()
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return e.Class + ": " + text
}

func (e *Error) Unwrap() error { return e.Err }

var (
	// errTimeout is the cause with which contexts of ours end.
	errTimeout   = errors.New("no complete answer in time")
	errLargeHead = errors.New("the answer's head is larger than allowed")
	errHeader    = errors.New("a header cannot be sent")
	// errHTTP2 says that a connection was made that speaks HTTP/2.
	errHTTP2 = errors.New("the endpoint speaks HTTP/2")
)

// handshakeError marks the errors of a TLS handshake.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// invalidError marks what is wrong with the request itself.
type invalidError struct{ error }

func (e *invalidError) Unwrap() error { return e.error }

// texts are how errors of net/http begin and end that have no type. The tests provoke those of HTTP/2, so that a
// release of Go which words one differently is noticed; the others come from an endpoint that has lost HTTP/2.
var texts = []struct{ prefix, suffix, class string }{
	{"net/http: server response headers exceeded", "", ClassTooLarge},
	{"http2: response header list larger", "", ClassTooLarge},
	{"stream error:", "header list too large", ClassTooLarge}, // many interim answers
	{"stream error:", "header list larger than advertised limit", ClassTooLarge},
	{"stream error:", "", ClassReset},
	{"http: server closed idle connection", "", ClassReset},
}

// classify says why send returned err, or why it did: cause is what ended its context, if anything did.
func classify(cause, err error) string {
	var (
		dns       *net.DNSError
		handshake *handshakeError
		invalid   *invalidError
		timeout   interface{ Timeout() bool }
		op        *net.OpError
	)
	switch {
	case errors.Is(cause, errTimeout), errors.Is(err, errTimeout):
		return ClassTimeout
	case cause != nil:
		return ClassCancelled
	case errors.As(err, &invalid):
		return ClassInvalid
	case errors.Is(err, errLargeHead):
		return ClassTooLarge
	case errors.Is(err, ErrRefused):
		return ClassRefusedAddress
	case errors.As(err, &dns):
		return ClassDNS
	case errors.As(err, &timeout) && timeout.Timeout():
		return ClassTimeout // of a dial or a handshake that another request began
	case errors.As(err, &handshake):
		return ClassTLS
	case errors.As(err, &op) && op.Op == "dial":
		return ClassDial
	}
	for _, gone := range []error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
	} {
		if errors.Is(err, gone) {
			return ClassReset
		}
	}
	for ; err != nil; err = errors.Unwrap(err) {
		for _, t := range texts {
			if text := err.Error(); strings.HasPrefix(text, t.prefix) && strings.HasSuffix(text, t.suffix) {
				return t.class
			}
		}
	}
	return ClassProtocol
}
