package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/appointment"
)

type commandsCmd struct {
	Light      int           `default:"500" help:"Commands one after the other, for the latency."`
	Concurrent int           `default:"256" help:"Clients at once, for the rate."`
	For        time.Duration `default:"5s" help:"How long the rate is measured."`
	Rounds     int           `default:"5" help:"Rounds."`
}

// Run measures commands against the service itself, without HTTP, beside
// ProduceSync of records of the same size.
func (c *commandsCmd) Run(ctx context.Context) error {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	s, stop, err := startAppointments(ctx, w)
	if err != nil {
		return err
	}
	opts, err := w.conf.Options(w.env().Log)
	if err != nil {
		return err
	}
	producer, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0))...)
	if err != nil {
		return err
	}
	defer producer.Close()
	if _, err := w.adm.CreateTopic(ctx, partitions, -1, nil, w.conf.TopicPrefix+"floor"); err != nil {
		return err
	}
	produce := func(ctx context.Context, i int) error {
		r, err := event(i).Encode(w.conf.TopicPrefix + "floor")
		if err != nil {
			return err
		}
		return producer.ProduceSync(ctx, r).FirstErr()
	}
	command := func(ctx context.Context, i int) error { return book(ctx, s, i) }
	var p50s, rates, floorRates []float64
	var next atomic.Int64
	for round := range c.Rounds {
		floorTimes, err := oneByOne(ctx, c.Light, &next, produce)
		if err != nil {
			return err
		}
		times, err := oneByOne(ctx, c.Light, &next, command)
		if err != nil {
			return err
		}
		floorRate, _, err := c.saturate(ctx, &next, produce)
		if err != nil {
			return err
		}
		rate, cpu, err := c.saturate(ctx, &next, command)
		if err != nil {
			return err
		}
		fmt.Printf("round %d: one by one p50 %s p99 %s (ProduceSync p50 %s p99 %s); %d at once %.0f/s, %.3f CPU-s/1000 (ProduceSync %.0f/s)\n", round+1,
			percentile(times, 50), percentile(times, 99), percentile(floorTimes, 50), percentile(floorTimes, 99), c.Concurrent, rate, cpu, floorRate)
		p50s, rates, floorRates = append(p50s, float64(percentile(times, 50))), append(rates, rate), append(floorRates, floorRate)
	}
	fmt.Printf("median of %d: one by one p50 %s; %.0f commands/s (ProduceSync %.0f/s)\n",
		c.Rounds, time.Duration(median(p50s)), median(rates), median(floorRates))
	return stop()
}

// startAppointments runs the service until stop is called.
func startAppointments(ctx context.Context, w *world) (*appointment.Service, func() error, error) {
	env := w.env()
	opts, err := w.conf.Options(env.Log)
	if err != nil {
		return nil, nil, err
	}
	s, err := appointment.New(appointment.Config{
		Kafka: opts, Topic: w.topics.Events(), Group: w.conf.TopicPrefix + "appointments",
		TransactionalID: w.conf.TopicPrefix + "appointments", Advertise: "http://bench", Log: env.Log,
	}, partitions)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := func() error { cancel(); return <-done }
	// Until every partition has its writer.
	for i := range 10 * partitions {
		err := await(ctx, 20*time.Millisecond, func() (bool, error) {
			err := book(ctx, s, 1_000_000_000+i)
			if errors.Is(err, appointment.ErrUnavailable) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	return s, stop, nil
}

// book makes the i-th appointment; no two of them overlap.
func book(ctx context.Context, s *appointment.Service, i int) error {
	const providers = 997
	slot := i / providers
	start := slot % 47 * 30 // half hours of a day
	day := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, slot/47%100_000)
	_, err := s.Create(ctx, appointment.Meta{
		Actor: "user:bench", Command: "bench", Allowed: func(*appointment.Appointment) bool { return true },
	}, appointment.Create{
		PatientID: fmt.Sprintf("patient:%d", i), ProviderID: fmt.Sprintf("provider:%d", i%providers),
		Date: day.Format(time.DateOnly), Start: clock(start), End: clock(start + 30),
	})
	return err
}

func clock(minutes int) string { return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60) }

func oneByOne(ctx context.Context, n int, next *atomic.Int64, do func(context.Context, int) error) ([]time.Duration, error) {
	times := make([]time.Duration, n)
	for i := range times {
		began := time.Now()
		if err := do(ctx, int(next.Add(1))); err != nil {
			return nil, err
		}
		times[i] = time.Since(began)
	}
	return times, nil
}

func (c *commandsCmd) saturate(ctx context.Context, next *atomic.Int64, do func(context.Context, int) error) (rate, cpu float64, err error) {
	began := used()
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range c.Concurrent {
		g.Go(func() error {
			for time.Since(began.at) < c.For {
				if err := do(ctx, int(next.Add(1))); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	rate, cpu = began.rate(int(done.Load()))
	return rate, cpu, nil
}

type restoreCmd struct {
	Events int `default:"1000000" help:"Events on the log."`
	Rounds int `default:"3" help:"Rounds."`
}

// Run fills a log and folds it, again and again.
func (c *restoreCmd) Run(ctx context.Context) error {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	const chunk = 100_000
	for from := 0; from < c.Events; from += chunk {
		records := make([]*kgo.Record, min(chunk, c.Events-from))
		for i := range records {
			if records[i], err = event(from + i).Encode(w.topics.Events()); err != nil {
				return err
			}
		}
		if err := w.produce(ctx, records); err != nil {
			return err
		}
	}
	var times []float64
	for round := range c.Rounds {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		env := w.env()
		opts, err := w.conf.Options(env.Log)
		if err != nil {
			return err
		}
		s, err := appointment.New(appointment.Config{
			Kafka: opts, Topic: w.topics.Events(), Group: w.conf.TopicPrefix + "appointments",
			TransactionalID: w.conf.TopicPrefix + "appointments", Advertise: "http://bench", Log: env.Log,
		}, partitions)
		if err != nil {
			return err
		}
		serving, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- s.Run(serving) }()
		select {
		case <-s.Restored():
		case err := <-done:
			cancel()
			return errors.Join(err, errStopped)
		}
		took := time.Since(began)
		runtime.GC()
		runtime.ReadMemStats(&after)
		cancel()
		if err := <-done; err != nil {
			return err
		}
		heap := float64(after.HeapAlloc) - float64(before.HeapAlloc)
		fmt.Printf("round %d: %d events folded in %s, %.0f events/s, %.0f bytes of heap per event\n",
			round+1, c.Events, took.Round(time.Millisecond), float64(c.Events)/took.Seconds(), heap/float64(c.Events))
		times = append(times, took.Seconds())
		runtime.KeepAlive(s)
	}
	fmt.Printf("median of %d: %.2f s\n", c.Rounds, median(times))
	return nil
}
