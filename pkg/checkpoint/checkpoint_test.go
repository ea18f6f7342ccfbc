package checkpoint

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

func TestTracker(t *testing.T) {
	begin := func(tr *Tracker, offsets ...int64) {
		for _, o := range offsets {
			tr.Begin(&kgo.Record{Offset: o, LeaderEpoch: 3})
		}
	}
	for name, c := range map[string]struct {
		begun, settled []int64
		committed      int64
		want           int64
		news           bool
	}{
		"nothing begun":               {committed: -1},
		"where it begins is no news":  {begun: []int64{5, 6}, committed: -1, want: 5},
		"the first":                   {begun: []int64{5, 6}, settled: []int64{5}, committed: 5, want: 6, news: true},
		"the second waits":            {begun: []int64{5, 6, 7}, settled: []int64{6, 7}, committed: 5, want: 5},
		"the first frees the rest":    {begun: []int64{5, 6, 7}, settled: []int64{7, 6, 5}, committed: 5, want: 8, news: true},
		"gaps where markers were":     {begun: []int64{5, 9, 20}, settled: []int64{9, 5}, committed: -1, want: 20, news: true},
		"all settled after a gap":     {begun: []int64{5, 9}, settled: []int64{9, 5}, committed: -1, want: 10, news: true},
		"all committed already":       {begun: []int64{5}, settled: []int64{5}, committed: 6, want: 6},
		"begins at zero, not settled": {begun: []int64{0}, committed: 0, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			tr := New()
			begin(tr, c.begun...)
			for _, o := range c.settled {
				tr.Settle(o)
			}
			tr.Committed(c.committed)
			got, news := tr.Committable()
			if got.Offset != c.want || news != c.news {
				t.Errorf("committable %d, news %v; want %d, %v", got.Offset, news, c.want, c.news)
			}
			if len(c.begun) > 0 && got.Epoch != 3 {
				t.Errorf("epoch %d, want the records'", got.Epoch)
			}
		})
	}
}

// In whatever order records are settled, what can be committed is the lowest
// that is not, and never goes back; and nothing settled is kept in memory.
func TestTrackerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := New()
		next := rapid.Int64Range(0, 1000).Draw(t, "first")
		var unsettled []int64 // ascending
		var last, lastCommitted int64 = -1, -1
		begun := false
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				next += rapid.Int64Range(0, 3).Draw(t, "gap")
				if !begun {
					lastCommitted = next // where it begins is no news
				}
				tr.Begin(&kgo.Record{Offset: next})
				unsettled = append(unsettled, next)
				next++
				begun = true
			},
			"settle": func(t *rapid.T) {
				if len(unsettled) == 0 {
					t.Skip("nothing to settle")
				}
				i := rapid.IntRange(0, len(unsettled)-1).Draw(t, "which")
				tr.Settle(unsettled[i])
				unsettled = append(unsettled[:i:i], unsettled[i+1:]...)
			},
			"commit": func(t *rapid.T) {
				if o, news := tr.Committable(); news {
					tr.Committed(o.Offset)
					lastCommitted = o.Offset
				}
			},
			"": func(t *rapid.T) {
				o, news := tr.Committable()
				if !begun {
					if news {
						t.Fatalf("committable %d before anything has begun", o.Offset)
					}
					return
				}
				want := next
				if len(unsettled) > 0 {
					want = unsettled[0]
				}
				if o.Offset != want {
					t.Fatalf("committable %d, want %d", o.Offset, want)
				}
				if o.Offset < last {
					t.Fatalf("committable went back from %d to %d", last, o.Offset)
				}
				if news != (o.Offset > lastCommitted) {
					t.Fatalf("committable %d after %d was committed: news %v", o.Offset, lastCommitted, news)
				}
				last = o.Offset
				if len(unsettled) == 0 && (len(tr.settled) > 0 || tr.open != nil) {
					t.Fatalf("%d offsets are kept although all are settled", len(tr.settled)+len(tr.open))
				}
			},
		})
	})
}
