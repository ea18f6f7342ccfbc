package status

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// A state's rank is its digit in Redis. Of what records say of one delivery the
// highest holds: delivered wins, for the receiver has it.
const (
	rankWaiting = iota + 1
	rankRetrying
	rankDiscarded
	rankDead
	rankDelivered
)

// states by rank.
var states = [...]string{
	rankWaiting: Waiting, rankRetrying: Retrying, rankDiscarded: webhook.Discarded, rankDead: webhook.Dead, rankDelivered: webhook.Delivered,
}

// rankOf returns the rank of a state, 0 if it is none.
func rankOf(state string) int {
	for rank, s := range states {
		if s == state && s != "" {
			return rank
		}
	}
	return 0
}

// outcomes of attempts, by rank of the state that they lead to.
var outcomes = [...]string{
	rankRetrying: webhook.Failed, rankDiscarded: webhook.Discarded, rankDead: webhook.Dead, rankDelivered: webhook.Delivered,
}

func rankOfOutcome(outcome string) int {
	for rank, o := range outcomes {
		if o == outcome && o != "" {
			return rank
		}
	}
	return 0
}

// maxAnswer is how much is kept of the answer to a failed attempt, in bytes.
const maxAnswer = 256

// entry is what one record says, as the script takes it.
type entry struct {
	subscription string // short
	delivery     string // 16 bytes
	event        string
	position     string
	origin       string
	// created is when the delivery was made, as far as the record knows: a digit
	// and milliseconds. The digit is 0 for the time itself and 1 for that of an
	// attempt, which stands in for it: the lowest text holds.
	created string
	// number, attempt and answer are empty but for attempts.
	number, attempt, answer string
}

// fields is how many values of an entry the script takes.
const fields = 9

func (e *entry) appendTo(args []any) []any {
	return append(args, e.subscription, e.delivery, e.event, e.position, e.origin, e.created, e.number, e.attempt, e.answer)
}

// readDelivery reads a record of a topic of deliveries.
func readDelivery(r *kgo.Record) (entry, error) {
	d, err := webhook.ParseDelivery(r)
	if err != nil {
		return entry{}, err
	}
	e := entry{subscription: shorten(d.SubscriptionID), event: d.EventType, origin: d.Origin}
	if !d.Test() {
		e.position = d.Event.String()
	}
	if e.delivery, err = shortID(d.ID); err != nil {
		return entry{}, err
	}
	created, err := millis(r.Timestamp)
	e.created = "0" + created
	return e, err
}

// readAttempt reads a record of the topic of attempts.
func readAttempt(r *kgo.Record) (entry, error) {
	a, err := webhook.ParseAttempt(r.Value)
	if err != nil {
		return entry{}, err
	}
	e := entry{
		subscription: shorten(a.SubscriptionID), event: a.EventType, position: a.EventPosition, origin: a.Origin,
		number: strconv.Itoa(a.Attempt),
	}
	if e.delivery, err = shortID(a.DeliveryID); err != nil {
		return entry{}, err
	}
	at, err := millis(a.At)
	if err != nil {
		return entry{}, err
	}
	e.created = "1" + at
	if e.attempt, err = encodeAttempt(a, at); err != nil {
		return entry{}, err
	}
	if a.Outcome != webhook.Delivered {
		e.answer = cut(a.Answer, maxAnswer)
	}
	return e, nil
}

// encodeAttempt writes an attempt as Redis keeps it: the rank of its outcome, the
// bucket of its latency, then when it began, the answer's status, the latency in
// microseconds, when the next is due, and the error. Of two records of one
// attempt the greater text holds, and so the better outcome.
func encodeAttempt(a *webhook.Attempt, at string) (string, error) {
	rank := rankOfOutcome(a.Outcome)
	if rank == 0 {
		return "", errors.New("attempt: its outcome is none that is known")
	}
	if !(a.LatencyMS >= 0 && a.LatencyMS <= float64(math.MaxInt32)) {
		return "", errors.New("attempt: its latency makes no sense")
	}
	next := "0"
	if a.NextAttemptAt != nil {
		var err error
		if next, err = millis(*a.NextAttemptAt); err != nil {
			return "", err
		}
	}
	b := make([]byte, 0, 64)
	b = append(b, '0'+byte(rank), bucketName(a.LatencyMS), ' ')
	b = append(append(b, at...), ' ')
	b = append(strconv.AppendInt(b, int64(a.Status), 10), ' ')
	b = append(strconv.AppendInt(b, int64(math.Round(a.LatencyMS*1000)), 10), ' ')
	b = append(append(b, next...), ' ')
	return string(append(b, cut(a.Error, maxAnswer)...)), nil
}

// decodeAttempt reads what encodeAttempt wrote.
func decodeAttempt(number int, text string) (Attempt, error) {
	const parts = 6
	f := strings.SplitN(text, " ", parts)
	if len(f) != parts || len(f[0]) != 2 {
		return Attempt{}, fmt.Errorf("attempt %d as Redis has it can't be read", number)
	}
	var n [4]int64
	for i, text := range f[1:5] {
		var err error
		if n[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return Attempt{}, fmt.Errorf("attempt %d as Redis has it can't be read", number)
		}
	}
	rank := int(f[0][0] - '0')
	if rank < rankRetrying || rank > rankDelivered {
		return Attempt{}, fmt.Errorf("attempt %d as Redis has it can't be read", number)
	}
	a := Attempt{
		Number: number, Outcome: outcomes[rank], At: time.UnixMilli(n[0]).UTC(), Status: int(n[1]),
		Latency: time.Duration(n[2]) * time.Microsecond, Error: f[5],
	}
	if n[3] > 0 {
		a.NextAttemptAt = time.UnixMilli(n[3]).UTC()
	}
	return a, nil
}

const (
	millisDigits   = 13 // from 2001 to 2286
	leastMillis    = 1_000_000_000_000
	greatestMillis = 9_999_999_999_999
)

// millis writes a time in milliseconds, in a form that sorts.
func millis(t time.Time) (string, error) {
	ms := t.UnixMilli()
	if ms < leastMillis || ms > greatestMillis {
		return "", errors.New("a time is out of range")
	}
	return strconv.FormatInt(ms, 10), nil
}

// shortID returns the 16 bytes of a delivery's id.
func shortID(id string) (string, error) {
	u, err := uuid.Parse(id)
	if err != nil || u.String() != id {
		return "", errors.New("a delivery's id is not a UUID")
	}
	return string(u[:]), nil
}

func longID(short string) string {
	var u uuid.UUID
	copy(u[:], short)
	return u.String()
}

// What most subscriptions' ids begin with, and what the short forms do.
const (
	commonPrefix = "webhook_subscription:"
	shortMark    = "u" // and 16 bytes
	wholeMark    = "=" // and the id as it is
)

// shorten writes a subscription's id in few bytes, for Redis keeps millions.
func shorten(id string) string {
	if rest, ok := strings.CutPrefix(id, commonPrefix); ok {
		if u, err := uuid.Parse(rest); err == nil && u.String() == rest {
			return shortMark + string(u[:])
		}
	}
	return wholeMark + id
}

// lengthen reads what shorten wrote.
func lengthen(short string) string {
	if rest, ok := strings.CutPrefix(short, shortMark); ok {
		return commonPrefix + longID(rest)
	}
	return strings.TrimPrefix(short, wholeMark)
}

// cut returns the beginning of a text, of whole characters.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
