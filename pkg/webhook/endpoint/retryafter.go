package endpoint

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// MaxRetryAfter is the most that ParseRetryAfter returns, whatever an endpoint asks for.
const MaxRetryAfter = 30 * 24 * time.Hour

// ParseRetryAfter reads the value of a Retry-After header, seconds or a date, as the time to wait from now on: never
// negative, at most MaxRetryAfter. It returns false for a value that is neither.
func ParseRetryAfter(value string, now time.Time) (time.Duration, bool) {
	value = strings.TrimSpace(value)
	if value != "" && !strings.ContainsFunc(value, notDigit) {
		seconds, err := strconv.ParseUint(value, 10, 64)
		if err != nil || seconds > uint64(MaxRetryAfter/time.Second) { // the only error left is that it is huge
			return MaxRetryAfter, true
		}
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return min(max(date.Sub(now), 0), MaxRetryAfter), true
}
