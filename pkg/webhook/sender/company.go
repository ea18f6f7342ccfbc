package sender

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// company knows in which partitions the deliveries of several subscriptions come.
// Where there is only one, nobody waits behind its backlog, and it would be
// parked in vain.
type company struct {
	subscriptions Subscriptions

	mu         sync.Mutex
	partitions int // of each topic; 0 as long as that is not known
	counts     []int
	at         time.Time // when they were counted
}

// companyLife is how old the counts may be: they are asked for at each delivery
// that finds no room.
const companyLife = 5 * time.Second

// look asks Kafka for the number of partitions, which never changes.
func (c *company) look(ctx context.Context, adm *kadm.Client, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	topics, err := adm.ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return fmt.Errorf("count the partitions of %s: %w", topic, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partitions = len(topics[topic].Partitions)
	return nil
}

// several says whether deliveries of more than one subscription come in the
// partitions of that number, as far as is known.
func (c *company) several(number int32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.partitions == 0 {
		return true
	}
	if time.Since(c.at) > companyLife {
		c.counts, c.at = make([]int, c.partitions), time.Now()
		of := kgo.StickyKeyPartitioner(nil).ForTopic("") // as whoever wrote them
		for _, s := range c.subscriptions.All() {
			c.counts[of.Partition(&kgo.Record{Key: []byte(s.Subscription.ID)}, c.partitions)]++
		}
	}
	return int(number) >= len(c.counts) || c.counts[number] > 1
}
