package trace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed says that the lanes have ended.
var ErrClosed = errors.New("trace: the lanes have ended")

// Tracer has a Lane for each lane.
type Tracer struct {
	epoch time.Time
	on    atomic.Bool
	post  func(lane int, fn func()) error
	lanes []*Lane

	mu      sync.Mutex // guards what follows, and has one look at a time
	watches map[*Watch]struct{}
}

// New makes a Tracer for so many lanes, which is switched off. post runs a function on a lane, soon; it fails when the
// lane has ended. It is not called before the first Watch.
func New(lanes int, post func(lane int, fn func()) error) *Tracer {
	t := &Tracer{epoch: time.Now(), post: post, watches: map[*Watch]struct{}{}}
	for range lanes {
		t.lanes = append(t.lanes, newLane(t))
	}
	return t
}

// Lane is one of them.
func (t *Tracer) Lane(i int) *Lane { return t.lanes[i] }

// Switch has commands timed from now on, or no longer.
func (t *Tracer) Switch(on bool) { t.on.Store(on) }

// On tells whether commands are timed.
func (t *Tracer) On() bool { return t.on.Load() }

// Watch gathers what is counted from when it is opened.
type Watch struct {
	tracer *Tracer
	seen   Seen // guarded by tracer.mu
}

// Seen is what was counted between two calls of Take.
type Seen struct {
	Counts map[Key]*Counts
	Slow   []Slow // the slowest, first; MaxSlow at most
	Missed uint64 // commands that were not timed: too many at a time
}

// Watch opens one. Its time begins when it returns.
func (t *Tracer) Watch(ctx context.Context) (*Watch, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(ctx); err != nil {
		return nil, err
	}
	w := &Watch{tracer: t, seen: Seen{Counts: map[Key]*Counts{}}}
	t.watches[w] = struct{}{}
	return w, nil
}

// Take is what was counted since the Take before, or since the opening. The caller owns it.
func (w *Watch) Take(ctx context.Context) (Seen, error) {
	t := w.tracer
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(ctx); err != nil {
		return Seen{}, err
	}
	out := w.seen
	w.seen = Seen{Counts: map[Key]*Counts{}}
	return out, nil
}

// Close ends it.
func (w *Watch) Close() {
	w.tracer.mu.Lock()
	defer w.tracer.mu.Unlock()
	delete(w.tracer.watches, w)
}

// look has all lanes hand over what they had counted when they were first asked.
func (t *Tracer) look(ctx context.Context) error {
	for i, l := range t.lanes {
		left, err := t.handOver(ctx, i, l)
		for ; err == nil && left > 0; left -= maxHanded {
			_, err = t.handOver(ctx, i, l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// handOver has a lane hand over a part; left is how many series it has not handed over.
func (t *Tracer) handOver(ctx context.Context, i int, l *Lane) (left int, err error) {
	h, err := t.ask(ctx, i, l)
	if err != nil {
		return 0, err
	}
	t.share(&h)
	return h.left, nil
}

// handed is a part of what a lane counted.
type handed struct {
	keys   []Key
	counts []Counts
	slow   []Slow
	missed uint64
	left   int
}

// ask has a lane hand over a part. When ctx ends meanwhile, that part is lost.
func (t *Tracer) ask(ctx context.Context, i int, l *Lane) (handed, error) {
	answer := make(chan handed, 1)
	if err := t.post(i, func() { answer <- l.hand() }); err != nil {
		return handed{}, fmt.Errorf("trace: lane %d: %w: %w", i, ErrClosed, err)
	}
	select {
	case h := <-answer:
		return h, nil
	case <-ctx.Done():
		return handed{}, fmt.Errorf("trace: lane %d does not answer: %w", i, ctx.Err())
	}
}

// maxHanded is how many series a lane hands over before it goes on with its work.
const maxHanded = 32

// hand takes the counts of some series out of the lane. Called on the lane.
func (l *Lane) hand() handed {
	n := min(len(l.dirty), maxHanded)
	h := handed{keys: make([]Key, n), counts: make([]Counts, n), missed: l.missed, slow: l.slow.take(l.epoch)}
	l.missed = 0
	for i, s := range l.dirty[:n] {
		h.keys[i], h.counts[i] = s.key, s.counts
		s.counts, s.dirty = Counts{}, false
	}
	l.dirty = slices.Delete(l.dirty, 0, n)
	h.left = len(l.dirty)
	return h
}

// share adds a part to what each watch has seen.
func (t *Tracer) share(h *handed) {
	for w := range t.watches {
		for i := range h.counts {
			known := w.seen.Counts[h.keys[i]]
			if known == nil {
				known = new(Counts)
				w.seen.Counts[h.keys[i]] = known
			}
			known.Add(&h.counts[i])
		}
		w.seen.Slow = keepSlowest(w.seen.Slow, h.slow)
		w.seen.Missed += h.missed
	}
}
