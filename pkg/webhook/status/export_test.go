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
	entries := p.read(records, read)
	ok, err := p.write(ctx, p.positionKey(records[0].Topic, records[0].Partition), from, from+int64(len(records)), entries)
	p.trimmer.wrote(ctx, entries)
	return ok, err
}

// PositionKey names where the position of a partition is kept.
func (p *Projection) PositionKey(topic string, partition int32) string {
	return p.positionKey(topic, partition)
}
