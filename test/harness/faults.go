package harness

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Of returns the processes of a service that run, in the order of their numbers:
// "appointments", "webhook-router" or "webhook-sender". In one process they are
// all the same.
func (d *Deployment) Of(service string) []*Process {
	if dev := d.Processes["dev"]; dev != nil {
		return []*Process{dev}
	}
	var found []*Process
	for i := 0; d.Processes[service+"-"+strconv.Itoa(i)] != nil; i++ {
		found = append(found, d.Processes[service+"-"+strconv.Itoa(i)])
	}
	return found
}

// Restart starts a process that was killed or stopped and returns when it is
// ready. In one process the brokers have another address afterwards.
func (d *Deployment) Restart(p *Process) {
	d.tb.Helper()
	p.Start()
	if p == d.Processes["dev"] {
		d.Brokers = p.Said("Kafka is at ")
	}
}

// Name is the process's name in the deployment.
func (p *Process) Name() string { return p.name }

// Suspend stops the process where it is, with everything it was at; Resume lets
// it go on as if no time had passed.
func (p *Process) Suspend() { p.Signal(syscall.SIGSTOP) }

// Resume lets a suspended process go on.
func (p *Process) Resume() { p.Signal(syscall.SIGCONT) }

// Control runs the program that commands servers which the tests may stop and
// start: KAFKA_CONTROL or REDIS_CONTROL, see test/real.
type Control struct{ program string }

// KafkaControl commands the brokers, RedisControl Redis. Both may be unable to.
func KafkaControl() Control { return Control{os.Getenv("KAFKA_CONTROL")} }

// RedisControl commands Redis.
func RedisControl() Control { return Control{os.Getenv("REDIS_CONTROL")} }

// Able says whether there is something to command.
func (c Control) Able() bool { return Real() && c.program != "" }

// Do has a server killed or started again: "kill" or "restart" and, for brokers,
// which.
func (c Control) Do(tb testing.TB, args ...string) {
	tb.Helper()
	// The server inherits what the program writes to, and outlives it: a pipe
	// would be waited for until the server ends.
	said, err := os.CreateTemp(tb.TempDir(), "control")
	if err != nil {
		tb.Fatal(err)
	}
	defer said.Close()
	cmd := exec.Command(c.program, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		tb.Fatalf("%s %s: %v\n%s", c.program, strings.Join(args, " "), err, text)
	}
}

// BrokerIDs are the numbers that the control knows the brokers by.
func BrokerIDs() []string {
	var ids []string
	for i := range slices.Collect(strings.SplitSeq(os.Getenv("KAFKA_BROKERS"), ",")) {
		ids = append(ids, strconv.Itoa(i+1))
	}
	return ids
}
