//go:build race

package harness

// raceFlag has the processes look for races when the tests do.
var raceFlag = []string{"-race"}
