package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lunar/datapath/layout/protocol"
)

// term is one coordinator's time, as this node sees it.
type term struct {
	c     Coordinator   // nil: there is none now
	epoch uint64        // of the latest that there was
	ended chan struct{} // closed when another term has taken its place

	mu    sync.Mutex // guards calls; held for moments only
	calls map[*context.CancelFunc]struct{}
}

func newTerm(c Coordinator, epoch uint64) *term {
	return &term{c: c, epoch: epoch, ended: make(chan struct{}), calls: map[*context.CancelFunc]struct{}{}}
}

// end cancels the calls under way.
func (t *term) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.ended)
	for cancel := range t.calls {
		(*cancel)()
	}
	clear(t.calls)
}

func (t *term) over() bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}

// begin counts a call in; its context ends with the term too. The caller calls done.
func (t *term) begin(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	key := &cancel
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over() {
		cancel()
	} else {
		t.calls[key] = struct{}{}
	}
	return ctx, func() {
		cancel()
		t.mu.Lock()
		delete(t.calls, key)
		t.mu.Unlock()
	}
}

// again tells whether a call under t that ended with err is to be made anew: its coordinator is none
// any more, or did not answer. What the end of a term did to a call looks like any error.
func (t *term) again(err error) bool {
	return err != nil && !errors.Is(err, protocol.ErrOutcome) && (errors.Is(err, protocol.ErrStale) || errors.Is(err, protocol.ErrUnreachable) || t.over())
}

// tryAgain is when a call is made anew to a coordinator that did not answer, while it is still the one.
const tryAgain = 50 * time.Millisecond

// MaxAsking bounds the calls for metadata that are under way or wait for a coordinator.
const MaxAsking = 1024

// ask calls the coordinator. While there is none, or it does not answer, it waits, Options.Redirected in
// all, and makes the call again; retry says that an earlier try may have taken effect.
func (v *Volume) ask(ctx context.Context, do func(ctx context.Context, t *term, retry bool) error) error {
	defer v.asking.Add(-1)
	if v.asking.Add(1) > MaxAsking {
		return fmt.Errorf("volume %s: %w", v.opts.Name, ErrBusy)
	}
	wait := waiting{left: v.opts.Redirected}
	t := v.term.Load()
	for retry := false; ; retry = true {
		for t.c == nil {
			if err := wait.forTerm(ctx, t, wait.left); err != nil {
				return fmt.Errorf("volume %s: %w", v.opts.Name, err)
			}
			t = v.term.Load()
		}
		limited, done := t.begin(ctx)
		err := do(limited, t, retry)
		done()
		if !t.again(err) || ctx.Err() != nil {
			return err
		}
		if werr := wait.forTerm(ctx, t, tryAgain); werr != nil {
			return fmt.Errorf("volume %s: %w: %w", v.opts.Name, werr, err)
		}
		t = v.term.Load()
	}
}

// waiting is how long a call may still wait for a coordinator.
type waiting struct{ left time.Duration }

// forTerm waits until t has ended, or for so long; ErrWaited when nothing is left.
func (w *waiting) forTerm(ctx context.Context, t *term, long time.Duration) error {
	began := time.Now()
	timer := time.NewTimer(min(long, w.left))
	defer timer.Stop()
	select {
	case <-t.ended:
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrWaited, ctx.Err())
	}
	if w.left -= time.Since(began); w.left <= 0 {
		return ErrWaited
	}
	return nil
}
