package status

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Every minute of a window is counted in it once, and no other.
func TestSpans(t *testing.T) {
	for offset := range 61 {
		now := time.Date(2026, 5, 6, 10, 0, 30, 0, time.UTC).Add(time.Duration(offset) * time.Minute)
		minute := now.Unix() / 60
		counted := map[string]map[int64]int{"5m": {}, "1h": {}, "24h": {}}
		spans := spansOf(now)
		for _, s := range spans {
			kind, number, _ := strings.Cut(s.key, ":")
			n, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			minutes := []int64{n}
			if kind == "h" {
				minutes = nil
				for m := range int64(60) {
					minutes = append(minutes, n*60+m)
				}
			}
			for _, m := range minutes {
				for window, in := range map[string]bool{"5m": s.five, "1h": s.hour, "24h": s.day} {
					if in {
						counted[window][m]++
					}
				}
			}
		}
		for window, length := range map[string]int64{"5m": 5, "1h": 60, "24h": 24 * 60} {
			if len(counted[window]) != int(length)+1 {
				t.Fatalf("%s at :%02d has %d minutes, want %d", window, now.Minute(), len(counted[window]), length+1)
			}
			for m := minute - length; m <= minute; m++ {
				if counted[window][m] != 1 {
					t.Fatalf("%s at :%02d counts minute %d %d times", window, now.Minute(), m-minute, counted[window][m])
				}
			}
		}
		if len(spans) > 210 {
			t.Errorf("%d spans are read", len(spans))
		}
	}
}

// Percentiles are right to within the width of a bucket.
func TestLatency(t *testing.T) {
	var f Figures
	for ms := 1; ms <= 1000; ms++ {
		if err := f.add(map[string]string{"5" + string(bucketName(float64(ms))): "1"}); err != nil {
			t.Fatal(err)
		}
	}
	for share, want := range map[float64]float64{0.5: 500, 0.95: 950, 0.99: 990, 1: 1000} {
		got, ok := f.Latency(share)
		if off := math.Abs(got.Seconds()*1000/want - 1); !ok || off > 0.15 {
			t.Errorf("the %v is %v, want about %v ms", share, got, want)
		}
	}
	if _, ok := (&Figures{}).Latency(0.5); ok {
		t.Error("there is a latency of nothing")
	}
	for _, ms := range []float64{0, 0.1, 1, 1e9} {
		if name := bucketName(ms); name <= ' ' || name >= 127 {
			t.Errorf("the bucket of %v ms is named %q", ms, name)
		}
	}
}

func TestIDs(t *testing.T) {
	for _, id := range []string{
		"webhook_subscription:0f8fad5b-d9cb-469f-a165-70867728950e", "webhook_subscription:0F8FAD5B-D9CB-469F-A165-70867728950E",
		"webhook_subscription:", "webhook_subscription:x", "", "u123", "=x", "0f8fad5b-d9cb-469f-a165-70867728950e",
	} {
		if got := lengthen(shorten(id)); got != id {
			t.Errorf("%q became %q", id, got)
		}
	}
	if n := len(shorten("webhook_subscription:0f8fad5b-d9cb-469f-a165-70867728950e")); n != 17 {
		t.Errorf("a usual id takes %d bytes", n)
	}
}
