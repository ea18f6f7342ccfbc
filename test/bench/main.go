// Command bench measures. Each subcommand prints the command it was run as, the
// figures of every round, their medians, and beside them the floor: the same
// work by a bare loop in the same run.
//
// Without KAFKA_BROKERS and REDIS_URL it runs on the embedded broker and Redis,
// in its own process; with them on the real ones that they name.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

type cli struct {
	Sender    senderCmd    `cmd:"" help:"Deliveries per second from a full topic."`
	Router    routerCmd    `cmd:"" help:"Events and deliveries routed per second."`
	Replay    replayCmd    `cmd:"" help:"Events per second to a new subscription."`
	Commands  commandsCmd  `cmd:"" help:"Commands per second and their latency."`
	Restore   restoreCmd   `cmd:"" help:"Time and memory to fold a log of appointments."`
	Latency   latencyCmd   `cmd:"" help:"From a POST of an appointment to its webhook's arrival."`
	Fairness  fairnessCmd  `cmd:"" help:"What well endpoints notice of one that hangs, crawls, fails or has a backlog."`
	Recovery  recoveryCmd  `cmd:"" help:"How a backlog drains when its endpoint is well again."`
	RateLimit rateLimitCmd `cmd:"" help:"How well several senders keep a rate limit together."`
	Status    statusCmd    `cmd:"" help:"Deliveries and attempts projected per second, memory of Redis, and questions."`
	Sink      sinkCmd      `cmd:"" hidden:"" help:"The endpoint that requests are sent to; started by the others."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300) // as the services do
	}
	var c cli
	parsed := kong.Parse(&c, kong.Name("bench"), kong.Description("Measures, beside the floor."))
	parsed.BindTo(ctx, (*context.Context)(nil))
	if parsed.Command() != "sink" {
		fmt.Printf("$ bench %s\n%s, %d CPUs, %s, %s\n", strings.Join(os.Args[1:], " "), runtime.Version(), runtime.NumCPU(), cpuModel(), where())
	}
	parsed.FatalIfErrorf(parsed.Run())
}

func where() string {
	if onReal() {
		return "real Kafka and Redis"
	}
	return "embedded Kafka and Redis, in this process"
}

func onReal() bool { return os.Getenv("KAFKA_BROKERS") != "" && os.Getenv("REDIS_URL") != "" }

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// usage is what this process has used.
type usage struct {
	at  time.Time
	cpu time.Duration
}

func used() usage {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // fails only for a wrong argument
	return usage{time.Now(), time.Duration(r.Utime.Nano() + r.Stime.Nano())}
}

// rate says how fast n things were done since the usage was taken, and what
// processor time a thousand of them took, in seconds.
func (u usage) rate(n int) (perSecond, cpuPerThousand float64) {
	now := used()
	return float64(n) / now.at.Sub(u.at).Seconds(), (now.cpu - u.cpu).Seconds() / float64(n) * 1000
}

// peakRSS is the most memory that this process has had, in MiB, since reset.
func peakRSS() float64 { return memory("VmHWM") }

// watchMemory returns how much memory this process had after each of the times,
// in MiB, until the function is called that it returns.
func watchMemory(each time.Duration) (stop func() []float64) {
	var sizes []float64
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(each)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				sizes = append(sizes, memory("VmRSS"))
			case <-end:
				return
			}
		}
	}()
	return func() []float64 {
		close(end)
		<-ended
		return sizes
	}
}

// memory returns a figure of Linux about this process's memory, in MiB.
func memory(what string) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, what+": %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}

// resetPeak has peakRSS begin anew.
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) } // not everywhere

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// percentile returns the p-th percentile, 0 to 100.
func percentile(values []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*p/100), len(sorted)-1)]
}
