// Package member is a process's membership in a consumer group: who takes over
// when it dies, and when.
//
// A process that is named keeps its place through a crash: started again within
// the session's time, it goes on with its partitions at once, and the others
// notice nothing (static membership, KIP-345). Without a name it comes back as
// somebody new, and the group waits for the dead one's session to end. A process
// that stops in order leaves either way, so that others take over at once.
package member

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// session is how long nobody takes over after a process has died; it is the least
// that Kafka takes by default.
const session = 6 * time.Second

// Options make a client a member of the group, with that name unless it is "".
func Options(group, name string) []kgo.Opt {
	opts := []kgo.Opt{kgo.ConsumerGroup(group), kgo.SessionTimeout(session), kgo.HeartbeatInterval(time.Second)}
	if name != "" {
		opts = append(opts, kgo.InstanceID(name))
	}
	return opts
}

// Name makes a name of a text, which must be this process's alone.
func Name(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, text)
}

// Leave gives the client's partitions up and leaves the group. The client's
// callbacks are called meanwhile, as by kgo.Client.LeaveGroupContext. After an
// error the group notices when the session ends.
func Leave(ctx context.Context, client *kgo.Client, group, name string) error {
	// The client itself leaves the places of named members to their next process.
	id, _ := client.GroupMetadata()
	if err := client.LeaveGroupContext(ctx); err != nil {
		return fmt.Errorf("leave group %s: %w", group, err)
	}
	if name == "" || id == "" {
		return nil
	}
	one := kmsg.NewLeaveGroupRequestMember()
	// With both, so that it leaves nobody's place who has taken the name over.
	one.MemberID, one.InstanceID = id, &name
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.Members = group, append(req.Members, one)
	resp, err := req.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	for i := 0; err == nil && i < len(resp.Members); i++ {
		err = kerr.ErrorForCode(resp.Members[i].ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("leave group %s as %s: %w", group, name, err)
	}
	return nil
}
