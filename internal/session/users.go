package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// Role says what a user may do.
type Role string

// The roles.
const (
	Admin      Role = "admin"      // everything
	Staff      Role = "staff"      // all appointments, no webhooks
	Provider   Role = "provider"   // the own calendar: appointments whose provider_id is the user's id
	Patient    Role = "patient"    // the own appointments: those whose patient_id is the user's id; not whether they took place
	Integrator Role = "integrator" // webhooks, no appointments
)

var roles = []Role{Admin, Staff, Provider, Patient, Integrator}

// User is who may sign in, or has.
type User struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Role     Role   `json:"role"`
}

// ErrWrongPassword is what Verify says of a wrong password as of an unknown user
// name.
var ErrWrongPassword = errors.New("wrong user name or password")

// Users are those of a file. They do not change.
type Users struct {
	byName  map[string]account
	byID    map[string]User
	checker *checker
}

type account struct {
	User
	hash []byte
}

// LoadUsers reads a file of users:
//
//	{"users": [{"id": "…", "username": "…", "role": "…", "password_hash": "…"}]}
//
// Errors are one sentence and contain no hashes.
func LoadUsers(path string) (*Users, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("users file: %w", err)
	}
	u, err := parseUsers(content)
	if err != nil {
		return nil, fmt.Errorf("users file %s: %w", path, err)
	}
	return u, nil
}

func parseUsers(content []byte) (*Users, error) {
	var file struct {
		Users []struct {
			User
			PasswordHash string `json:"password_hash"`
		} `json:"users"`
	}
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			name := wrong.Field[strings.LastIndexByte(wrong.Field, '.')+1:] // before it are names of Go's
			return nil, fmt.Errorf("%s must not be a %s", name, wrong.Value)
		}
		return nil, fmt.Errorf("it is not the JSON of users: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON of users")
	}
	if len(file.Users) == 0 {
		return nil, errors.New("it has no users")
	}
	u := &Users{byName: map[string]account{}, byID: map[string]User{}}
	cost := bcrypt.MinCost
	for i, entry := range file.Users {
		who := fmt.Sprintf("user %d (%q)", i+1, entry.Username)
		if err := u.check(entry.User, entry.PasswordHash); err != nil {
			return nil, fmt.Errorf("%s: %w", who, err)
		}
		u.byName[entry.Username] = account{entry.User, []byte(entry.PasswordHash)}
		u.byID[entry.ID] = entry.User
		c, _ := bcrypt.Cost([]byte(entry.PasswordHash)) // checked above
		cost = max(cost, c)
	}
	var err error
	u.checker, err = newChecker(cost)
	return u, err
}

// check says what is wrong with one more user.
func (u *Users) check(user User, hash string) error {
	_, sameName := u.byName[user.Username]
	_, sameID := u.byID[user.ID]
	switch {
	case user.ID == "":
		return errors.New("id is missing")
	case user.Username == "":
		return errors.New("username is missing")
	case sameName:
		return errors.New("another user has the same username")
	case sameID:
		return fmt.Errorf("another user has the same id %q", user.ID)
	case !slices.Contains(roles, user.Role):
		return fmt.Errorf("role is %q but must be one of %q", user.Role, roles)
	}
	return checkHash(hash)
}

// Verify returns the user with that name and password, or ErrWrongPassword. It
// takes as long for unknown names as for known ones, provided that the file's
// hashes have one cost. It waits while many others verify; other errors are
// those of ctx.
func (u *Users) Verify(ctx context.Context, username, password string) (User, error) {
	a := u.byName[username] // without a hash if unknown
	ok, err := u.checker.matches(ctx, a.hash, password)
	switch {
	case err != nil:
		return User{}, err
	case !ok:
		return User{}, ErrWrongPassword
	}
	return a.User, nil
}

// ByID returns the user with that id as the file has it.
func (u *Users) ByID(id string) (User, bool) {
	user, ok := u.byID[id]
	return user, ok
}
