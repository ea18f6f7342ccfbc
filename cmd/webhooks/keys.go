package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
	"github.com/arsmedicatech/webhooks/internal/seal"
	"github.com/arsmedicatech/webhooks/internal/session"
)

type keysCmd struct {
	New keysNewCmd `cmd:"" help:"Print a new key for SEALING_KEYS."`
}

type keysNewCmd struct {
	Name string `arg:"" optional:"" help:"The key's name, shown in sealed secrets. Default: today's date."`
}

// Run prints a key.
func (c *keysNewCmd) Run() error {
	if c.Name == "" {
		c.Name = "k" + time.Now().UTC().Format("20060102")
	}
	key := seal.NewKey(c.Name)
	if _, err := seal.Parse(key); err != nil {
		return &run.UsageError{Err: fmt.Errorf("the name %q can't be used: it must not contain '.', ':' or ','", c.Name)}
	}
	fmt.Println(key)
	return nil
}

type usersCmd struct {
	Hash usersHashCmd `cmd:"" help:"Read a password from standard input and print its hash for USERS_FILE."`
}

type usersHashCmd struct{}

// Run prints a hash.
func (c *usersHashCmd) Run() error {
	fmt.Fprintln(os.Stderr, "type the password, then Enter:")
	password, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the password: %w", err)
	}
	hash, err := session.HashPassword(strings.TrimRight(password, "\r\n"))
	if err != nil {
		return err
	}
	fmt.Println(hash)
	return nil
}
