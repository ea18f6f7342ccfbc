package appointment

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/events"
)

// sizes are how many events the log of a benchmark holds; RESTORE_EVENTS=1000000
// asks for more.
func sizes(b *testing.B) []int {
	b.Helper()
	if text := os.Getenv("RESTORE_EVENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatalf("RESTORE_EVENTS: %v", err)
		}
		return []int{n}
	}
	return []int{10_000, 100_000}
}

// logOf makes a log of n events: of three of an appointment each, of a hundred
// providers, some with keys.
func logOf(b *testing.B, n int) []*kgo.Record {
	b.Helper()
	records := make([]*kgo.Record, n)
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range records {
		a := i / 3
		e := events.Event{
			ID: fmt.Sprintf("5f0c7d1e-1f5b-4a59-8f6e-%012d", i), Type: events.Created, Time: day.Add(time.Duration(i) * time.Second),
			Actor: "user:7", Command: fmt.Sprintf("b7b5a0de-58d0-4d6d-b3a3-%012d", i),
			Data: events.Data{
				AppointmentID: fmt.Sprintf("appointment:3c1f6c52-95a5-4c6f-a8b7-%012d", a), PatientID: fmt.Sprintf("patient:%d", a%5000),
				ProviderID: fmt.Sprintf("provider:%d", a%100), AppointmentDate: day.AddDate(0, 0, a/1600).Format(time.DateOnly),
				StartTime: fmt.Sprintf("%02d:00", a/100%16+6), EndTime: fmt.Sprintf("%02d:30", a/100%16+6),
				AppointmentType: DefaultType, Status: string(Scheduled), Version: i%3 + 1,
			},
		}
		switch i % 3 {
		case 0:
			e.Data.Notes, e.Data.Location = "Brings her own results", "Room 3"
			e.Idempotency = Fingerprint("user:7", "POST /api/appointments", strconv.Itoa(i), nil)
		case 1:
			e.Type, e.Data.Changes = events.Updated, map[string]string{"notes": "Brings nothing"}
		case 2:
			e.Type, e.Data.Status = events.Confirmed, string(Confirmed)
		}
		r, err := e.Encode("log")
		if err != nil {
			b.Fatal(err)
		}
		r.Offset = int64(i)
		records[i] = r
	}
	return records
}

// folded folds a log in batches of the size in which they come.
func folded(records []*kgo.Record) *calendars {
	c := newCalendars()
	const batch = 2000
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for at := 0; at < len(records); at += batch {
		c.fold(records[at:min(at+batch, len(records))], now)
	}
	return c
}

// BenchmarkRestore measures folding alone, without Kafka, of one partition on
// one core.
func BenchmarkRestore(b *testing.B) {
	for _, n := range sizes(b) {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			records := logOf(b, n)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			keep := folded(records)
			runtime.GC()
			runtime.ReadMemStats(&after)
			if len(keep.byID) != (n+2)/3 || keep.broken != nil {
				b.Fatalf("%d appointments of %d events: %v", len(keep.byID), n, keep.broken)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				folded(records)
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "heap-B/event")
			runtime.KeepAlive(keep)
		})
	}
}

// BenchmarkList measures lists of some and of none, among a third as many
// appointments as there are events.
func BenchmarkList(b *testing.B) {
	everyone := func(*Appointment) bool { return true }
	for _, n := range sizes(b) {
		s := &Service{parts: []*calendars{folded(logOf(b, n))}}
		for name, f := range map[string]Filter{
			"provider's day": {ProviderID: "provider:7", Date: "2026-01-01"}, "patient": {PatientID: "patient:7"},
			"date": {Date: "2026-01-02"}, "provider": {ProviderID: "provider:7"},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				found := 0
				for b.Loop() {
					found = len(s.find(f, everyone))
				}
				b.ReportMetric(float64(found), "found")
			})
		}
	}
}
