package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

type latencyCmd struct {
	Rate   float64       `default:"50" help:"Per second."`
	For    time.Duration `default:"30s" help:"How long."`
	URL    string        `help:"API of a running deployment; without it only the way from webhooks.deliveries is measured."`
	Token  string        `help:"Bearer token for the API."`
	Rounds int           `default:"1" help:"Rounds."`
}

// Run measures until the sink has what was sent.
func (c *latencyCmd) Run(ctx context.Context) error {
	sink, stopSink, err := startSink(ctx)
	if err != nil {
		return err
	}
	defer stopSink()
	for range c.Rounds {
		var sent map[string]time.Time
		if c.URL != "" {
			sent, err = c.fromAPI(ctx, sink)
		} else {
			sent, err = c.fromTopic(ctx, sink)
		}
		if err != nil {
			return err
		}
		times, err := collect(ctx, sink, sent)
		if err != nil {
			return err
		}
		fmt.Printf("%d at %.0f/s to arrival: p50 %s, p99 %s, max %s\n", len(times), c.Rate, percentile(times, 50), percentile(times, 99), percentile(times, 100))
	}
	return nil
}

// pace calls do at the rate, each time in a goroutine of its own.
func (c *latencyCmd) pace(ctx context.Context, do func(i int) error) error {
	tick := time.NewTicker(time.Duration(float64(time.Second) / c.Rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for i := range int(c.For.Seconds() * c.Rate) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wg.Go(func() {
			if err := do(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			}
		})
	}
	wg.Wait()
	return failed
}

func (c *latencyCmd) fromAPI(ctx context.Context, sink string) (map[string]time.Time, error) {
	if _, err := c.call(ctx, "/api/webhooks", map[string]any{"event_name": "appointment.created", "target_url": sink + "/timed", "secret": secret}); err != nil {
		return nil, err
	}
	sent := map[string]time.Time{}
	var mu sync.Mutex
	run := time.Now().UnixNano()
	err := c.pace(ctx, func(i int) error {
		began := time.Now()
		answer, err := c.call(ctx, "/api/appointments", map[string]any{
			"patient_id": "patient:1", "provider_id": fmt.Sprintf("provider:%d-%d", run, i),
			"appointment_date": "2031-05-06", "start_time": "10:00", "end_time": "10:30",
		})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		sent[answer.Appointment.ID] = began
		return nil
	})
	return sent, err
}

type answer struct {
	Appointment struct {
		ID string `json:"id"`
	} `json:"appointment"`
}

func (c *latencyCmd) call(ctx context.Context, path string, body any) (*answer, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("POST %s: status %d: %.200s", path, resp.StatusCode, page)
	}
	var a answer
	return &a, json.Unmarshal(page, &a)
}

func (c *latencyCmd) fromTopic(ctx context.Context, sink string) (map[string]time.Time, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	subs, err := w.subscribe(ctx, 10, "appointment.*", sink+"/timed")
	if err != nil {
		return nil, err
	}
	s, err := senderService(w)
	if err != nil {
		return nil, err
	}
	env := w.env()
	stop := serve(ctx, s, env)
	if err := await(ctx, 10*time.Millisecond, func() (bool, error) { return len(env.Health.Problems()) == 0, nil }); err != nil {
		return nil, err
	}
	live := fairnessCmd{Rate: c.Rate, For: c.For}
	sent, err := live.send(ctx, w, subs, true)
	if err != nil {
		return nil, err
	}
	if _, err := collect(ctx, sink, sent); err != nil {
		return nil, err
	}
	return sent, stop()
}

// collect waits until everything sent has arrived and returns how long each was
// on its way.
func collect(ctx context.Context, sink string, sent map[string]time.Time) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var times []time.Duration
	err := await(ctx, 100*time.Millisecond, func() (bool, error) {
		page, err := fetch(ctx, sink+"/arrivals")
		if err != nil {
			return false, err
		}
		var arrived map[string]int64
		if err := json.Unmarshal(page, &arrived); err != nil {
			return false, err
		}
		times = times[:0]
		for id, at := range sent {
			if ns, ok := arrived[id]; ok {
				times = append(times, time.Unix(0, ns).Sub(at))
			}
		}
		return len(times) == len(sent), nil
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d arrived: %w", len(times), len(sent), err)
	}
	return times, nil
}
