package api

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/arsmedicatech/webhooks/internal/appointment"
)

// mostPerPage bounds what a client can ask to get in one answer.
const mostPerPage = 200

// key is where an item stands in its list.
type key struct {
	by string // what the list is sorted by, as text of the same order
	id string
}

// ascending is the order of a list.
func ascending(a, b key) int { return cmp.Or(cmp.Compare(a.by, b.by), cmp.Compare(a.id, b.id)) }

// newestFirst is the order of a list of keys by time.
func newestFirst(a, b key) int { return ascending(b, a) }

// byTime is the text that a time is sorted by.
func byTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000") }

// page returns the part of a list that a request asks for: limit items behind where
// its cursor points, and the cursor of the page after, "" after the last. Who asks
// for no limit gets the usual number, or all if that is 0. The list is in the order
// of its items' keys, and of what the filter says.
func page[T any](r *http.Request, usual int, all []T, keyOf func(T) key, order func(a, b key) int, filter ...string) (part []T, next string, err error) {
	q, limit := r.URL.Query(), usual
	if q.Has("limit") {
		if limit, err = strconv.Atoi(q.Get("limit")); err != nil || limit < 1 || limit > mostPerPage {
			return nil, "", appointment.Invalid("limit", fmt.Sprintf("must be between 1 and %d", mostPerPage))
		}
	}
	list := append(filter, r.URL.Path)
	if cursor := q.Get("cursor"); cursor != "" {
		last, ok := readCursor(cursor, list)
		if !ok {
			return nil, "", appointment.Invalid("cursor", "must be the next_cursor of an earlier answer to the same question")
		}
		behind := slices.IndexFunc(all, func(one T) bool { return order(keyOf(one), last) > 0 })
		if behind < 0 {
			behind = len(all)
		}
		all = all[behind:]
	}
	if limit == 0 || len(all) <= limit {
		return all, "", nil
	}
	return all[:limit], writeCursor(keyOf(all[limit-1]), list), nil
}

// cursorSum is how many bytes of a cursor say that it is whole, and of which list.
const cursorSum = 8

// writeCursor returns the cursor of the page that begins behind a key. It has the
// key itself: the item may be elsewhere, or gone, when that page is asked for.
func writeCursor(last key, list []string) string {
	return base64.RawURLEncoding.EncodeToString(append(sumOf(last, list), last.by+"\x00"+last.id...))
}

func readCursor(cursor string, list []string) (last key, ok bool) {
	content, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(content) < cursorSum {
		return key{}, false
	}
	last.by, last.id, ok = strings.Cut(string(content[cursorSum:]), "\x00")
	return last, ok && slices.Equal(sumOf(last, list), content[:cursorSum])
}

// sumOf guards against mistakes, not against forgers: whoever made up a cursor
// would be shown nothing that they may not see.
func sumOf(last key, list []string) []byte {
	const version = 1 // of what cursors are made of
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %q %q %q", version, list, last.by, last.id))
	return sum[:cursorSum]
}
