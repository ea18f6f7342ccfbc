package status_test

import (
	"os"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
)

// The package's comment says what a delivery takes of Redis.
func TestMemory(t *testing.T) {
	if os.Getenv("REDIS_URL") == "" {
		t.Skip("REDIS_URL is not set: the embedded Redis does not tell what it uses")
	}
	const n = 1000
	e := newEnv(t)
	p := e.projection()
	sub := newSub()
	var deliveries, attempts []*kgo.Record
	for range n {
		m := e.made(sub)
		deliveries, attempts = append(deliveries, m.record()), append(attempts, m.attempt(1, webhook.Delivered))
	}
	twice := e.made(sub)
	attempts = append(attempts, twice.attempt(1, webhook.Failed), twice.attempt(2, webhook.Delivered))
	e.write(p, 0, append(deliveries, twice.record())...)
	e.write(p, 0, attempts...)
	usage := func(pattern string) (bytes, keys int64) {
		found := e.db.Scan(e.ctx, 0, e.prefix+pattern, 1000).Iterator()
		for found.Next(e.ctx) {
			used, err := e.db.MemoryUsage(e.ctx, found.Val(), 0).Result()
			if err != nil {
				t.Fatal(err)
			}
			bytes, keys = bytes+used, keys+1
		}
		return bytes, keys
	}
	all, keys := usage("d:*")
	index, _ := usage("i:*")
	figures, minutes := usage("m:*")
	t.Logf("a delivery %d, its entry %d, figures of a minute %d bytes", all/keys, index/keys, figures/minutes)
	if keys != n+1 || all/keys > 250 || index/keys > 120 || figures/minutes > 200 {
		t.Errorf("that is more than is said")
	}
}
