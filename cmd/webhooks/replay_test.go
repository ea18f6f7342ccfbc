package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// aReplay is an answer of the API about a replay that is so far.
func aReplay(state string, done int, more string) string {
	return fmt.Sprintf(`{"success": true, "message": "m", "replay": {
  "id": "r1", "subscription_id": "webhook_subscription:1", "source": "events", "state": %q, "from": "0/0,1/0", "to": "0/120,1/88",
  "event_names": ["appointment.*"], "rate": 50, "total": 200, "done": %d, "created_at": "2026-05-06T12:00:00Z", "created_by": "user:admin",
  "updated_at": "2026-05-06T12:00:30Z"%s}}`, state, done, more)
}

const (
	running  = `, "per_second": 12.4, "estimate_s": 92.5`
	finished = `
replay        r1
subscription  webhook_subscription:1
state         done
made          200/200, 13/s
of            events
from          0/0,1/0
to            0/120,1/88
events        appointment.*
rate          at most 50/s
created       2026-05-06 13:00:00 by user:admin
updated       2026-05-06 13:00:30
`
)

func TestReplayStart(t *testing.T) {
	api := answers(t, answer(201, aReplay("waiting", 0, "")))
	s := newTestScreen(false)
	cmd := replayStartCmd{
		Subscription: "webhook_subscription:1", From: "2h", To: "0/120,1/88", Event: []string{"appointment.created", "appointment.updated"},
		Provider: "provider:1", Rate: 50, keyFlag: keyFlag{Key: "K"},
	}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	if want := (request{"POST /api/webhooks/webhook_subscription:1/replays", "Bearer T", "K",
		`{"event_names":["appointment.created","appointment.updated"],"from":"2026-05-06T10:01:00Z","provider_id":"provider:1","rate":50,"to":"0/120,1/88"}`,
	}); api.asked()[0] != want {
		t.Errorf("it asked\n%+v, want\n%+v", api.asked()[0], want)
	}
	same(t, s.err, `
--from 2h is --from 2026-05-06T10:01:00Z
to see how it goes: webhooks replay status webhook_subscription:1 r1 --follow
`)
	if !strings.Contains(s.out.String(), "state         waiting\nmade          0/200, 0/s\n") {
		t.Errorf("it shows\n%s", s.out)
	}
}

func TestReplayDryRun(t *testing.T) {
	for more, want := range map[string]string{
		"":                    "deliveries that it would make: 42; nothing has been started\n",
		`, "estimated": true`: "deliveries that it would make: about 42; nothing has been started\n",
	} {
		api := answers(t, answer(200, `{"success":true,"message":"m","count":42`+more+`}`))
		s := newTestScreen(false)
		cmd := replayStartCmd{Subscription: "webhook_subscription:1", From: earliest, DryRun: true, Wait: true}
		if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
			t.Fatal(err)
		}
		same(t, s.out, want)
		if asked := api.asked(); len(asked) != 1 || asked[0].body != `{"dry_run":true,"from":"earliest"}` {
			t.Errorf("it asked %+v", asked)
		}
	}
}

func TestReplayRecover(t *testing.T) {
	api := answers(t, answer(201, aReplay("waiting", 0, `, "since": "2026-05-06T10:01:00Z"`)))
	s := newTestScreen(false)
	cmd := replayRecoverCmd{Subscription: "webhook_subscription:1", Since: "2h"}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	asked := api.asked()[0]
	if asked.line != "POST /api/webhooks/webhook_subscription:1/recover" || asked.body != `{"since":"2026-05-06T10:01:00Z"}` || asked.key == "" {
		t.Errorf("it asked %+v", asked)
	}
	if !strings.Contains(s.out.String(), "since         2026-05-06 11:01:00\n") {
		t.Errorf("it shows\n%s", s.out)
	}
}

// Where there is no terminal a line is shown now and then, and at the end.
func TestReplayWaitInLines(t *testing.T) {
	script := []func(http.ResponseWriter){answer(201, aReplay("waiting", 0, ""))}
	for i := 1; i < 8; i++ {
		script = append(script, answer(200, aReplay("running", 20*i, running)))
	}
	api := answers(t, append(script, answer(503, unavailable), answer(200, aReplay("done", 200, `, "per_second": 13`)))...)
	s := newTestScreen(false)
	cmd := replayStartCmd{Subscription: "webhook_subscription:1", From: earliest, Wait: true}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.err, `
waiting  0/200  0 %
running  100/200  50 %  12/s  1m32s left
done  200/200  100 %  13/s
what it made goes out behind live traffic: webhooks deliveries list webhook_subscription:1
`)
	same(t, s.out, finished)
	if last := api.asked()[len(api.asked())-1].line; last != "GET /api/webhooks/webhook_subscription:1/replays/r1" {
		t.Errorf("it looked with %s", last)
	}
}

// On a terminal one line is written anew with each look.
func TestReplayWaitOnATerminal(t *testing.T) {
	api := answers(t, answer(200, aReplay("running", 50, running)), answer(200, aReplay("done", 200, `, "per_second": 13`)))
	s := newTestScreen(true)
	s.live = true
	cmd := replayStatusCmd{Subscription: "webhook_subscription:1", Replay: "r1", Follow: true}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.err, "\r[#########...........................]  running  50/200  25 %  12/s  1m32s left\x1b[K"+
		"\r[########################################]  done  200/200  100 %  13/s\x1b[K\n"+
		"what it made goes out behind live traffic: webhooks deliveries list webhook_subscription:1\n")
	if !strings.HasPrefix(s.out.String(), "{\n  \"replay\": {\n    \"id\": \"r1\",") {
		t.Errorf("the document is\n%s", s.out)
	}
}

func TestBarFits(t *testing.T) {
	estimate := 92.5
	for width := range 100 {
		line := bar(&replay{State: "running", Total: 200, Done: 250, Estimated: true, PerSecond: 12, EstimateS: &estimate}, width)
		if n := len(line); n > 0 && n >= width || width == 99 && !strings.HasPrefix(line, "[####") {
			t.Errorf("on a terminal of %d columns it is %q", width, line)
		}
	}
}

// Following ends with an error if the replay did not finish, and if it can't be
// followed any more, which does not end the replay.
func TestReplayWaitFails(t *testing.T) {
	begun := answer(200, aReplay("running", 50, running))
	for name, c := range map[string]struct {
		answers []func(http.ResponseWriter)
		says    []string
	}{
		"failed":    {[]func(http.ResponseWriter){begun, answer(200, aReplay("failed", 50, `, "reason": "out_of_range"`))}, []string{"not finished: failed: out_of_range"}},
		"cancelled": {[]func(http.ResponseWriter){begun, answer(200, aReplay("cancelled", 50, ""))}, []string{"not finished: cancelled"}},
		"gone":      {[]func(http.ResponseWriter){begun, answer(404, `{"error":"Replay not found"}`)}, []string{"not found", "The replay goes on", "replay status webhook_subscription:1 r1 --follow"}},
		"away":      {[]func(http.ResponseWriter){begun, answer(503, unavailable)}, []string{"can't be reached", "The replay goes on"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestScreen(false)
			cmd := replayStatusCmd{Subscription: "webhook_subscription:1", Replay: "r1", Follow: true}
			err := cmd.run(t.Context(), answers(t, c.answers...).client(t), s.screen)
			for _, text := range c.says {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("the error is %v, want one that says %q", err, text)
				}
			}
		})
	}

	ctx, interrupt := context.WithCancel(t.Context())
	client := answers(t, begun).client(t)
	client.wait = func(context.Context, time.Duration) error { interrupt(); return errors.New("interrupted") }
	cmd := replayStatusCmd{Subscription: "webhook_subscription:1", Replay: "r1", Follow: true}
	if err := cmd.run(ctx, client, newTestScreen(false).screen); err == nil || !strings.Contains(err.Error(), "to end it: webhooks replay cancel webhook_subscription:1 r1") {
		t.Errorf("interrupted, the error is %v", err)
	}
}

func TestReplayList(t *testing.T) {
	item := func(id, rest string) string {
		return fmt.Sprintf(`{"id": %q, "subscription_id": "webhook_subscription:1", "source": "events", "created_at": "2026-05-06T12:00:00Z", "created_by": "user:admin", %s}`, id, rest)
	}
	api := answers(t,
		answer(200, `{"success":true,"total":2,"next_cursor":"r2","replays":[`+item("r2", `"state":"running","total":200,"estimated":true,"done":50,"estimate_s":92.5`)+`]}`),
		answer(200, `{"success":true,"total":2,"replays":[`+item("r1", `"state":"failed","reason":"subscription_deleted","total":3,"done":1`)+`]}`))
	s := newTestScreen(false)
	cmd := replayListCmd{Subscription: "webhook_subscription:1", Limit: 50}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	same(t, s.out, `
CREATED              REPLAY  OF      STATE    MADE     LEFT   BY          REASON
2026-05-06 13:00:00  r2      events  running  50/~200  1m32s  user:admin  -
2026-05-06 13:00:00  r1      events  failed   1/3      -      user:admin  subscription_deleted
`)
	if asked := api.asked(); len(asked) != 2 || asked[1].line != "GET /api/webhooks/webhook_subscription:1/replays?cursor=r2&limit=49" {
		t.Errorf("it asked %+v", asked)
	}
}

func TestReplayCancel(t *testing.T) {
	api := answers(t, answer(200, aReplay("cancelled", 50, "")))
	s := newTestScreen(false)
	cmd := replayCancelCmd{Subscription: "webhook_subscription:1", Replay: "r1"}
	if err := cmd.run(t.Context(), api.client(t), s.screen); err != nil {
		t.Fatal(err)
	}
	if asked := api.asked()[0]; asked.line != "DELETE /api/webhooks/webhook_subscription:1/replays/r1" || !strings.Contains(s.out.String(), "state         cancelled\n") {
		t.Errorf("it asked %+v and shows\n%s", asked, s.out)
	}
}
