// Package registry is the table of subscriptions, read from the compacted topic
// and indexed by what they match. Router, sender and API each keep one.
package registry

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/follow"
	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// Config of a Registry.
type Config struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	// Topic is the compacted topic of subscriptions.
	Topic string
	Log   *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Unreadable, if set, is told of records that are no subscriptions and came
	// after the table was restored; earlier ones it was told of before. All are
	// passed over.
	Unreadable func(rec *kgo.Record, cause error)
}

// Registry is the table. Its methods may be called from any goroutine.
type Registry struct {
	cfg    Config
	follow *follow.Follower

	mu   sync.RWMutex
	byID map[string]webhook.Registered
	// byName holds, under each event name of an active rule, who has one.
	byName map[string]map[string]webhook.Registered
	// byType holds what has been asked for since the last change: under each type
	// of event those of all names that cover it, once each and in order of their
	// ids.
	byType map[string][]webhook.Registered
}

// New makes an empty registry; Run fills it and keeps it up to date.
func New(cfg Config) (*Registry, error) {
	r := &Registry{cfg: cfg, byID: map[string]webhook.Registered{}, byName: map[string]map[string]webhook.Registered{}, byType: map[string][]webhook.Registered{}}
	var err error
	r.follow, err = follow.New(follow.Config{Kafka: cfg.Kafka, Topic: cfg.Topic, Apply: r.apply})
	if err != nil {
		return nil, err
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(&activeCollector{r})
	}
	return r, nil
}

// Run follows the topic until ctx ends.
func (r *Registry) Run(ctx context.Context) error { return r.follow.Run(ctx) }

// Stable is closed when the table has been read to where it was stable when Run
// began: as far as no transaction was open.
func (r *Registry) Stable() <-chan struct{} { return r.follow.Stable() }

// Restored is closed when the table has been read to where its end was when Run
// began.
func (r *Registry) Restored() <-chan struct{} { return r.follow.Restored() }

// Sync returns when every change that was acknowledged before the call is in
// the table.
func (r *Registry) Sync(ctx context.Context) error { return r.follow.Sync(ctx) }

// Await returns when the partition of the table has been read up to the offset,
// which is not included.
func (r *Registry) Await(ctx context.Context, partition int32, offset int64) error {
	return r.follow.Await(ctx, partition, offset)
}

// End returns the high watermark of a partition of the table.
func (r *Registry) End(ctx context.Context, partition int32) (int64, error) {
	ends, err := r.follow.Ends(ctx)
	if err != nil {
		return 0, err
	}
	return ends[partition], nil
}

func (r *Registry) apply(partition int32, records []*kgo.Record) {
	for _, rec := range records {
		if rec.Value == nil {
			r.put(string(rec.Key), nil, webhook.Position{})
			continue
		}
		s, err := webhook.ParseSubscription(rec.Key, rec.Value)
		if err != nil {
			r.cfg.Log.Error("unreadable subscription passed over",
				"topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "error", err)
			if r.cfg.Unreadable != nil && r.live() {
				r.cfg.Unreadable(rec, err)
			}
			continue
		}
		r.put(s.ID, s, webhook.Position{Partition: partition, Offset: rec.Offset})
	}
}

func (r *Registry) live() bool {
	select {
	case <-r.follow.Restored():
		return true
	default:
		return false
	}
}

// put replaces what is known of a subscription; nil removes it.
func (r *Registry) put(id string, s *webhook.Subscription, at webhook.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.byType)
	if old, ok := r.byID[id]; ok {
		for _, name := range activeNames(old.Subscription) {
			delete(r.byName[name], id)
			if len(r.byName[name]) == 0 {
				delete(r.byName, name)
			}
		}
		delete(r.byID, id)
	}
	if s == nil {
		return
	}
	entry := webhook.Registered{Subscription: s, At: at}
	r.byID[id] = entry
	for _, name := range activeNames(s) {
		if r.byName[name] == nil {
			r.byName[name] = map[string]webhook.Registered{}
		}
		r.byName[name][id] = entry
	}
}

func activeNames(s *webhook.Subscription) []string {
	var names []string
	for _, rule := range s.Rules {
		if rule.Active && !slices.Contains(names, rule.EventName) {
			names = append(names, rule.EventName)
		}
	}
	return names
}

// Get returns a subscription, also one that is deleted as long as its record is
// kept.
func (r *Registry) Get(id string) (webhook.Registered, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.byID[id]
	return e, ok
}

// All returns every subscription, in no order, also those that are deleted as
// long as their records are kept.
func (r *Registry) All() []webhook.Registered {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]webhook.Registered, 0, len(r.byID))
	for _, e := range r.byID {
		all = append(all, e)
	}
	return all
}

// Match returns the subscriptions that an event of that type at that position
// of the log is for, in order of their ids. Its cost grows with those that have
// ever matched the type, as far as their records remember, not with those that
// exist.
func (r *Registry) Match(eventType string, at webhook.Position) []webhook.Registered {
	var found []webhook.Registered
	for _, e := range r.candidates(eventType) {
		if e.Subscription.Matches(eventType, at) {
			found = append(found, e)
		}
	}
	return found
}

// candidates returns who has an active rule that covers the type. The slice is
// shared and not changed any more.
func (r *Registry) candidates(eventType string) []webhook.Registered {
	r.mu.RLock()
	found, ok := r.byType[eventType]
	r.mu.RUnlock()
	if ok {
		return found
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	for _, name := range covering(eventType) {
		for id, e := range r.byName[name] {
			if !seen[id] {
				seen[id] = true
				found = append(found, e)
			}
		}
	}
	slices.SortFunc(found, func(a, b webhook.Registered) int { return cmp.Compare(a.Subscription.ID, b.Subscription.ID) })
	r.byType[eventType] = found
	return found
}

// covering lists the event names that cover a type: "a.b" is covered by "a.b",
// "a.*" and "*".
func covering(eventType string) []string {
	names := []string{eventType, "*"}
	for i, c := range eventType {
		if c == '.' {
			names = append(names, eventType[:i+1]+"*")
		}
	}
	return names
}

// activeCollector counts subscriptions when it is asked.
type activeCollector struct{ r *Registry }

var activeDesc = prometheus.NewDesc("webhooks_active_subscriptions",
	"Enabled subscriptions by event name.", []string{"event_name"}, nil)

// Describe implements prometheus.Collector.
func (c *activeCollector) Describe(ch chan<- *prometheus.Desc) { ch <- activeDesc }

// Collect implements prometheus.Collector.
func (c *activeCollector) Collect(ch chan<- prometheus.Metric) {
	counts := map[string]int{}
	for _, e := range c.r.All() {
		if s := e.Subscription; s.Enabled && !s.Deleted {
			counts[strings.ToValidUTF8(s.EventName, "")]++
		}
	}
	for name, n := range counts {
		ch <- prometheus.MustNewConstMetric(activeDesc, prometheus.GaugeValue, float64(n), name)
	}
}
