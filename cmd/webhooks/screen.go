package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"golang.org/x/term"
)

// outputFlag is how a command shows what it found.
type outputFlag struct {
	Output string `name:"output" short:"o" enum:"table,json" default:"table" help:"Form of the output: table for people, with local times, or json for programs, in UTC."`
}

// screen is where a command shows things.
type screen struct {
	out io.Writer // what was asked for
	err io.Writer // remarks, and progress
	// json asks for JSON in out.
	json bool
	// live says that err is a terminal, on which a line can be written anew.
	live bool
	// width is the terminal's, in columns.
	width func() int
	zone  *time.Location
	now   func() time.Time
}

// screen returns the process's own.
func (f outputFlag) screen() *screen {
	fd := int(os.Stderr.Fd())
	return &screen{
		out: os.Stdout, err: os.Stderr, json: f.Output == "json", live: term.IsTerminal(fd), zone: time.Local, now: time.Now,
		width: func() int {
			const usual = 80
			if width, _, err := term.GetSize(fd); err == nil && width > 0 {
				return width
			}
			return usual
		},
	}
}

// remark says something beside the output.
func (s *screen) remark(format string, args ...any) { fmt.Fprintf(s.err, format+"\n", args...) }

// document shows JSON, indented.
func (s *screen) document(v any) error { return s.encode(v, "  ") }

// line shows JSON on one line.
func (s *screen) line(v any) error { return s.encode(v, "") }

func (s *screen) encode(v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	return s.print(harmlessJSON(b.Bytes()))
}

func (s *screen) print(text string) error {
	if _, err := io.WriteString(s.out, text); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// table shows rows under headings. Cells may hold what a stranger sent.
func (s *screen) table(headings []string, rows [][]string) error {
	return s.columns(append([][]string{headings}, rows...))
}

// fields shows names with their values, but those without one.
func (s *screen) fields(fields [][2]string) error {
	var rows [][]string
	for _, f := range fields {
		if f[1] != "" {
			rows = append(rows, f[:])
		}
	}
	return s.columns(rows)
}

func (s *screen) columns(rows [][]string) error {
	var b bytes.Buffer
	const gap = 2
	w := tabwriter.NewWriter(&b, 0, 0, gap, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printable(cell)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return s.print(b.String())
}

// time is a moment as people read it, or "" for none.
func (s *screen) time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.In(s.zone).Format(time.DateTime)
}

// until says how far away something is that is still to come.
func (s *screen) until(t *time.Time) string {
	switch {
	case t == nil:
		return ""
	case !t.After(s.now()):
		return "due"
	}
	return "in " + short(t.Sub(s.now()))
}

// short is a duration with as much of it as matters.
func short(d time.Duration) string {
	const (
		day  = 24 * time.Hour
		days = 2 * day // from here on
	)
	switch {
	case d < 0:
		return "-" + short(-d)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < days:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}

// harmless does for lines of text what printable does for a word: only line
// breaks stay.
func harmless(s string) string {
	var b strings.Builder
	for _, c := range s {
		if c == '\n' || unicode.IsPrint(c) {
			b.WriteRune(c)
			continue
		}
		quoted := strconv.QuoteRune(c)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// harmlessJSON does the same for JSON, which it leaves the JSON of the same: what
// is not printable can only stand in a string there.
func harmlessJSON(text []byte) string {
	var b strings.Builder
	for _, c := range string(text) {
		if c == '\n' || unicode.IsPrint(c) {
			b.WriteRune(c)
			continue
		}
		for _, unit := range utf16.Encode([]rune{c}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// printable keeps what a stranger sent from steering the terminal.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}
