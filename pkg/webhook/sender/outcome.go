package sender

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// encode makes the records that an outcome leaves: the hand-over to a retry
// topic or the dead letters, if there is one, and the attempt.
func (s *Sender) encode(r *kgo.Record, d *webhook.Delivery, o outcome) (handOver, attempt *kgo.Record, err error) {
	latency := float64(o.latency.Microseconds()) / 1000
	a := webhook.Attempt{
		DeliveryID: d.ID, SubscriptionID: d.SubscriptionID, EventType: d.EventType, Origin: d.Origin, EventPosition: position(d),
		Attempt: d.Attempt, At: o.at.UTC(), Outcome: o.kind, Status: o.status, Error: o.err,
		LatencyMS: latency, Answer: strings.ToValidUTF8(string(o.answer), "\uFFFD"),
		Disable: o.disable,
	}
	history := func() []webhook.PastAttempt {
		return append(slices.Clone(d.History), webhook.PastAttempt{
			Attempt: d.Attempt, At: o.at.UTC(), Status: o.status, Error: o.err, LatencyMS: latency,
		})
	}
	switch o.kind {
	case webhook.Failed:
		due := o.due.UTC()
		a.NextAttemptAt = &due
		next := *d
		next.Attempt, next.NotBefore, next.History = d.Attempt+1, o.due, history()
		handOver, err = next.Encode(s.cfg.Topics.Retry(o.delay))
	case webhook.Dead:
		dead := webhook.DeadLetter{
			Reason: webhook.ReasonExhausted, Error: "the last attempt failed: " + o.cause(), At: time.Now().UTC(), Source: webhook.SourceOf(r),
			Delivery: &webhook.DeadDelivery{
				DeliveryID: d.ID, SubscriptionID: d.SubscriptionID, EventType: d.EventType, Origin: d.Origin,
				EventPosition: position(d), Body: string(d.Body), Attempts: history(),
			},
		}
		handOver, err = dead.Encode(s.cfg.Topics.DeadLetters())
	}
	if err != nil {
		return nil, nil, err
	}
	value, err := json.Marshal(a)
	if err != nil {
		return nil, nil, fmt.Errorf("encode attempt of delivery %s: %w", d.ID, err)
	}
	return handOver, &kgo.Record{Topic: s.cfg.Topics.Attempts(), Key: []byte(d.SubscriptionID), Value: value}, nil
}

// position is where the delivery's event stands; a test has none.
func position(d *webhook.Delivery) string {
	if d.Test() {
		return ""
	}
	return d.Event.String()
}

// cause says in a few words why an attempt failed.
func (o outcome) cause() string {
	if o.status != 0 && o.err == "status" {
		return "status " + strconv.Itoa(o.status)
	}
	return o.err
}

// observe counts and logs an outcome.
func (s *Sender) observe(d *webhook.Delivery, o outcome) {
	s.metrics.attempts.WithLabelValues(o.kind, o.class()).Inc()
	if o.kind == webhook.Delivered || o.status != 0 {
		s.metrics.latency.Observe(o.latency.Seconds())
	}
	s.log.attempt(d, o)
}

// class is the outcome's reason as a metric's label: few values.
func (o outcome) class() string {
	if o.status != 0 && (o.err == "" || o.err == "status") {
		return strconv.Itoa(o.status/100) + "xx"
	}
	return o.err
}

type metrics struct {
	attempts   *prometheus.CounterVec
	claims     *prometheus.CounterVec
	latency    prometheus.Histogram
	inFlight   prometheus.Gauge
	lateness   prometheus.Histogram
	expired    prometheus.Gauge
	unreadable prometheus.Counter
	parked     prometheus.Counter
	lanes      prometheus.Gauge
	alone      prometheus.Gauge
}

// broken counts an endpoint that is left alone from now on, or no more.
func (m *metrics) broken(now bool) {
	if now {
		m.alone.Inc()
	} else {
		m.alone.Dec()
	}
}

func newMetrics(reg prometheus.Registerer, held func() int64, unrecorded func() int) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhooks_delivery_attempts_total",
			Help: "Attempts by outcome (delivered, failed: to be retried, dead, discarded) and by class of status or error.",
		}, []string{"outcome", "class"}),
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhooks_delivery_claims_total", Help: "Claims asked of Redis, by answer."}, []string{"verdict"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_delivery_latency_seconds", Help: "Time from dialling to the end of the answer's head.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_deliveries_in_flight", Help: "Deliveries that have a place among the requests under way."}),
		lateness: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_retry_lateness_seconds", Help: "Time from when a retry was due to its request.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
		expired: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_deliveries_expired", Help: "Deliveries that Kafka has deleted and no sender has settled, as of the last look; anything but 0 is an alarm."}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_delivery_unreadable_total", Help: "Records that were no deliveries and became dead letters."}),
		parked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_deliveries_parked_total", Help: "Deliveries that their endpoint's lane could not hold, or held for too long, and that were parked."}),
		lanes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_lanes", Help: "Endpoints that this sender has delivered to lately."}),
		alone: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_endpoints_left_alone", Help: "Endpoints that fail and fail, and get a single request from time to time."}),
	}
	if reg != nil {
		reg.MustRegister(m.attempts, m.claims, m.latency, m.inFlight, m.lateness, m.expired, m.unreadable, m.parked, m.lanes, m.alone, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_deliveries_held_bytes", Help: "Bytes of the records that are read and not settled.",
		}, func() float64 { return float64(held()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_outcomes_unrecorded", Help: "Outcomes that wait to be on record and marked; if the process is killed their requests may be made twice.",
		}, func() float64 { return float64(unrecorded()) }))
	}
	return m
}
