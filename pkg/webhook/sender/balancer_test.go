package sender

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// Whoever joins or leaves: all topics' partitions of a number go to one member,
// every member has as many numbers as any other or one less, and no more move than
// must.
func TestShardsAreBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		partitions := int32(rapid.IntRange(1, 24).Draw(t, "partitions"))
		topics := map[string]int32{"deliveries": partitions, "parked": partitions, "retry": partitions}
		owned := map[string]map[string][]int32{} // by member
		generation := int32(0)
		for range rapid.IntRange(1, 8).Draw(t, "rebalances") {
			members := rapid.SliceOfNDistinct(rapid.IntRange(0, 9), 1, 10, rapid.ID[int]).Draw(t, "members")
			alive := map[string]map[string][]int32{}
			for _, n := range members {
				id := fmt.Sprintf("m%d", n)
				alive[id] = owned[id]
			}
			before := numbers(t, alive)
			// What moves is given up in one round and given away in the next.
			for range 2 {
				generation++
				alive = rebalance(t, alive, topics, generation)
			}
			owned = alive
			after := numbers(t, owned)
			if len(after) != int(partitions) {
				t.Fatalf("%d of %d numbers are given to somebody", len(after), partitions)
			}
			load := map[string]int{}
			for _, id := range after {
				load[id]++
			}
			least, most := int(partitions)/len(members), (int(partitions)+len(members)-1)/len(members)
			for id := range alive {
				if load[id] < least || load[id] > most {
					t.Fatalf("%s has %d of %d numbers among %d", id, load[id], partitions, len(members))
				}
			}
			kept, keeps := 0, 0
			for n, id := range before {
				if after[n] == id {
					kept++
				}
			}
			for id := range alive {
				had := 0
				for _, owner := range before {
					if owner == id {
						had++
					}
				}
				keeps += min(had, least)
			}
			if kept < keeps {
				t.Fatalf("%d numbers stay where they are, want at least %d", kept, keeps)
			}
		}
	})
}

// rebalance is one round of a group.
func rebalance(t *rapid.T, owned map[string]map[string][]int32, topics map[string]int32, generation int32) map[string]map[string][]int32 {
	b := shardBalancer()
	var members []kmsg.JoinGroupResponseMember
	for _, id := range slices.Sorted(maps.Keys(owned)) {
		m := kmsg.NewJoinGroupResponseMember()
		m.MemberID = id
		m.ProtocolMetadata = b.JoinGroupMetadata(slices.Sorted(maps.Keys(topics)), owned[id], generation)
		members = append(members, m)
	}
	balancer, _, err := b.MemberBalancer(members)
	if err != nil {
		t.Fatal(err)
	}
	orError, ok := balancer.(kgo.GroupMemberBalancerOrError)
	if !ok {
		t.Fatal("it is no GroupMemberBalancerOrError")
	}
	assignment, err := orError.BalanceOrError(topics)
	if err != nil {
		t.Fatal(err)
	}
	plan, ok := assignment.(*kgo.BalancePlan)
	if !ok {
		t.Fatal("no plan")
	}
	return plan.AsMemberIDMap()
}

// numbers returns who has each number, and fails if two have it.
func numbers(t *rapid.T, owned map[string]map[string][]int32) map[int32]string {
	owners := map[int32]string{}
	for id, topics := range owned {
		for _, partitions := range topics {
			for _, n := range partitions {
				if other, taken := owners[n]; taken && other != id {
					t.Fatalf("%s and %s have partitions %d", id, other, n)
				}
				owners[n] = id
			}
		}
	}
	return owners
}
