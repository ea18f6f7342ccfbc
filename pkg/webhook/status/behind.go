package status

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// endsFor is how long the ends of the logs are taken for what they were.
const endsFor = time.Second

// ends are the ends of the logs, looked up at most once a second.
type ends struct {
	turn  chan struct{} // full during a look-up: who asks meanwhile shares it
	at    time.Time
	known []end
}

// end is where a partition ends, and where what is young enough to be kept of it
// begins: at most there.
type end struct {
	key         string // of its position
	begin, stop int64
}

// Behind returns how many records are not projected yet, markers of
// transactions included: 0 when the answers to questions are up to date. The ends
// of the logs that it is counted from are up to a second old.
func (p *Projection) Behind(ctx context.Context) (int, error) {
	known, keys, err := p.lookUp(ctx)
	if err != nil {
		return 0, err
	}
	positions, err := p.positions(ctx, keys)
	if err != nil {
		return 0, err
	}
	return missing(known, positions), nil
}

// missing counts what lies between positions and ends.
func missing(known []end, positions map[string]int64) int {
	n := int64(0)
	for _, e := range known {
		n += max(e.stop-max(positions[e.key], e.begin), 0)
	}
	return int(n)
}

// lookUp returns the ends of the logs, and the keys of their positions.
func (p *Projection) lookUp(ctx context.Context) ([]end, []string, error) {
	select {
	case p.ends.turn <- struct{}{}:
		defer func() { <-p.ends.turn }()
	case <-ctx.Done():
		return nil, nil, unavailable("wait for the ends of the deliveries' topics", ctx.Err())
	}
	if p.ends.known == nil || time.Since(p.ends.at) > endsFor {
		asked := time.Now()
		known, err := p.findEnds(ctx)
		if err != nil {
			return nil, nil, err
		}
		p.ends.known, p.ends.at = known, asked
	}
	keys := make([]string, len(p.ends.known))
	for i, e := range p.ends.known {
		keys[i] = e.key
	}
	return p.ends.known, keys, nil
}

// askFor is how long Kafka may take to tell the ends: others wait for the answer.
const askFor = 5 * time.Second

// findEnds looks up the ends first. Kafka names no offset for a time that nothing
// has come after, and the end as it is then, that kadm takes instead, may lie
// behind what came in between.
func (p *Projection) findEnds(ctx context.Context) ([]end, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	stops, err := p.adm.ListEndOffsets(ctx, p.topics()...)
	if err == nil {
		err = stops.Error()
	}
	if err != nil {
		return nil, unavailable("find the ends of the deliveries' topics", err)
	}
	begins, err := p.adm.ListOffsetsAfterMilli(ctx, p.cfg.Now().Add(-p.cfg.Retention).UnixMilli(), p.topics()...)
	if err == nil {
		err = begins.Error()
	}
	if err != nil {
		return nil, unavailable("find where the deliveries that are kept begin", err)
	}
	known := []end{}
	stops.Each(func(o kadm.ListedOffset) {
		e := end{key: p.positionKey(o.Topic, o.Partition), stop: o.Offset}
		if b, ok := begins.Lookup(o.Topic, o.Partition); ok {
			e.begin = min(b.Offset, e.stop)
		}
		known = append(known, e)
	})
	return known, nil
}
