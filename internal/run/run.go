// Package run is what every process begins and ends with: settings, signals,
// logs, health and metrics.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Exit codes.
const (
	exitFailed   = 1
	exitSettings = 2 // a setting is missing or wrong
)

// Settings are those that every process has.
type Settings struct {
	AdminListen string `name:"admin-listen" env:"ADMIN_LISTEN" default:":9090" help:"Address of /healthz, /readyz and /metrics."`
	LogLevel    string `name:"log-level" env:"LOG_LEVEL" enum:"debug,info,warn,error" default:"info" help:"Lowest level that is logged: debug, info, warn or error."`
	LogFormat   string `name:"log-format" env:"LOG_FORMAT" enum:"auto,text,json" default:"auto" help:"Form of the log: text, json, or auto for text on a terminal and JSON elsewhere."`
}

// Env is what a process is given to work with.
type Env struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Health  *Health
}

// UsageError says that settings are wrong, where only the program itself can
// tell. Its text is a line for each, which names it.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Program is a process: its settings, from flags and environment, and what it
// does with them.
type Program interface {
	// Common returns the settings that every process has.
	Common() *Settings
	// Run works until ctx ends, then drains and returns nil.
	Run(ctx context.Context, env *Env) error
}

// preparer is a program with settings that are better found wrong before any
// port is opened.
type preparer interface{ Prepare() error }

// Main runs a program and returns its exit code.
func Main(name, description string, p Program, args []string) int {
	parser, err := kong.New(p, Options(name, description)...)
	if err != nil {
		return fail(os.Stderr, name, err)
	}
	if _, err := parser.Parse(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s (--help explains the settings)\n", name, err)
		return exitSettings
	}
	return Serve(name, p)
}

// Options are how settings are read and explained.
func Options(name, description string) []kong.Option {
	return []kong.Option{
		kong.Name(name), kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	}
}

// Serve runs a program whose settings are set, until it ends or a signal asks
// it to, and returns its exit code.
func Serve(name string, p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once

	lazier()
	log := newLog(os.Stderr, p.Common())
	slog.SetDefault(log)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	env := &Env{Log: log, Metrics: registry, Health: &Health{}}

	// The admin server outlives the program's own end, for its last metrics.
	admin, cancel := context.WithCancel(context.Background())
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	if p, ok := p.(preparer); ok {
		if err := p.Prepare(); err != nil {
			return fail(os.Stderr, name, err)
		}
	}
	listener, err := net.Listen("tcp", p.Common().AdminListen)
	if err != nil {
		return fail(os.Stderr, name, &UsageError{PortError(err, p.Common().AdminListen, "--admin-listen")})
	}
	served := make(chan error, 1)
	go func() { served <- ListenAndServe(admin, listener, adminHandler(registry, env.Health), log) }()
	g.Go(func() error { return p.Run(gctx, env) })
	err = g.Wait()
	cancel()
	if serveErr := <-served; err == nil {
		err = serveErr
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fail(os.Stderr, name, err)
	}
	return 0
}

func fail(w io.Writer, name string, err error) int {
	fmt.Fprintf(w, "%s: %s\n", name, err)
	if _, ok := errors.AsType[*UsageError](err); ok {
		return exitSettings
	}
	return exitFailed
}

// PortError explains an address that can't be listened on.
func PortError(err error, addr, flag string) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another process: stop it, or choose another address with %s", addr, flag)
	}
	return fmt.Errorf("can't listen on %s, see %s: %w", addr, flag, err)
}

func newLog(w *os.File, s *Settings) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.LogLevel)) // one of an enum
	terminal := isatty.IsTerminal(w.Fd())
	if s.LogFormat == "text" || s.LogFormat == "auto" && terminal {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly + ".000", NoColor: !terminal}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

func adminHandler(metrics prometheus.Gatherer, health *Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.Handle("GET /readyz", health)
	return mux
}

// answerTimeout bounds a request from its head to the last byte of its answer,
// so that nobody holds a connection by reading slowly.
const answerTimeout = time.Minute

// ListenAndServe serves HTTP until ctx ends, and lets requests under way end. It
// cuts off those that take longer than a minute.
func ListenAndServe(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: answerTimeout, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		log.Warn("requests were cut off", "error", err)
		return server.Close()
	}
	return nil
}
