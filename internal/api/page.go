package api

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/arsmedicatech/webhooks/internal/appointment"
)

// mostPerPage bounds what a client can ask to get in one answer.
const mostPerPage = 200

// page returns the part of a list that a question asks for: limit items behind the
// one that its cursor names, and the cursor of the page after, "" after the last.
// Who asks for no limit gets the usual number, or all if that is 0.
func page[T any](q url.Values, usual int, all []T, id func(T) string) (part []T, next string, err error) {
	limit := usual
	if q.Has("limit") {
		if limit, err = strconv.Atoi(q.Get("limit")); err != nil || limit < 1 || limit > mostPerPage {
			return nil, "", appointment.Invalid("limit", fmt.Sprintf("must be between 1 and %d", mostPerPage))
		}
	}
	if cursor := q.Get("cursor"); cursor != "" {
		last := slices.IndexFunc(all, func(one T) bool { return id(one) == cursor })
		if last < 0 {
			return nil, "", appointment.Invalid("cursor", "must be the next_cursor of an earlier answer, and what it names must still be listed")
		}
		all = all[last+1:]
	}
	if limit == 0 || len(all) <= limit {
		return all, "", nil
	}
	return all[:limit], id(all[limit-1]), nil
}
