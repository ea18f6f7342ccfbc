package chaos

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/arsmedicatech/webhooks/test/harness"
)

const (
	// rivals is how many pairs of commands want the same time: as many as a
	// transaction of the writer takes, and some more.
	rivals = 400
	// overtaking is shorter than what the writer gives itself for a transaction.
	overtaking = 9500 * time.Millisecond
)

// overtake stops an owner with commands under way, so that it has decided some
// and not written them, and has not even read others. The owner goes on when the
// next one has acknowledged commands for the same times, and before it would give
// up what it had begun: only the brokers and the log can tell it that it was
// overtaken.
func (h *historian) overtake(p *plan, d *harness.Deployment, adm *kadm.Client, victim *harness.Process, struck func(...string)) {
	ctx, cancel := context.WithTimeout(h.t.Context(), recoverLimit)
	defer cancel()
	group, url := d.Prefix+"appointments", d.URLs[slices.Index(d.Of("appointments"), victim)]
	others := slices.DeleteFunc(slices.Clone(d.URLs), func(one string) bool { return one == url })
	var of []string
	for len(of) == 0 && wait(ctx, 20*time.Millisecond) { // a rebalance may still be going on
		of = h.owned(adm, group, url)
	}
	if len(of) == 0 {
		h.t.Fatalf("%s owns nothing", victim.Name())
	}
	h.overtaken++
	r := h.newRivals(ctx, of[0], others)

	var formers, nexts sync.WaitGroup
	answered := make(chan struct{}, rivals)
	for n := range rivals {
		formers.Go(func() {
			r.move(ctx, r.formers[n], n, url)
			answered <- struct{}{}
		})
	}
	for range 1 + p.rand.IntN(rivals/4) {
		<-answered
	}
	victim.Suspend()
	give := time.NewTimer(overtaking)
	defer give.Stop()
	struck(of...)
	next := -1
	for next < 0 && wait(ctx, 20*time.Millisecond) {
		next = slices.IndexFunc(others, func(one string) bool { return slices.Contains(h.owned(adm, group, one), of[0]) })
	}
	if next < 0 {
		h.t.Fatalf("nobody writes partition %s after %s was stopped", of[0], victim.Name())
	}
	for n := range rivals {
		nexts.Go(func() { r.move(ctx, r.nexts[n], n, others[next]) })
	}
	all := make(chan struct{})
	go func() { nexts.Wait(); close(all) }()
	select {
	case <-all:
	case <-give.C:
	}
	victim.Resume()
	formers.Wait()
	nexts.Wait()
}

// rivalry are appointments of one provider, of which two each will want the same
// time. They are moved there: a command with an Idempotency-Key would look at the
// log first.
type rivalry struct {
	h              *historian
	number         int
	others         []string
	formers, nexts [rivals]shown
}

// newRivals books them in a partition, all at times of their own.
func (h *historian) newRivals(ctx context.Context, partition string, others []string) *rivalry {
	n, err := strconv.Atoi(partition)
	if err != nil {
		h.t.Fatal(err)
	}
	r := &rivalry{h: h, number: h.overtaken, others: others}
	provider := providerOf(int32(n), fmt.Sprintf("rival-%d", r.number))
	var made sync.WaitGroup
	for n := range rivals {
		for year, to := range map[int]*shown{2041: &r.formers[n], 2042: &r.nexts[n]} {
			made.Go(func() {
				fields := at(year, n)
				fields["patient_id"], fields["provider_id"] = "patient:1", provider
				cmd := &command{kind: "create", key: fmt.Sprintf("r-%d-%d-%d", r.number, year, n)}
				*to = h.carryOut(ctx, r.next("", n), cmd, http.MethodPost, "/api/appointments", fields)
			})
		}
	}
	made.Wait()
	return r
}

// move moves one of them to the n-th time, by way of the instance first.
func (r *rivalry) move(ctx context.Context, a shown, n int, first string) {
	fields := at(2040, n)
	cmd := &command{kind: "move", key: "r-" + a.ID, id: a.ID}
	fields["notes"] = cmd.key
	r.h.carryOut(ctx, r.next(first, n), cmd, http.MethodPut, "/api/appointments/"+a.ID, fields)
}

// next returns the instance first, if there is one, and then the others in turn.
func (r *rivalry) next(first string, n int) func() string {
	return func() string {
		url := cmp.Or(first, r.others[n%len(r.others)])
		first, n = "", n+1
		return url
	}
}

// at returns the n-th ten minutes of a year, but for the last.
func at(year, n int) map[string]any {
	from := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * 10 * time.Minute)
	return map[string]any{
		"appointment_date": from.Format(time.DateOnly), "start_time": from.Format("15:04"), "end_time": from.Add(9 * time.Minute).Format("15:04"),
	}
}
