package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/arsmedicatech/webhooks/internal/appointment"
)

// maxBody bounds request bodies, in bytes.
const maxBody = 1 << 20

// readBody returns the request's body, which is empty or JSON.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &problem{
			status: http.StatusRequestEntityTooLarge, code: "body_too_large",
			message: fmt.Sprintf("The body has more than %d bytes", maxBody),
		}
	case err != nil:
		return nil, badRequest("unreadable_body", "The body could not be read to its end")
	case len(body) == 0:
		return nil, nil
	}
	return body, checkType(r.Header)
}

func checkType(h http.Header) error {
	unsupported := func(message string) error {
		return &problem{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", message: message}
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := params["charset"]
	switch {
	case err != nil || kind != "application/json":
		return unsupported("The body must be sent as Content-Type: application/json")
	case charset != "" && !strings.EqualFold(charset, "utf-8"):
		return unsupported("The body must be encoded in UTF-8")
	case h.Get("Content-Encoding") != "" && !strings.EqualFold(h.Get("Content-Encoding"), "identity"):
		return unsupported("The body must not be compressed")
	}
	return nil
}

func badRequest(code, message string) error {
	return &problem{status: http.StatusBadRequest, code: code, message: message}
}

// field is one that a body may have. set puts its value where it goes, which
// stays as it is while the field is absent.
type field struct {
	name string
	set  func(json.RawMessage) error
	text **string // of a text, where it goes: required looks at it
}

// text, flag and number are fields whose pointers stay nil while the field is
// absent or null.
func text(name string, to **string) field {
	return field{name: name, set: pointer(to, "must be a string"), text: to}
}
func flag(name string, to **bool) field {
	return field{name: name, set: pointer(to, "must be true or false")}
}
func number(name string, to **int) field {
	return field{name: name, set: pointer(to, "must be a whole number")}
}

// list is a field that stays empty while it is absent or null.
func list(name string, to *[]string) field {
	return field{name: name, set: func(value json.RawMessage) error {
		if err := json.Unmarshal(value, to); err != nil {
			return errors.New("must be a list of strings")
		}
		return nil
	}}
}

func pointer[T any](to **T, otherwise string) func(json.RawMessage) error {
	return func(value json.RawMessage) error {
		if err := json.Unmarshal(value, to); err != nil {
			return errors.New(otherwise)
		}
		return nil
	}
}

const (
	// maxProblems and maxEcho bound what is said of a wrong body.
	maxProblems = 20
	maxEcho     = 60
)

// decode reads a body that is one flat JSON object, strictly: unlike
// encoding/json it takes each field once, under exactly its name, and nothing
// else. An empty body counts as an empty object. Errors never repeat values.
func decode(body []byte, fields ...field) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if !utf8.Valid(body) {
		return badRequest("invalid_json", "The body is not valid UTF-8")
	}
	// Also finds what follows the object.
	if !json.Valid(body) {
		return badRequest("invalid_json", "The body is not valid JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return badRequest("invalid_json", "The body must be a JSON object")
	}
	var problems []appointment.Problem
	seen := map[string]bool{}
	for dec.More() && len(problems) < maxProblems {
		name, value, err := member(dec)
		if err != nil {
			return badRequest("invalid_json", "The body is not valid JSON")
		}
		if err := assign(fields, name, value, seen[name]); err != nil {
			problems = append(problems, within(name, err)...)
		}
		seen[name] = true
	}
	if len(problems) > 0 {
		return appointment.InvalidFields(problems)
	}
	return nil
}

// member reads the next name and value of an object.
func member(dec *json.Decoder) (string, json.RawMessage, error) {
	token, err := dec.Token()
	if err != nil {
		return "", nil, err
	}
	name, _ := token.(string) // nothing else can be a name
	var value json.RawMessage
	err = dec.Decode(&value)
	return name, value, err
}

func assign(fields []field, name string, value json.RawMessage, again bool) error {
	for _, f := range fields {
		if f.name != name {
			continue
		}
		if again {
			return errors.New("is there twice")
		}
		return f.set(value)
	}
	return errors.New("is not a known field")
}

// within says what is wrong with a field, or with the fields of an object.
func within(name string, err error) []appointment.Problem {
	refused, ok := errors.AsType[*appointment.Refusal](err)
	if !ok {
		return []appointment.Problem{{Field: shorten(name), Problem: err.Error()}}
	}
	problems := slices.Clone(refused.Details)
	for i := range problems {
		problems[i].Field = name + "." + problems[i].Field
	}
	return problems
}

func shorten(name string) string {
	if r := []rune(name); len(r) > maxEcho {
		return string(r[:maxEcho]) + "…"
	}
	return name
}

// required refuses a body without some of the fields, or with empty ones.
func required(fields ...field) error {
	var problems []appointment.Problem
	for _, f := range fields {
		if *f.text == nil || **f.text == "" {
			problems = append(problems, appointment.Problem{Field: f.name, Problem: "is required"})
		}
	}
	if len(problems) > 0 {
		return appointment.InvalidFields(problems)
	}
	return nil
}

// value returns what p points to, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
