package run

import (
	"os"
	"runtime/debug"
)

// lazier lets the collector run less often than by default, unless GOGC or
// GOMEMLIMIT say otherwise. What a process holds is bounded by its settings and
// small beside what passes through it.
func lazier() {
	const percent = 300
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetGCPercent(percent)
	}
}
