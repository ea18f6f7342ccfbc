package status

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Write writes a batch of one partition, as a session does, without Kafka. It
// reports false if Redis is behind where the batch begins.
func (p *Projection) Write(ctx context.Context, from int64, records ...*kgo.Record) (bool, error) {
	read := readDelivery
	if records[0].Topic == p.cfg.Topics.Attempts() {
		read = readAttempt
	}
	b, err := p.read(records, read)
	if err != nil {
		return false, err
	}
	ok, err := p.write(ctx, p.positionKey(records[0].Topic, records[0].Partition), from, from+int64(len(records)), b.entries)
	p.trimmer.wrote(ctx, b.entries)
	return ok, err
}

// PositionKey names where the position of a partition is kept.
func (p *Projection) PositionKey(topic string, partition int32) string {
	return p.positionKey(topic, partition)
}

// Starts says where a new session begins partitions of a topic.
func (p *Projection) Starts(ctx context.Context, topic string, partitions []int32) (map[int32]kgo.Offset, error) {
	s := &session{p: p, written: map[string]int64{}}
	return s.startAt(ctx, topic, partitions)
}
