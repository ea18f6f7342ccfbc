package member_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/internal/testenv"
	"github.com/arsmedicatech/webhooks/pkg/member"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// join makes a member that has been assigned all that it reads.
func join(t *testing.T, conf kafka.Config, name string) *kgo.Client {
	t.Helper()
	assigned := make(chan struct{}, 1)
	client, err := kgo.NewClient(append(append(testenv.Options(t, conf), member.Options(conf.TopicPrefix+"group", name)...),
		kgo.ConsumeTopics(conf.Topics().Events()),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			if len(m) > 0 {
				assigned <- struct{}{}
			}
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseAllowingRebalance)
	select {
	case <-assigned:
	case <-t.Context().Done():
	case <-time.After(time.Minute):
		t.Fatal("it was assigned nothing")
	}
	return client
}

// members returns the ids of the group's members.
func members(t *testing.T, conf kafka.Config) []string {
	t.Helper()
	groups, err := kadm.NewClient(testenv.Client(t, conf)).DescribeGroups(t.Context(), conf.TopicPrefix+"group")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range groups[conf.TopicPrefix+"group"].Members {
		ids = append(ids, m.MemberID)
	}
	return ids
}

func leave(t *testing.T, conf kafka.Config, client *kgo.Client, name string) {
	t.Helper()
	if err := member.Leave(t.Context(), client, conf.TopicPrefix+"group", name); err != nil {
		t.Fatal(err)
	}
}

// Who dies and comes back under its name has its place again; nobody has it
// after a member that left.
func TestName(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	first := join(t, conf, "a")
	first.CloseAllowingRebalance() // says nothing to the group, as a process that dies
	if n := len(members(t, conf)); n != 1 {
		t.Fatalf("the group has %d members after the death of one, want it still", n)
	}
	second := join(t, conf, "a")
	if n := len(members(t, conf)); n != 1 {
		t.Errorf("the group has %d members after it came back, want one", n)
	}
	leave(t, conf, second, "a")
	if all := members(t, conf); len(all) != 0 {
		t.Errorf("the group has the members %v after the last one left", all)
	}
}

// Who has no name leaves, too.
func TestNoName(t *testing.T) {
	conf := testenv.Kafka(t, nil)
	leave(t, conf, join(t, conf, ""), "")
	if all := members(t, conf); len(all) != 0 {
		t.Errorf("the group has the members %v after the last one left", all)
	}
}

// A member that another has replaced under its name does not end the other's
// membership.
func TestReplaced(t *testing.T) {
	if os.Getenv("KAFKA_BROKERS") == "" {
		t.Skip("the embedded broker looks at the name alone")
	}
	conf := testenv.Kafka(t, nil)
	first := join(t, conf, "a")
	second := join(t, conf, "a")
	if err := member.Leave(t.Context(), first, conf.TopicPrefix+"group", "a"); err == nil {
		t.Error("it left although it had been replaced")
	}
	if n := len(members(t, conf)); n != 1 {
		t.Errorf("the group has %d members, want the second", n)
	}
	leave(t, conf, second, "a")
}

func TestNames(t *testing.T) {
	if got := member.Name("http://127.0.0.1:5000/ä"); got != "http---127.0.0.1-5000--" {
		t.Errorf("%q", got)
	}
}
