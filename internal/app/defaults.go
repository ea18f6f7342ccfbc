package app

import "time"

// Defaults of settings, for the embedded mode, which does not read them from
// tags. A test compares the two.
const (
	defaultHandover    = 5 * time.Second
	defaultTimeout     = 10 * time.Second
	defaultRetryAfter  = 15 * time.Minute
	defaultInFlight    = 1024
	defaultPerEndpoint = 32
	defaultDrain       = 15 * time.Second
	defaultMarkLife    = 8 * 24 * time.Hour
	defaultStatusLife  = 7 * 24 * time.Hour
	defaultStatusCount = 100_000
)
