package appointment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/arsmedicatech/webhooks/internal/writer"
	"github.com/arsmedicatech/webhooks/pkg/events"
	"github.com/arsmedicatech/webhooks/pkg/follow"
)

// ErrUnavailable says that the log can't be reached or is in other hands just now.
// After a command its outcome is unknown.
var ErrUnavailable = errors.New("the log can't be reached at the moment")

// ElsewhereError says that another process writes the calendar.
type ElsewhereError struct{ URL string }

func (e *ElsewhereError) Error() string { return "the calendar is written by " + e.URL }

// Meta is what comes with a command besides what it asks for.
type Meta struct {
	Actor   string // id of the user
	Command string // minted where the command entered
	// Idempotency is the fingerprint of its Idempotency-Key, see Fingerprint.
	Idempotency string
	// Allowed says whether the user may have to do with the appointment.
	Allowed func(*Appointment) bool
}

// Fingerprint joins what identifies a repeated command (user, route and
// Idempotency-Key) with what it asks for.
func Fingerprint(user, route, key string, body []byte) string {
	who := sha256.Sum256([]byte(user + "\x00" + route + "\x00" + key))
	what := sha256.Sum256(body)
	return hex.EncodeToString(who[:16]) + "." + hex.EncodeToString(what[:16])
}

func splitFingerprint(f string) (key, request string, ok bool) { return strings.Cut(f, ".") }

// Config of a Service.
type Config struct {
	// Kafka are the options of the connection.
	Kafka []kgo.Opt
	// Topic is the log of events; it exists.
	Topic string
	// Group shares out the partitions among the processes.
	Group string
	// TransactionalID is what the partitions' transactional ids begin with.
	TransactionalID string
	// Advertise is where the other processes reach this one's API.
	Advertise string
	// Member is this process's name in the group, see writer.Config.
	Member string
	Log    *slog.Logger
}

// Service takes commands and answers questions about appointments.
type Service struct {
	cfg     Config
	follow  *follow.Follower
	group   *writer.Group[*batch]
	history *history
	parts   []*calendars
}

// New makes the service of a topic with that many partitions; Run serves.
func New(cfg Config, partitions int) (*Service, error) {
	s := &Service{cfg: cfg, parts: make([]*calendars, partitions)}
	for p := range s.parts {
		s.parts[p] = newCalendars()
	}
	var err error
	s.follow, err = follow.New(follow.Config{Kafka: cfg.Kafka, Topic: cfg.Topic, Apply: s.apply, Progress: s.progress()})
	if err != nil {
		return nil, err
	}
	s.group, err = writer.New(writer.Config[*batch]{
		Kafka: cfg.Kafka, Topic: cfg.Topic, Group: cfg.Group,
		TransactionalID: cfg.TransactionalID, Advertise: cfg.Advertise, Member: cfg.Member, Log: cfg.Log,
		Begin: func(p int32) *batch { return s.parts[p].begin() },
		Await: s.follow.Await,
		End: func(ctx context.Context, p int32) (int64, error) {
			ends, err := s.follow.Ends(ctx)
			if err != nil {
				return 0, err
			}
			return ends[p], nil
		},
	})
	if err != nil {
		return nil, err
	}
	s.history = newHistory(cfg.Kafka, cfg.Topic, partitions)
	return s, nil
}

// Run serves until ctx ends; commands in flight are finished.
func (s *Service) Run(ctx context.Context) error {
	defer s.history.close()
	g, gctx := errgroup.WithContext(ctx)
	// The writers' last commits still look at the state: it is followed a little
	// longer than commands are taken.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return s.follow.Run(following) })
	g.Go(func() error {
		defer stop()
		// If it took a calendar over from who writes it now, that would be without a
		// writer until the log is read. It does not wait for transactions that are
		// open: a process that died may have left them, and who takes over ends them.
		select {
		case <-s.follow.Stable():
		case <-gctx.Done():
		}
		return s.group.Run(gctx)
	})
	return g.Wait()
}

// Restored is closed when the log has been folded to where its end was when Run
// began.
func (s *Service) Restored() <-chan struct{} { return s.follow.Restored() }

// Ends returns the high watermark of each partition of the log.
func (s *Service) Ends(ctx context.Context) ([]int64, error) { return s.follow.Ends(ctx) }

func (s *Service) apply(partition int32, records []*kgo.Record) {
	c := s.parts[partition]
	was := c.reason()
	c.fold(records, time.Now())
	if err := c.reason(); err != nil && was == nil {
		s.cfg.Log.Error("an event can't be read; the calendars of its partition take no commands until it is repaired", "error", err)
	}
}

func (c *calendars) reason() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.broken
}

// progress reports a long restore in words.
func (s *Service) progress() func(done, total int64) {
	began := time.Now()
	return func(done, total int64) {
		took := time.Since(began)
		if done >= total {
			s.cfg.Log.Info("restored", "events", total, "took", took.Round(time.Millisecond))
			return
		}
		left := "unknown"
		if done > 0 {
			left = time.Duration(float64(took) * float64(total-done) / float64(done)).Round(time.Second).String()
		}
		s.cfg.Log.Info("restoring", "done", done, "total", total, "left", left)
	}
}

// Create carries out the command and returns the new appointment.
func (s *Service) Create(ctx context.Context, m Meta, c Create) (*Appointment, error) {
	if err := id("provider_id", c.ProviderID); err != nil {
		return nil, err // it says which partition
	}
	c.ID = "appointment:" + uuid.NewString()
	p := events.Partition(c.ProviderID, int32(len(s.parts)))
	return s.submit(ctx, p, m, func(b *batch) ([]fact, error) {
		if !m.Allowed(&Appointment{PatientID: c.PatientID, ProviderID: c.ProviderID}) {
			return nil, forbidden()
		}
		return DecideCreate(c, b.taken)
	}, c.ID)
}

// Change carries out the command and returns the appointment after it.
func (s *Service) Change(ctx context.Context, m Meta, c Change) (*Appointment, error) {
	p, found := s.locate(c.ID)
	if !found {
		// It may have been made a moment ago, elsewhere.
		if err := s.sync(ctx); err != nil {
			return nil, err
		}
		if p, found = s.locate(c.ID); !found {
			return nil, s.missing()
		}
	}
	return s.submit(ctx, p, m, func(b *batch) ([]fact, error) {
		a := b.get(c.ID)
		switch {
		case a == nil:
			return nil, unknown()
		case !m.Allowed(a):
			return nil, forbidden()
		}
		return DecideChange(a, c, b.taken)
	}, c.ID)
}

// missing is the answer for an appointment that no calendar has: not that there
// is none, as long as some events can't be read.
func (s *Service) missing() error {
	for _, c := range s.parts {
		if err := c.reason(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return unknown()
}

func (s *Service) locate(id string) (int32, bool) {
	for p, c := range s.parts {
		c.mu.RLock()
		_, ok := c.byID[id]
		c.mu.RUnlock()
		if ok {
			return int32(p), true
		}
	}
	return 0, false
}

// submit has the partition's writer decide a command on the appointment id.
func (s *Service) submit(ctx context.Context, p int32, m Meta, decide func(*batch) ([]fact, error), id string) (*Appointment, error) {
	if m.Idempotency != "" {
		if err := s.keyElsewhere(ctx, p, m.Idempotency); err != nil {
			return nil, err
		}
	}
	var result *Appointment
	op := func(_ context.Context, b *batch) ([]*kgo.Record, error) {
		if err := b.base.reason(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if key, request, ok := splitFingerprint(m.Idempotency); ok {
			if done, known := b.key(key); known && done.alive(time.Now()) {
				if done.request != request {
					return nil, keyReused()
				}
				result = done.made
				return nil, nil
			}
		}
		facts, err := decide(b)
		if err != nil {
			return nil, err
		}
		records, err := s.record(b, m, facts)
		result = b.get(id)
		return records, err
	}
	err := s.group.Submit(ctx, p, op)
	switch {
	case err == nil:
		return result, nil
	case errors.Is(err, writer.ErrNotOwner):
		return nil, s.elsewhere(ctx, p, err)
	case errors.Is(err, writer.ErrUnknown):
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil, err
}

// keyElsewhere refuses a command whose Idempotency-Key was used for a calendar
// of another partition, which must have been another request.
func (s *Service) keyElsewhere(ctx context.Context, here int32, fingerprint string) error {
	if err := s.sync(ctx); err != nil {
		return err
	}
	key, _, _ := splitFingerprint(fingerprint)
	for p, c := range s.parts {
		c.mu.RLock()
		used, known := c.keys[key]
		c.mu.RUnlock()
		if known && used.alive(time.Now()) && int32(p) != here {
			return keyReused()
		}
	}
	return nil
}

// record makes events of facts, adds them to the batch and encodes them.
func (s *Service) record(b *batch, m Meta, facts []fact) ([]*kgo.Record, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	made := make([]events.Event, len(facts))
	records := make([]*kgo.Record, len(facts))
	for i, f := range facts {
		made[i] = events.Event{
			ID: uuid.NewString(), Type: f.kind, Time: now,
			Actor: m.Actor, Command: m.Command, Idempotency: m.Idempotency, Data: f.data,
		}
		var err error
		if records[i], err = made[i].Encode(s.cfg.Topic); err != nil {
			return nil, err
		}
	}
	for _, e := range made {
		b.add(e)
	}
	return records, nil
}

// elsewhere says who writes the partition, or that nobody does just now.
func (s *Service) elsewhere(ctx context.Context, p int32, cause error) error {
	url, err := s.group.Owner(ctx, p, time.Second)
	if err != nil {
		// Nothing was done all the same, as when a group's coordinator is just being
		// chosen: the caller can look again.
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, cause, err)
	}
	if url == "" || url == s.cfg.Advertise {
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	return &ElsewhereError{url}
}

// sync makes everything that was acknowledged before the call visible.
func (s *Service) sync(ctx context.Context) error {
	if err := s.follow.Sync(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Get returns an appointment.
func (s *Service) Get(ctx context.Context, id string) (*Appointment, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	p, ok := s.locate(id)
	if !ok {
		return nil, s.missing()
	}
	if err := s.current(p); err != nil {
		return nil, err
	}
	return s.parts[p].begin().get(id), nil
}

// current refuses to answer from a partition that is not folded any further.
func (s *Service) current(p int32) error {
	if err := s.parts[p].reason(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Filter chooses appointments; an empty field takes all.
type Filter struct {
	Date, PatientID, ProviderID string
	Status                      Status
}

// List returns the appointments of the filter that the caller may see, by date
// and start.
func (s *Service) List(ctx context.Context, f Filter, allowed func(*Appointment) bool) ([]*Appointment, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	of := events.Partition(f.ProviderID, int32(len(s.parts)))
	for p := range s.parts {
		if f.ProviderID != "" && int32(p) != of {
			continue
		}
		if err := s.current(int32(p)); err != nil {
			return nil, err
		}
	}
	return s.find(f, allowed), nil
}

func (s *Service) find(f Filter, allowed func(*Appointment) bool) []*Appointment {
	found := []*Appointment{}
	for _, c := range s.parts {
		c.mu.RLock()
		for en := range c.candidates(f) {
			if f.matches(en.now) && allowed(en.now) {
				found = append(found, en.now)
			}
		}
		c.mu.RUnlock()
	}
	slices.SortFunc(found, Compare)
	return found
}

// Free is a stretch of time in which the provider has no appointment.
type Free struct {
	Start string `json:"start_time"`
	End   string `json:"end_time"`
}

const (
	opens  = 9 * 60 // business hours, in minutes
	closes = 17 * 60
	grid   = 30
)

// Slots returns where an appointment of that many minutes fits on the
// provider's day.
func (s *Service) Slots(ctx context.Context, providerID, date string, minutes int) ([]Free, error) {
	if _, err := time.Parse(time.DateOnly, date); err != nil {
		return nil, Invalid("date", "must be a date of the form YYYY-MM-DD")
	}
	if minutes < 1 || minutes > closes-opens {
		return nil, Invalid("duration", fmt.Sprintf("must be between 1 and %d minutes", closes-opens))
	}
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	p := events.Partition(providerID, int32(len(s.parts)))
	if err := s.current(p); err != nil {
		return nil, err
	}
	b := s.parts[p].begin()
	clock := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
	free := []Free{}
	for at := opens; at+minutes <= closes; at += grid {
		slot := &Appointment{ProviderID: providerID, Date: date, Start: clock(at), End: clock(at + minutes)}
		if b.taken(slot) == nil {
			free = append(free, Free{slot.Start, slot.End})
		}
	}
	return free, nil
}

// History returns every event of an appointment, in order.
func (s *Service) History(ctx context.Context, id string) ([]events.Event, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	p, ok := s.locate(id)
	if !ok {
		return nil, s.missing()
	}
	if err := s.current(p); err != nil {
		return nil, err
	}
	c := s.parts[p]
	c.mu.RLock()
	offsets := slices.Clone(c.byID[id].offsets)
	c.mu.RUnlock()
	found, err := s.history.read(ctx, p, offsets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return found, nil
}

func forbidden() error {
	return &Refusal{Kind: Forbidden, Code: "access_denied", Message: "Access denied"}
}

func keyReused() error {
	return &Refusal{Kind: Conflict, Code: "idempotency_key_reused", Message: "This Idempotency-Key was used for another request: choose a new one"}
}

// Commit implements writer.Batch.
func (b *batch) Commit(_ context.Context, records []*kgo.Record) error {
	b.commit(records)
	return nil
}
