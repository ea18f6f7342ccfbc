package watermillkgo

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// UUIDHeader is the record header that carries a message's UUID. It is the one
// of watermill-kafka, so that either reads what the other has written.
const UUIDHeader = "_watermill_message_uuid"

// Marshal is the default of PublisherConfig.Marshal: the payload becomes the
// record's value, the metadata its headers, in the order of their names, and the
// UUID one header more. It refuses metadata of that header's name.
func Marshal(topic string, msg *message.Message) (*kgo.Record, error) {
	if _, taken := msg.Metadata[UUIDHeader]; taken {
		return nil, fmt.Errorf("metadata %s is reserved for the message's UUID", UUIDHeader)
	}
	headers := make([]kgo.RecordHeader, 0, len(msg.Metadata)+1)
	headers = append(headers, kgo.RecordHeader{Key: UUIDHeader, Value: []byte(msg.UUID)})
	for _, name := range slices.Sorted(maps.Keys(msg.Metadata)) {
		headers = append(headers, kgo.RecordHeader{Key: name, Value: []byte(msg.Metadata[name])})
	}
	return &kgo.Record{Topic: topic, Value: msg.Payload, Headers: headers}, nil
}

// Unmarshal is the default of SubscriberConfig.Unmarshal and the reverse of
// Marshal. Of headers with one name, the last becomes metadata.
//
// A record without UUIDHeader was written by something else than Watermill. Its
// message gets a UUID that is derived from topic, partition and offset, so that
// it is the same each time the record is delivered and who removes duplicates by
// UUID can.
func Unmarshal(r *kgo.Record) *message.Message {
	metadata := make(message.Metadata, len(r.Headers))
	uuid, known := "", false
	for _, h := range r.Headers {
		if h.Key == UUIDHeader {
			uuid, known = string(h.Value), true
			continue
		}
		metadata[h.Key] = string(h.Value)
	}
	if !known {
		uuid = derivedUUID(r)
	}
	msg := message.NewMessage(uuid, r.Value)
	msg.Metadata = metadata
	return msg
}

// derivedUUID makes a UUID of version 8 (RFC 9562: derived as its maker likes).
func derivedUUID(r *kgo.Record) string {
	u := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%d", r.Topic, r.Partition, r.Offset))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Split makes of a batch (SubscriberConfig.BatchRecords) one message of each of
// its records, in their order, as Unmarshal does. It is for handlers that go
// through a failed batch record by record, so that the rest of it does not share
// the fate of one: that one may go to a poison queue. The messages have the
// context of the batch, but for the record, and nobody waits for their acks: the
// batch is acked.
func Split(batch *message.Message) []*message.Message {
	records, _ := MessageRecordsFromCtx(batch.Context())
	messages := make([]*message.Message, len(records))
	for i, r := range records {
		messages[i] = Unmarshal(r)
		messages[i].SetContext(withRecords(batch.Context(), []*kgo.Record{r}))
	}
	return messages
}

type recordsKey struct{}

// withRecords puts what a message is made of into its context: one record, or
// those of its batch.
func withRecords(ctx context.Context, records []*kgo.Record) context.Context {
	return context.WithValue(ctx, recordsKey{}, records)
}

func recordFrom(ctx context.Context) (*kgo.Record, bool) {
	records, ok := MessageRecordsFromCtx(ctx)
	if !ok {
		return nil, false
	}
	return records[0], true
}

// MessageRecordsFromCtx returns the records of a received message: one, or with
// SubscriberConfig.BatchRecords those of its batch, in the partition's order. They
// must not be modified. It returns false if ctx is not a received message's. The
// functions below tell of the first of them.
func MessageRecordsFromCtx(ctx context.Context) ([]*kgo.Record, bool) {
	records, ok := ctx.Value(recordsKey{}).([]*kgo.Record)
	return records, ok
}

// MessageTopicFromCtx returns the topic that a received message was read from.
// It returns false if ctx is not a received message's; so do the others.
func MessageTopicFromCtx(ctx context.Context) (string, bool) {
	r, ok := recordFrom(ctx)
	if !ok {
		return "", false
	}
	return r.Topic, true
}

// MessagePartitionFromCtx returns the partition that a received message was read
// from.
func MessagePartitionFromCtx(ctx context.Context) (int32, bool) {
	r, ok := recordFrom(ctx)
	if !ok {
		return 0, false
	}
	return r.Partition, true
}

// MessagePartitionOffsetFromCtx returns a received message's offset in its
// partition.
func MessagePartitionOffsetFromCtx(ctx context.Context) (int64, bool) {
	r, ok := recordFrom(ctx)
	if !ok {
		return 0, false
	}
	return r.Offset, true
}

// MessageTimestampFromCtx returns a received message's time in Kafka: when it was
// produced or, if the topic is configured so, when it was appended.
func MessageTimestampFromCtx(ctx context.Context) (time.Time, bool) {
	r, ok := recordFrom(ctx)
	if !ok {
		return time.Time{}, false
	}
	return r.Timestamp, true
}

// MessageKeyFromCtx returns a received message's key, which is nil if it has
// none. It must not be modified.
func MessageKeyFromCtx(ctx context.Context) ([]byte, bool) {
	r, ok := recordFrom(ctx)
	if !ok {
		return nil, false
	}
	return r.Key, true
}
