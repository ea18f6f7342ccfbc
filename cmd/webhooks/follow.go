package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// lookEvery is the time between two looks at a replay.
	lookEvery = time.Second
	// sayEvery is how many looks go by between two lines where there is no
	// terminal.
	sayEvery = 5
	// missAtMost is how many looks in a row may fail: the API may start again
	// meanwhile.
	missAtMost = 60
)

// follow shows how a replay goes until it has ended, and then what it came to. It
// fails if the replay did.
func follow(ctx context.Context, api *apiClient, s *screen, r oneReplay) error {
	path := r.path()
	missed := 0
	for look := 0; !r.ended(); look++ {
		if s.live {
			s.again(bar(&r.replay, s.width()))
		} else if look%sayEvery == 0 {
			s.remark("%s", summary(&r.replay))
		}
		if err := api.wait(ctx, lookEvery); err != nil {
			return stopped(s, &r, errors.New("stopped looking"))
		}
		var answer replayAnswer
		err := api.get(ctx, path, nil, &answer)
		switch {
		case err == nil:
			r, missed = answer.Replay, 0
		case ctx.Err() != nil:
			return stopped(s, &r, errors.New("stopped looking"))
		default:
			if refused, ok := errors.AsType[*answerError](err); ok && !refused.passing() {
				return stopped(s, &r, err)
			}
			if missed++; missed == missAtMost {
				return stopped(s, &r, err)
			}
		}
	}
	if s.live {
		s.again(bar(&r.replay, s.width()))
		s.remark("")
	} else {
		s.remark("%s", summary(&r.replay))
	}
	if err := r.show(s); err != nil {
		return err
	}
	if r.State == replayFailed || r.State == replayCancelled {
		return fmt.Errorf("the replay was not finished: %s", strings.TrimSuffix(r.State+": "+harmless(r.Reason), ": "))
	}
	s.remark("what it made goes out behind live traffic: webhooks deliveries list %s", harmless(r.SubscriptionID))
	return nil
}

// stopped says how to look again: the replay goes on by itself.
func stopped(s *screen, r *oneReplay, err error) error {
	if s.live {
		s.remark("")
	}
	return fmt.Errorf("%w\nThe replay goes on. To look again: webhooks replay status %s --follow; to end it: webhooks replay cancel %[2]s", err, harmless(r.names()))
}

// again writes the current line of a terminal anew.
func (s *screen) again(line string) { fmt.Fprintf(s.err, "\r%s\x1b[K", line) }

// summary is how a replay goes, in words.
func summary(r *replay) string {
	parts := []string{harmless(r.State), r.progress()}
	if r.Total > 0 {
		parts = append(parts, fmt.Sprintf("%d %%", percent(r)))
	}
	if r.PerSecond > 0 {
		parts = append(parts, fmt.Sprintf("%.0f/s", r.PerSecond))
	}
	if left := r.left(); left != "" {
		parts = append(parts, left+" left")
	}
	return strings.Join(parts, "  ")
}

// percent is how much of it is done, from 0 to 100.
func percent(r *replay) int64 {
	const all = 100
	if r.Total <= 0 {
		return 0
	}
	return min(all, all*r.Done/r.Total)
}

// bar is how a replay goes, on a line that is less than width columns wide.
func bar(r *replay, width int) string {
	const least, most, all = 10, 40, 100
	text := summary(r)
	size := min(most, width-utf8.RuneCountInString(text)-len("[]  ")-1)
	if size < least || r.Total <= 0 {
		return cut(text, width-1)
	}
	full := int(percent(r)) * size / all
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", size-full) + "]  " + text
}

// cut keeps the beginning of a text, so that it takes one line.
func cut(text string, width int) string {
	runes := []rune(text)
	return string(runes[:min(len(runes), max(width, 0))])
}
