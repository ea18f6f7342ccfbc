package webhook_test

import (
	"testing"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// A subscription enabled, disabled and enabled again, asked only afterwards:
// each event finds the rule of its own position.
func TestMatchesAsOfThePosition(t *testing.T) {
	s := webhook.Subscription{Rules: []webhook.Rule{
		{From: []int64{0, 5}, EventName: "appointment.created", Active: true},
		{From: []int64{10, 5}, EventName: "appointment.created", Active: false},
		{From: []int64{20, 9}, EventName: "appointment.*", Active: true},
	}}
	for _, c := range []struct {
		event     string
		partition int32
		offset    int64
		want      bool
	}{
		{"appointment.created", 0, 0, true},
		{"appointment.created", 0, 9, true},
		{"appointment.updated", 0, 9, false},
		{"appointment.created", 0, 10, false},
		{"appointment.created", 0, 19, false},
		{"appointment.created", 0, 20, true},
		{"appointment.updated", 0, 20, true},
		{"appointment.created", 1, 4, false}, // before it was made
		{"appointment.created", 1, 5, false}, // on this partition never enabled before 9
		{"appointment.created", 1, 9, true},
	} {
		at := webhook.Position{Partition: c.partition, Offset: c.offset}
		if got := s.Matches(c.event, at); got != c.want {
			t.Errorf("%s at %s: got %t, want %t", c.event, at, got, c.want)
		}
	}
}

func TestPruneKeepsWhatIsStillToBeRouted(t *testing.T) {
	rules := []webhook.Rule{
		{From: []int64{0, 0}, EventName: "a", Active: true},
		{From: []int64{10, 0}, EventName: "a", Active: false},
		{From: []int64{20, 5}, EventName: "a", Active: true},
	}
	for _, c := range []struct {
		routed []int64
		left   int
	}{
		{[]int64{0, 0}, 3},
		{[]int64{9, 100}, 3},
		{[]int64{10, 0}, 2}, // the first is over: nothing of partition 1 is before it
		{[]int64{20, 4}, 2},
		{[]int64{20, 5}, 1},
		{nil, 3},
	} {
		s := webhook.Subscription{Rules: rules}
		s.Prune(c.routed)
		if len(s.Rules) != c.left {
			t.Errorf("routed %v: %d rules left, want %d", c.routed, len(s.Rules), c.left)
		}
	}
}

func TestGone(t *testing.T) {
	s := webhook.Subscription{Deleted: true, Rules: []webhook.Rule{{From: []int64{3}}}}
	if s.Gone([]int64{2}) {
		t.Error("gone although an event before its deletion is still to be routed")
	}
	if !s.Gone([]int64{3}) {
		t.Error("not gone although everything before its deletion is routed")
	}
}
