package coordinator

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// maxHold bounds how long a snapshot holds the I/O of its images before it gives up.
const maxHold = 10 * time.Second

// take shares the blocks of all images with the set's files, as they are at one instant.
//
// Each open image changes on its own goroutine, and all meet twice: none is recalled before all have their
// turn, so that nodes go on with direct I/O until then, and none is shared before all are returned. From
// that second meeting on, which is the instant, an image's content is fixed until it is shared; so each may
// go on as soon as it is, and what is written then is in no file of the set. Nothing is made durable
// meanwhile: nodes get back a part of what they had, and a crash takes the whole set, which has no name yet.
func (s *set) take(ctx context.Context) error {
	var open []*memberOf
	for _, m := range s.members {
		if m.im != nil {
			open = append(open, m)
		} else if err := s.c.cloneFile(m.target, m.source); err != nil { // names is locked: nobody opens it
			return explain(m.path, "share", err)
		}
	}
	s.taken = time.Now()
	if len(open) == 0 {
		return nil
	}
	if len(open) > 1 { // a copy holds one image while it waits for another
		s.c.pairs.Lock()
		defer s.c.pairs.Unlock()
	}
	return s.holdAll(ctx, open)
}

func (s *set) holdAll(ctx context.Context, open []*memberOf) error {
	ctx, cancel := context.WithTimeout(ctx, maxHold)
	defer cancel()
	h := newHolding(len(open))
	began := time.Now()
	var all sync.WaitGroup
	for _, m := range open {
		all.Go(func() { h.callOff(s.hold1(ctx, h, m)) })
	}
	all.Wait()
	s.taken, s.hold = h.instant, time.Since(began)
	return h.err
}

// hold1 has one image's turn; its I/O is held until it returns.
func (s *set) hold1(ctx context.Context, h *holding, m *memberOf) error {
	arrive := func() (bool, error) { return false, h.turns.arrive(ctx, h) }
	err := m.im.changeUnless(ctx, protocol.Everywhere, arrive, func() (effect, error) {
		if err := h.returns.arrive(ctx, h); err != nil {
			return none, err
		}
		return shared, s.c.cloneFile(m.target, m.source)
	})
	return explain(m.path, "hold", err)
}

// holding is what the images of one snapshot share while they are held.
type holding struct {
	turns, returns meeting
	instant        time.Time // of the second meeting

	once sync.Once
	off  chan struct{} // closed when one could not be held
	err  error         // why; set before off is closed
}

func newHolding(n int) *holding {
	h := &holding{off: make(chan struct{})}
	h.turns.open(n, func() {})
	h.returns.open(n, func() { h.instant = time.Now() })
	return h
}

// callOff lets the others go, when err is not nil.
func (h *holding) callOff(err error) {
	if err != nil {
		h.once.Do(func() { h.err = err; close(h.off) })
	}
}

// meeting ends when all have arrived.
type meeting struct {
	missing atomic.Int64
	ended   chan struct{}
	then    func() // by who arrives last
}

func (m *meeting) open(n int, then func()) {
	m.missing.Store(int64(n))
	m.ended, m.then = make(chan struct{}), then
}

// arrive waits for the others.
func (m *meeting) arrive(ctx context.Context, h *holding) error {
	if m.missing.Add(-1) == 0 {
		m.then()
		close(m.ended)
	}
	select {
	case <-m.ended:
		return nil
	default:
	}
	select {
	case <-m.ended:
		return nil
	case <-h.off:
		return h.err
	case <-ctx.Done():
		return fmt.Errorf("not all images could be held at once: %w: %w", unix.ETIMEDOUT, ctx.Err())
	}
}
