package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/internal/app"
	"github.com/arsmedicatech/webhooks/internal/kafka"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

type lagCmd struct {
	outputFlag `embed:""`
	Kafka      kafka.Config `embed:""`
}

// Help implements kong.HelpProvider.
func (c *lagCmd) Help() string {
	return "For each consumer group that commits, and each topic that it reads: how many processes read it; LAG, the records behind the committed " +
		"offsets, of which the ends of transactions are some; OLDEST, how long ago the first record was written that is not settled yet; and, of the partition " +
		"that is furthest behind, the committed position and the end. What waits in webhooks.retry and webhooks.parked is not late: it waits for its time, or its endpoint."
}

// Run shows the lag once.
func (c *lagCmd) Run(ctx context.Context) error { return c.run(ctx, c.screen()) }

func (c *lagCmd) run(ctx context.Context, s *screen) error {
	client, err := connect(ctx, c.Kafka, kafkaWait)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, lagLimit)
	defer cancel()
	names := app.Groups(c.Kafka.TopicPrefix)
	lags, err := kadm.NewClient(client).Lag(ctx, slices.Clone(names)...)
	if err != nil {
		return fmt.Errorf("look at the consumer groups: %w", err)
	}
	groups := make([]groupLag, len(names))
	for i, name := range names {
		groups[i] = lagOf(name, lags[name])
		if err := c.findOldest(ctx, &groups[i]); err != nil {
			return err
		}
	}
	if s.json {
		return s.document(map[string]any{"groups": groups})
	}
	return s.table(lagHeadings, lagRows(groups, s.now()))
}

// lagLimit bounds all questions together.
const lagLimit = time.Minute

// groupLag is how far behind a group is.
type groupLag struct {
	Group   string     `json:"group"`
	State   string     `json:"state"` // as Kafka calls it, or "None" if Kafka does not know the group
	Members int        `json:"members"`
	Error   string     `json:"error,omitzero"`
	Topics  []topicLag `json:"topics"`
}

// stateNone is that of a group that has never been, or has been forgotten.
const stateNone = "None"

// topicLag is how far behind a group is in a topic.
type topicLag struct {
	Topic      string         `json:"topic"`
	Members    int            `json:"members"` // that have partitions of the topic
	Lag        int64          `json:"lag"`
	OldestAt   *time.Time     `json:"oldest_at,omitzero"`
	Deleted    int64          `json:"deleted"`
	Open       int64          `json:"open"`
	Partitions []partitionLag `json:"partitions"`
}

// partitionLag is how far behind a group is in a partition.
type partitionLag struct {
	Partition int32 `json:"partition"`
	Committed int64 `json:"committed"` // -1: nothing has been
	Start     int64 `json:"start"`
	End       int64 `json:"end"`
	// Lag counts offsets. It is 0 if only ends of transactions follow.
	Lag int64 `json:"lag"`
	// OldestAt is when the first record was written that is not settled, if there
	// is one that can be read.
	OldestAt *time.Time `json:"oldest_at,omitzero"`
	// Deleted counts offsets that have been deleted and were not settled.
	Deleted int64 `json:"deleted"`
	// Open counts offsets from the first transaction on that has not ended.
	Open  int64  `json:"open"`
	Error string `json:"error,omitzero"`
}

// next is the first offset that is not settled and has not been deleted.
func (p *partitionLag) next() int64 { return max(p.Committed, p.Start) }

func lagOf(name string, l kadm.DescribedGroupLag) groupLag {
	g := groupLag{Group: name, State: l.State, Members: len(l.Members), Topics: []topicLag{}}
	if errors.Is(l.DescribeErr, kerr.GroupIDNotFound) || l.DescribeErr == nil && (l.State == "" || l.State == "Dead") {
		g.State = stateNone
	} else if err := errors.Join(l.DescribeErr, l.FetchErr); err != nil {
		g.Error = err.Error()
	}
	for _, topic := range slices.Sorted(maps.Keys(l.Lag)) {
		t := topicLag{Topic: topic, Partitions: []partitionLag{}}
		members := map[string]bool{}
		for _, p := range slices.Sorted(maps.Keys(l.Lag[topic])) {
			m := l.Lag[topic][p]
			if m.Member != nil {
				members[m.Member.MemberID] = true
			}
			one := partitionLag{Partition: p, Committed: m.Commit.At, Start: max(m.Start.Offset, 0), End: m.End.Offset, Lag: m.Lag}
			if m.Err != nil {
				one.Error, one.Lag = m.Err.Error(), 0
			} else if one.Committed >= 0 {
				one.Deleted = max(0, one.Start-one.Committed)
			}
			t.Partitions = append(t.Partitions, one)
		}
		t.Members = len(members)
		g.Topics = append(g.Topics, t)
	}
	return g
}

// findOldest finds out what the group's lags are made of, and adds them up.
func (c *lagCmd) findOldest(ctx context.Context, g *groupLag) error {
	behind := map[string]map[int32]*partitionLag{}
	for _, t := range g.Topics {
		for i := range t.Partitions {
			if p := &t.Partitions[i]; p.Lag > 0 && p.Error == "" {
				if behind[t.Topic] == nil {
					behind[t.Topic] = map[int32]*partitionLag{}
				}
				behind[t.Topic][p.Partition] = p
			}
		}
	}
	if len(behind) > 0 {
		if err := c.probe(ctx, behind); err != nil {
			return fmt.Errorf("look at what waits for %s: %w", g.Group, err)
		}
	}
	for i := range g.Topics {
		t := &g.Topics[i]
		for _, p := range t.Partitions {
			t.Lag, t.Deleted, t.Open = t.Lag+p.Lag, t.Deleted+p.Deleted, t.Open+p.Open
			if p.OldestAt != nil && (t.OldestAt == nil || p.OldestAt.Before(*t.OldestAt)) {
				t.OldestAt = p.OldestAt
			}
		}
	}
	return nil
}

// probeLimit bounds the look at one group's topics.
const probeLimit = 10 * time.Second

// probe reads the first record of each partition that waits. Where there is none
// before the first open transaction, only what is in transactions lags. What has
// not been read in time keeps the lag that it has.
func (c *lagCmd) probe(ctx context.Context, behind map[string]map[int32]*partitionLag) error {
	client, err := connect(ctx, c.Kafka, kafkaWait, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxPartitionBytes(probeBytes))
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, slices.Collect(maps.Keys(behind))...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("find the first open transactions: %w", err)
	}
	begin := map[string]map[int32]kgo.Offset{}
	left := 0
	for topic, partitions := range behind {
		begin[topic] = map[int32]kgo.Offset{}
		for number, p := range partitions {
			stable := p.End
			if o, ok := ends.Lookup(topic, number); ok {
				stable = min(stable, o.Offset)
			}
			p.Open = p.End - max(stable, p.next())
			if p.next() >= stable {
				delete(partitions, number)
				continue
			}
			begin[topic][number] = kgo.NewOffset().At(p.next())
			left++
		}
	}
	client.AddConsumePartitions(begin)
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		if err := fetchError(fetches); err != nil {
			return err
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			p := behind[rec.Topic][rec.Partition]
			switch {
			case p == nil:
				return
			case !rec.Attrs.IsControl():
				at := rec.Timestamp.UTC()
				p.OldestAt = &at
			case rec.Offset+1 >= p.End-p.Open:
				p.Lag = p.Open
			default:
				return
			}
			delete(behind[rec.Topic], rec.Partition)
			client.PauseFetchPartitions(map[string][]int32{rec.Topic: {rec.Partition}})
			left--
		})
	}
	return nil
}

// probeBytes is what is read of a partition to find one record.
const probeBytes = 64 << 10

var lagHeadings = []string{"GROUP", "STATE", "MEMBERS", "TOPIC", "LAG", "OLDEST", "COMMITTED", "END", "NOTE"}

func lagRows(groups []groupLag, now time.Time) [][]string {
	var rows [][]string
	for _, g := range groups {
		if len(g.Topics) == 0 {
			note := g.Error
			if note == "" {
				note = "has committed nothing: does it run?"
			}
			rows = append(rows, []string{g.Group, g.State, strconv.Itoa(g.Members), "", "", "", "", "", note})
		}
		for _, t := range g.Topics {
			row := []string{g.Group, g.State, strconv.Itoa(t.Members), t.Topic, strconv.FormatInt(t.Lag, 10), "", "", "", strings.Join(t.notes(g.Error), "; ")}
			if t.OldestAt != nil {
				row[5] = short(now.Sub(*t.OldestAt))
			}
			if p := t.furthest(); p != nil {
				if p.Committed >= 0 {
					row[6] = webhook.Position{Partition: p.Partition, Offset: p.Committed}.String()
				}
				row[7] = webhook.Position{Partition: p.Partition, Offset: p.End}.String()
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// furthest returns the partition that is furthest behind; of several, the longest.
func (t *topicLag) furthest() *partitionLag {
	var found *partitionLag
	for i := range t.Partitions {
		if p := &t.Partitions[i]; found == nil || p.Lag > found.Lag || p.Lag == found.Lag && p.End > found.End {
			found = p
		}
	}
	return found
}

// notes say what an operator should look into.
func (t *topicLag) notes(problem string) []string {
	var notes []string
	if problem != "" {
		notes = append(notes, problem)
	}
	if t.Members == 0 {
		notes = append(notes, "nobody reads it")
	}
	if t.Deleted > 0 {
		notes = append(notes, fmt.Sprintf("%d DELETED before they were read", t.Deleted))
	}
	if t.Open > 0 {
		notes = append(notes, fmt.Sprintf("%d behind an open transaction", t.Open))
	}
	for _, p := range t.Partitions {
		if p.Error != "" {
			return append(notes, fmt.Sprintf("partition %d: %s", p.Partition, p.Error))
		}
	}
	return notes
}
