package run_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arsmedicatech/webhooks/internal/run"
)

// asProgram, when set, makes this binary a program of the package.
const asProgram = "RUN_TEST_PROGRAM"

// program is the smallest one: it says that it runs, and what it was told.
type program struct {
	run.Settings
	Word string `name:"word" env:"RUN_TEST_WORD" required:"" help:"What to say."`
	Fail string `name:"fail" enum:",usage,other" default:"" help:"How to end."`
}

func (p *program) Common() *run.Settings { return &p.Settings }

func (p *program) Run(ctx context.Context, env *run.Env) error {
	switch p.Fail {
	case "usage":
		return &run.UsageError{Err: errors.New("--word is wrong")}
	case "other":
		return errors.New("broken")
	}
	env.Health.Add("part", func() error { return nil })
	fmt.Println("running " + p.Word)
	<-ctx.Done()
	fmt.Println("drained")
	return nil
}

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run.Main("program", "A program.", &program{}, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	return cmd
}

// freePort returns an address that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Whatever is wrong is one sentence that names the setting, and an exit code.
func TestExitCodes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	admin := "--admin-listen=127.0.0.1:0"
	for name, c := range map[string]struct {
		env  []string
		args []string
		code int
		want string
	}{
		"missing":      {nil, []string{admin}, 2, "--word"},
		"unknown flag": {nil, []string{"--no-such"}, 2, "--no-such"},
		"wrong flag":   {nil, []string{admin, "--word=x", "--log-level=loud"}, 2, "--log-level"},
		"wrong env":    {[]string{"LOG_FORMAT=xml"}, []string{admin, "--word=x"}, 2, "--log-format"},
		"port taken":   {nil, []string{"--word=x", "--admin-listen=" + taken.Addr().String()}, 2, "--admin-listen"},
		"no address":   {nil, []string{"--word=x", "--admin-listen=nonsense"}, 2, "--admin-listen"},
		"usage":        {nil, []string{admin, "--word=x", "--fail=usage"}, 2, "program: --word is wrong"},
		"other":        {nil, []string{admin, "--word=x", "--fail=other"}, 1, "program: broken"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, c.env, c.args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code {
				t.Errorf("got %v, want exit code %d", err, c.code)
			}
			if text := stderr.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, c.want) {
				t.Errorf("not one sentence with %q: %s", c.want, text)
			}
		})
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestServesUntilASignalAndDrains(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		addr := freePort(t)
		cmd := command(t, []string{"RUN_TEST_WORD=env", "ADMIN_LISTEN=" + addr})
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(stdout)
		if line, err := lines.ReadString('\n'); line != "running env\n" {
			t.Fatalf("it says %q, %v", line, err)
		}
		if code, body := get(t, "http://"+addr+"/healthz"); code != 200 || body != "ok\n" {
			t.Errorf("/healthz: %d %q", code, body)
		}
		if code, body := get(t, "http://"+addr+"/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
		if code, body := get(t, "http://"+addr+"/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
			t.Errorf("/metrics: %d", code)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(lines); string(rest) != "drained\n" {
			t.Errorf("after %s it says %q, %v", signal, rest, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %s: %v", signal, err)
		}
	}
}

func TestHelpNamesEverySetting(t *testing.T) {
	out, err := command(t, nil, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--admin-listen", "$ADMIN_LISTEN", ":9090", "--log-level", "$LOG_LEVEL", "--word", "$RUN_TEST_WORD"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("--help does not name %s:\n%s", want, out)
		}
	}
}

func TestHealth(t *testing.T) {
	var h run.Health
	ask := func() (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if code, body := ask(); code != 503 || body != "start: still starting\n" {
		t.Errorf("without checks: %d %q", code, body)
	}
	ready := make(chan struct{})
	h.Add("table", run.Closed(ready, "reading"))
	h.Add("kafka", func() error { return errors.New("away") })
	if code, body := ask(); code != 503 || body != "kafka: away\ntable: reading\n" {
		t.Errorf("with problems: %d %q", code, body)
	}
	close(ready)
	h.Add("kafka", func() error { return nil })
	if code, body := ask(); code != 200 || body != "ready\n" {
		t.Errorf("ready: %d %q", code, body)
	}
}

// pipes is a listener whose connections are pipes, so that time is virtual.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	p.close = sync.OnceFunc(func() { close(p.done) })
	return p
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error { p.close(); return nil }

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Who reads an answer too slowly is cut off.
func TestSlowReadersAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, written := newPipes(), make(chan error, 1)
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, err := w.Write(make([]byte, 1<<20))
			written <- err
		})
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- run.ListenAndServe(ctx, l, h, slog.New(slog.DiscardHandler)) }()
		reader, server := net.Pipe()
		l.conns <- server
		if _, err := io.WriteString(reader, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-written:
			if err == nil {
				t.Error("the answer was written although nobody has read it")
			}
		case <-time.After(time.Hour):
			t.Error("an hour later the connection is still held")
		}
		_ = reader.Close()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
