package app

import "time"

// Defaults of settings, for the embedded mode, which does not read them from
// tags. A test compares the two.
const (
	defaultHandover    = 5 * time.Second
	defaultAhead       = 10_000
	defaultTimeout     = 10 * time.Second
	defaultRetryAfter  = 15 * time.Minute
	defaultInFlight    = 1024
	defaultPerEndpoint = 64
	defaultBreakAfter  = 100
	defaultGiveUpAfter = 5 * 24 * time.Hour
	defaultDrain       = 15 * time.Second
	defaultMarkLife    = 8 * 24 * time.Hour
)
