// Package harness runs a whole deployment as processes of its own, for the
// black-box tests and benchmarks: what they kill is a process, what they talk to
// is a socket.
//
// Without KAFKA_BROKERS and REDIS_URL it is `webhooks dev`, everything in one
// process on the embedded broker and Redis; with them it is the three services
// on the Kafka and the Redis that they name.
package harness

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/arsmedicatech/webhooks/internal/session"
)

// startLimit bounds every start; a deployment that takes longer is broken.
const startLimit = 60 * time.Second

var build struct {
	once sync.Once
	dir  string
	err  error
}

// Binary returns the path of a command, built from this tree at the first call;
// or that in the directory WEBHOOKS_BIN, to try commands that were built before.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	if dir := os.Getenv("WEBHOOKS_BIN"); dir != "" {
		return filepath.Join(dir, name)
	}
	build.once.Do(func() {
		if build.dir, build.err = os.MkdirTemp("", "webhooks-bin-"); build.err != nil {
			return
		}
		args := append([]string{"build"}, raceFlag...)
		cmd := exec.Command("go", append(args, "-o", build.dir+"/", "github.com/arsmedicatech/webhooks/cmd/...")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the commands: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		tb.Fatal(build.err)
	}
	return filepath.Join(build.dir, name)
}

// Main runs the tests of a package and removes what was built for them.
func Main(m *testing.M) {
	code := m.Run()
	if build.dir != "" {
		_ = os.RemoveAll(build.dir)
	}
	os.Exit(code)
}

// Options of a Deployment.
type Options struct {
	// RetrySchedule is as in RETRY_SCHEDULE; by default it is short, so that
	// ladders take no time.
	RetrySchedule string
	// Env holds further settings for every process, as NAME=VALUE.
	Env []string
	// Senders, Routers and Appointments are how many processes of each service
	// run on a real Kafka. Default 1 each; a negative number runs none.
	Senders, Routers, Appointments int
}

// Deployment is a running system.
type Deployment struct {
	// URL is where the API is: http://127.0.0.1:port.
	URL string
	// URLs are all instances of the API.
	URLs []string
	// Brokers is Kafka's address, Prefix what its topics' names begin with.
	Brokers string
	Prefix  string
	// Schedule is the RETRY_SCHEDULE in force.
	Schedule string
	// Processes by name: "dev", or "appointments-0", "webhook-router-0", …
	Processes map[string]*Process

	tb    testing.TB
	users string
}

// Real says whether the tests were given a real Kafka and Redis.
func Real() bool { return os.Getenv("KAFKA_BROKERS") != "" && os.Getenv("REDIS_URL") != "" }

// Start runs a deployment until the test ends.
func Start(tb testing.TB, o Options) *Deployment {
	tb.Helper()
	if o.RetrySchedule == "" {
		o.RetrySchedule = "50ms,100ms,200ms,400ms,800ms"
	}
	d := &Deployment{tb: tb, Schedule: o.RetrySchedule, Processes: map[string]*Process{}}
	// On an empty Redis the first sender waits for a lease, which is this and 5 s.
	const timeout = "REQUEST_TIMEOUT=3s"
	common := append([]string{"RETRY_SCHEDULE=" + o.RetrySchedule, "LOG_FORMAT=json", timeout}, o.Env...)
	if Real() {
		d.startServices(o, common)
	} else {
		d.startDev(common)
	}
	return d
}

func (d *Deployment) startDev(env []string) {
	d.tb.Helper()
	api := freeAddr(d.tb)
	d.URL, d.URLs = "http://"+api, []string{"http://" + api}
	p := newProcess(d.tb, "dev", Binary(d.tb, "webhooks"), []string{"dev"},
		append(env, "LISTEN="+api, "DATA_DIR="+d.tb.TempDir()))
	d.Processes["dev"] = p
	p.Start()
	d.Brokers = p.Said("Kafka is at ")
}

func (d *Deployment) startServices(o Options, env []string) {
	d.tb.Helper()
	d.Brokers, d.Prefix = os.Getenv("KAFKA_BROKERS"), "t"+uuid.NewString()[:8]+"."
	env = append(env, "TOPIC_PREFIX="+d.Prefix, "SEALING_KEYS="+sealingKey, "USERS_FILE="+d.usersFile(),
		"ALLOW_NETWORKS=127.0.0.0/8", "PARTITIONS=4")
	apply := exec.Command(Binary(d.tb, "webhooks"), "topics", "apply")
	apply.Env = append(os.Environ(), env...)
	if out, err := apply.CombinedOutput(); err != nil {
		d.tb.Fatalf("topics apply: %v\n%s", err, out)
	}
	for name, n := range map[string]int{
		"appointments": o.Appointments, "webhook-router": o.Routers, "webhook-sender": o.Senders,
	} {
		if n == 0 {
			n = 1
		}
		for i := range max(n, 0) {
			id := fmt.Sprintf("%s-%d", name, i)
			own := append(slices.Clip(env), "INSTANCE_ID="+id)
			if name == "appointments" {
				api := freeAddr(d.tb)
				d.URLs = append(d.URLs, "http://"+api)
				own = append(own, "LISTEN="+api, "ADVERTISE_URL=http://"+api)
			}
			d.Processes[id] = newProcess(d.tb, id, Binary(d.tb, name), nil, own)
		}
	}
	d.URL = d.URLs[0]
	for _, p := range d.Processes {
		p.start()
	}
	for _, p := range d.Processes {
		p.awaitReady()
	}
}

// sealingKey is for tests alone.
const sealingKey = "test:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// usersFile has the user that dev has too.
func (d *Deployment) usersFile() string {
	if d.users != "" {
		return d.users
	}
	hash, err := session.HashPassword("admin")
	if err != nil {
		d.tb.Fatal(err)
	}
	d.users = filepath.Join(d.tb.TempDir(), "users.json")
	file := fmt.Sprintf(`{"users": [{"id": "user:admin", "username": "admin", "role": "admin", "password_hash": %q}]}`, hash)
	if err := os.WriteFile(d.users, []byte(file), 0o600); err != nil {
		d.tb.Fatal(err)
	}
	return d.users
}

// Process is a command that can be killed and started again.
type Process struct {
	tb    testing.TB
	name  string
	path  string
	args  []string
	env   []string
	admin string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	lines  []string      // of standard output
	more   chan struct{} // closed and replaced with each line
	log    tail
}

func newProcess(tb testing.TB, name, path string, args, env []string) *Process {
	p := &Process{tb: tb, name: name, path: path, args: args, admin: freeAddr(tb), more: make(chan struct{})}
	p.env = append(append(os.Environ(), env...), "ADMIN_LISTEN="+p.admin)
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("last lines of %s:\n%s", name, p.log.String())
		}
	})
	return p
}

// Start starts the process and returns when it is ready.
func (p *Process) Start() {
	p.tb.Helper()
	p.start()
	p.awaitReady()
}

// StartOnly starts the process and does not wait for it.
func (p *Process) StartOnly() { p.tb.Helper(); p.start() }

func (p *Process) start() {
	p.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = p.env
	cmd.Stderr = &p.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.tb.Fatalf("start %s: %v", p.name, err)
	}
	p.cmd, p.exited, p.lines = cmd, make(chan struct{}), nil
	go func(exited chan struct{}) {
		p.read(out)
		_ = cmd.Wait() // the state says how it ended
		close(exited)
	}(p.exited)
}

func (p *Process) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, lines.Text())
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
}

// Said waits for a line of output that contains the text and returns what
// follows it.
func (p *Process) Said(text string) string {
	p.tb.Helper()
	limit := time.After(startLimit)
	for {
		p.mu.Lock()
		lines, more, exited := p.lines, p.more, p.exited
		p.mu.Unlock()
		for _, line := range lines {
			if _, rest, ok := strings.Cut(line, text); ok {
				return strings.TrimSpace(rest)
			}
		}
		select {
		case <-more:
		case <-exited:
			p.tb.Fatalf("%s ended without saying %q:\n%s", p.name, text, p.log.String())
		case <-limit:
			p.tb.Fatalf("%s does not say %q:\n%s", p.name, text, p.log.String())
		}
	}
}

func (p *Process) awaitReady() {
	p.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for {
		if p.ready(ctx) {
			return
		}
		p.mu.Lock()
		exited := p.exited
		p.mu.Unlock()
		select {
		case <-exited:
			p.tb.Fatalf("%s ended:\n%s", p.name, p.log.String())
		case <-ctx.Done():
			p.tb.Fatalf("%s is not ready after %s:\n%s", p.name, startLimit, p.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Process) ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+"/readyz", nil)
	if err != nil {
		p.tb.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// Metrics returns what the process tells Prometheus.
func (p *Process) Metrics() string {
	p.tb.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.tb.Fatal(err)
	}
	return string(body)
}

// Pid returns the process's id.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Kill ends the process as a power cut would, and returns when it is gone.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// Stop asks the process to end, returns when it has and what its exit code was.
func (p *Process) Stop() int {
	p.signal(syscall.SIGTERM)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal and returns at once.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Signal(s) // one that is gone needs none
}

func (p *Process) signal(s syscall.Signal) {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s) // one that is gone needs none
	<-exited
}

// Log returns the end of what the process wrote to standard error.
func (p *Process) Log() string { return p.log.String() }

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailSize = 64 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if extra := t.buf.Len() - tailSize; extra > 0 {
		t.buf.Next(extra)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
