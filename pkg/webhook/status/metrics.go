package status

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	records  *prometheus.CounterVec
	batch    prometheus.Histogram
	behind   prometheus.Gauge
	rebuilds prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhooks_status_records_total", Help: "Records of deliveries and attempts read, by what became of them."}, []string{"result"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_status_batch_seconds", Help: "Time to write a batch of records to Redis.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_status_behind", Help: "Records of all partitions that are not projected yet, as of the last look."}),
		rebuilds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_status_rebuilds_total", Help: "Times that Redis had lost what was projected."}),
	}
	for _, c := range []prometheus.Collector{m.records, m.batch, m.behind, m.rebuilds} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the status: %w", err)
		}
	}
	return m, nil
}

// read counts what became of records.
func (m *metrics) read(b batch) {
	m.records.WithLabelValues("projected").Add(float64(len(b.entries)))
	m.records.WithLabelValues("too_old").Add(float64(b.old))
	m.records.WithLabelValues("unreadable").Add(float64(b.unreadable))
}
