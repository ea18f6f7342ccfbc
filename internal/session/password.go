// Package session knows who may sign in and who is signed in: users and their
// passwords from a file, sessions and failed sign-ins in Redis.
package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/crypto/bcrypt"
)

const (
	// maxPassword is what bcrypt takes; it would pass over the bytes behind it.
	maxPassword = 72
	// maxCost keeps a sign-in below a few seconds.
	maxCost = 16
)

// HashPassword returns the bcrypt hash of a password, as a users file has it.
func HashPassword(password string) (string, error) {
	switch {
	case password == "":
		return "", errors.New("the password is empty")
	case len(password) > maxPassword:
		return "", fmt.Errorf("the password has %d bytes; at most %d are possible", len(password), maxPassword)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return string(hash), nil
}

// checkHash says what is wrong with a hash, without repeating it.
func checkHash(hash string) error {
	const length = 60
	cost, err := bcrypt.Cost([]byte(hash))
	switch {
	case err != nil || len(hash) != length:
		return errors.New("password_hash is not a bcrypt hash; make one with: webhooks users hash")
	case cost > maxCost:
		return fmt.Errorf("password_hash has the cost %d; at most %d is possible", cost, maxCost)
	}
	return nil
}

// checker compares passwords with hashes, a few at a time: each comparison
// takes a processor for a good while, and anyone can ask for them.
type checker struct {
	slots chan struct{}
	// dummy is compared with where there is no user, so that names of users
	// can't be told by the time that the answer takes.
	dummy []byte
}

func newChecker(cost int) (*checker, error) {
	dummy, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), cost)
	if err != nil {
		return nil, fmt.Errorf("hash a password: %w", err)
	}
	return &checker{slots: make(chan struct{}, runtime.GOMAXPROCS(0)), dummy: dummy}, nil
}

// matches compares; a nil hash never matches but takes as long. It returns an
// error only if ctx ends while it waits for its turn.
func (c *checker) matches(ctx context.Context, hash []byte, password string) (bool, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return false, fmt.Errorf("wait to compare a password: %w", context.Cause(ctx))
	}
	defer func() { <-c.slots }()
	possible := hash != nil && len(password) <= maxPassword
	if !possible {
		hash, password = c.dummy, "x"
	}
	return bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil && possible, nil
}
