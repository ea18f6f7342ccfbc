package appointment

import (
	"fmt"
	"strings"
)

// Kind says what sort of refusal it is.
type Kind int

// The kinds of refusals.
const (
	BadInput  Kind = iota // the command itself is wrong
	NotFound              // there is no such appointment
	Forbidden             // it is not for this user
	Conflict              // it can't be, as things are
	Stale                 // the version that it was meant for is gone
)

// Problem is what is wrong with one field.
type Problem struct {
	Field   string `json:"field"`
	Problem string `json:"problem"`
}

// Refusal is the answer to a command that is not carried out. Its texts are for
// the client.
type Refusal struct {
	Kind    Kind
	Code    string // stable, snake_case
	Message string
	Details []Problem
}

func (r *Refusal) Error() string { return r.Message }

// Invalid refuses a command for one field.
func Invalid(field, problem string) error { return InvalidFields([]Problem{{field, problem}}) }

// InvalidFields refuses a command for several.
func InvalidFields(problems []Problem) error {
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = fmt.Sprintf("%s %s", p.Field, p.Problem)
	}
	return &Refusal{Kind: BadInput, Code: "invalid_input", Message: strings.Join(texts, "; "), Details: problems}
}

// unknown refuses a command for an appointment that does not exist.
func unknown() error {
	return &Refusal{Kind: NotFound, Code: "appointment_not_found", Message: "Appointment not found"}
}
