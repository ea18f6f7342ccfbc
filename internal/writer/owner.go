package writer

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/transaction"
)

// owner writes one partition for as long as it is assigned to this process.
type owner[B Batch] struct {
	cfg       *Config[B]
	partition int32
	ops       chan *pending[B]
	cancel    context.CancelFunc
	done      chan struct{}
	// end is where the log ends as far as this writer knows, and so where its
	// next record must come to stand. Only run's goroutine touches it.
	end int64

	// mu guards gone: nobody may queue an operation after the last were refused.
	mu   sync.RWMutex
	gone bool
}

// pending is an operation on its way. Whoever moves taken from false to true
// decides: the writer, to carry it out, or the caller, to give up on it.
type pending[B Batch] struct {
	ctx    context.Context // the caller's, for the time the operation takes
	op     Op[B]
	taken  atomic.Bool
	answer chan error
}

func (o *owner[B]) stop() { o.cancel() }

func (o *owner[B]) submit(ctx context.Context, op Op[B]) error {
	p := &pending[B]{ctx: ctx, op: op, answer: make(chan error, 1)}
	o.mu.RLock()
	if o.gone {
		o.mu.RUnlock()
		return ErrNotOwner
	}
	select {
	case o.ops <- p:
		o.mu.RUnlock()
	default:
		o.mu.RUnlock()
		return fmt.Errorf("%w: its queue is full", ErrNotOwner)
	}
	select {
	case err := <-p.answer:
		return err
	case <-ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return fmt.Errorf("%w: %w", ErrNotOwner, context.Cause(ctx))
		}
		return fmt.Errorf("%w: %w", ErrUnknown, context.Cause(ctx))
	}
}

// run serves until ctx ends. Whatever goes wrong, it begins again: fenced or in
// doubt, the truth is in the log.
func (o *owner[B]) run(ctx context.Context) {
	defer close(o.done)
	defer o.refuse()
	log := o.cfg.Log.With("topic", o.cfg.Topic, "partition", o.partition)
	for ctx.Err() == nil {
		err := o.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		log.Warn("writer begins again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (o *owner[B]) refuse() {
	o.mu.Lock()
	o.gone = true
	o.mu.Unlock()
	for {
		select {
		case p := <-o.ops:
			p.answer <- ErrNotOwner
		default:
			return
		}
	}
}

// serve takes the partition over and carries out operations until one fails in
// a way that leaves this writer in doubt.
func (o *owner[B]) serve(ctx context.Context) error {
	id := o.cfg.TransactionalID + "-" + o.cfg.Topic + "-" + strconv.Itoa(int(o.partition))
	client, err := kgo.NewClient(append(slices.Clone(o.cfg.Kafka),
		kgo.TransactionalID(id),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RecordDeliveryTimeout(commitTimeout),
		kgo.ProducerLinger(0), // operations already share transactions
	)...)
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	defer client.Close()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fmt.Errorf("initialise transactional id %s: %w", id, err)
	}
	if o.end, err = o.cfg.End(ctx, o.partition); err != nil {
		return err
	}
	if err := o.cfg.Await(ctx, o.partition, o.end); err != nil {
		return err
	}
	o.cfg.Log.Debug("writer took over", "topic", o.cfg.Topic, "partition", o.partition, "end", o.end)
	for {
		batch := o.take(ctx)
		if batch == nil {
			return nil
		}
		if err := o.carryOut(ctx, client, batch); err != nil {
			return err
		}
	}
}

// take waits for an operation and returns it with all that wait behind it.
func (o *owner[B]) take(ctx context.Context) []*pending[B] {
	var batch []*pending[B]
	for {
		select {
		case p := <-o.ops:
			if p.taken.CompareAndSwap(false, true) {
				batch = append(batch, p)
			}
		case <-ctx.Done():
			for _, p := range batch {
				p.answer <- ErrNotOwner
			}
			return nil
		}
		if len(batch) == maxBatch || len(batch) > 0 && len(o.ops) == 0 {
			return batch
		}
	}
}

// carryOut decides the operations one after the other and writes what they
// decided in one transaction. Everybody is answered after it, also with
// refusals, which may rest on what the batch's earlier operations decided.
func (o *owner[B]) carryOut(ctx context.Context, client *kgo.Client, ops []*pending[B]) error {
	// Losing the partition does not interrupt a transaction; its time-out does.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if o.cfg.Intent != nil {
		if err := o.intend(ctx, client); err != nil {
			for _, p := range ops {
				p.answer <- fmt.Errorf("%w: %w", ErrNotOwner, err) // nothing was decided
			}
			return err
		}
	}
	var (
		batch   = o.cfg.Begin(o.partition)
		answers = make([]error, len(ops))
		records []*kgo.Record
	)
	for i, p := range ops {
		decided, err := p.op(p.ctx, batch)
		if answers[i] = err; err != nil {
			continue
		}
		for _, r := range decided {
			r.Topic, r.Partition = o.cfg.Topic, o.partition
		}
		records = append(records, decided...)
	}
	var failed, outcome error
	switch {
	case len(records) > 0:
		failed, outcome = o.write(ctx, client, batch, records), ErrUnknown
	case o.cfg.Intent != nil:
		failed, outcome = o.finish(ctx, client, kgo.TryAbort, o.end), ErrNotOwner
	default:
		failed, outcome = o.confirm(ctx), ErrNotOwner
	}
	for i, p := range ops {
		if failed != nil {
			answers[i] = fmt.Errorf("%w: %w", outcome, failed)
		}
		p.answer <- answers[i]
	}
	return failed
}

// confirm makes sure that nobody else has written to the partition. A
// transaction is refused by the broker when this process has lost the partition
// without knowing; answers that wrote nothing never met the broker, and would
// rest on a state that is long gone.
func (o *owner[B]) confirm(ctx context.Context) error {
	end, err := o.cfg.End(ctx, o.partition)
	if err != nil {
		return err
	}
	if end > o.end {
		return fmt.Errorf("another process has written: the log ends at %d, not at %d", end, o.end)
	}
	return nil
}

// intend begins a transaction with the intent.
func (o *owner[B]) intend(ctx context.Context, client *kgo.Client) error {
	return o.begin(ctx, client, []*kgo.Record{{Topic: o.cfg.Topic, Partition: o.partition, Key: o.cfg.Intent}})
}

// write writes a batch: all of its transaction, or, after an intent, the rest.
func (o *owner[B]) write(ctx context.Context, client *kgo.Client, batch B, records []*kgo.Record) error {
	if o.cfg.Intent == nil {
		if err := o.begin(ctx, client, records); err != nil {
			return err
		}
	} else if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("append: %w", err)
	}
	if err := o.finish(ctx, client, kgo.TryCommit, records[len(records)-1].Offset); err != nil {
		return err
	}
	return batch.Commit(ctx, records)
}

// begin begins a transaction with records, which must come to stand where the
// log is known to end.
func (o *owner[B]) begin(ctx context.Context, client *kgo.Client, records []*kgo.Record) error {
	if err := client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		// Beginning again initialises the id, which ends this transaction.
		return fmt.Errorf("append: %w", err)
	}
	if err := transaction.Known(ctx, client, records...); err != nil {
		return err
	}
	if first := records[0].Offset; first != o.end {
		// Something stands between that was not known when this was decided.
		return fmt.Errorf("append: the first record stands at %d, not at the known end %d", first, o.end)
	}
	return nil
}

// finish ends a transaction whose last record stands at the offset.
func (o *owner[B]) finish(ctx context.Context, client *kgo.Client, how kgo.TransactionEndTry, last int64) error {
	if err := client.EndTransaction(ctx, how); err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	o.end = last + 2 // the transaction's marker comes behind it
	return nil
}
