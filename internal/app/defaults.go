package app

import "time"

// Defaults of settings, for the embedded mode, which does not read them from
// tags. A test compares the two.
const (
	defaultHandover    = 5 * time.Second
	defaultAhead       = 10_000
	defaultStatusLife  = 7 * 24 * time.Hour
	defaultStatusCount = 100_000
)
