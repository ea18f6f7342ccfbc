package sender

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// shards shares out partitions by their number. All topics are keyed by
// subscription and have the same number of partitions, so the member that gets
// partition 3 of one gets all that concerns a subscription of that partition: its
// new deliveries, its retries and what is parked of it. Its lane is then in one
// process. Nothing but order and pace depends on that.
//
// Members keep what they have as far as that is fair, and what moves is given up
// before it is given away, as with kgo's cooperative balancer, whose wire format
// it shares.
type shards struct{ kgo.GroupBalancer }

func shardBalancer() kgo.GroupBalancer { return &shards{kgo.CooperativeStickyBalancer()} }

// ProtocolName implements kgo.GroupBalancer.
func (*shards) ProtocolName() string { return "webhook-shards" }

// MemberBalancer implements kgo.GroupBalancer.
func (s *shards) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	b, err := kgo.NewConsumerBalancer(s, members)
	return b, b.MemberTopics(), err
}

// peer is a sender of the group.
type peer struct {
	*kmsg.JoinGroupResponseMember
	topics     []string
	generation int32
	numbers    int // of partitions that it gets
}

// Balance implements kgo.ConsumerBalancerBalance.
func (*shards) Balance(b *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	var members []*peer
	owners := map[int32]*peer{}
	b.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		one := &peer{JoinGroupResponseMember: m, topics: meta.Topics, generation: meta.Generation}
		members = append(members, one)
		for _, owned := range meta.OwnedPartitions {
			for _, n := range owned.Partitions {
				// Who was away may still think that it owns what others have been given.
				if other := owners[n]; other == nil || other.generation < one.generation {
					owners[n] = one
				}
			}
		}
	})
	plan := b.NewPlan()
	for n, owner := range portions(members, owners, topics) {
		for topic, partitions := range topics {
			if int32(n) >= partitions {
				continue
			}
			if to := reader(owner, members, topic); to != nil {
				plan.AddPartition(to.JoinGroupResponseMember, topic, int32(n))
			}
		}
	}
	plan.AdjustCooperative(b)
	return plan
}

// portions returns who gets each number.
func portions(members []*peer, owners map[int32]*peer, topics map[string]int32) []*peer {
	var most int32
	for _, partitions := range topics {
		most = max(most, partitions)
	}
	least, more := int(most)/len(members), int(most)%len(members) // so many get one more
	given := make([]*peer, most)
	for n := range given {
		owner := owners[int32(n)]
		switch {
		case owner == nil || owner.numbers > least:
		case owner.numbers < least:
			given[n] = owner
			owner.numbers++
		case more > 0:
			given[n] = owner
			owner.numbers++
			more--
		}
	}
	for n, owner := range given {
		if owner == nil {
			given[n] = slices.MinFunc(members, func(a, b *peer) int { return a.numbers - b.numbers })
			given[n].numbers++
		}
	}
	return given
}

// reader returns who reads a topic of the owner's number: the owner, unless it
// does not know the topic because its schedule is another one.
func reader(owner *peer, members []*peer, topic string) *peer {
	if slices.Contains(owner.topics, topic) {
		return owner
	}
	for _, m := range members {
		if slices.Contains(m.topics, topic) {
			return m
		}
	}
	return nil
}
