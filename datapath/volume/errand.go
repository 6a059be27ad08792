package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// errand is one operation on its way to the coordinator and back. One that meets no coordinator is
// stranded, and sets out again when its image is attached to the next.
type errand struct {
	im    *Image
	lane  int
	until time.Time
	tried *term // in which it was tried last; nil: never
	do    func(ctx context.Context, c Coordinator, call protocol.Call) error
	done  func(error)
	trip  protocol.Flight
}

// send lets a worker do what blocks, and brings the result back to the lane. Called on the lane.
func (im *Image) send(lane int, do func(context.Context, Coordinator, protocol.Call) error, done func(error)) {
	im.sendSince(time.Now(), lane, do, done)
}

// sendSince is send for what has waited since then already.
func (im *Image) sendSince(since time.Time, lane int, do func(context.Context, Coordinator, protocol.Call) error, done func(error)) {
	v := im.v
	if v.errands.Add(1) > int64(v.opts.Queue) {
		v.errands.Add(-1)
		done(fmt.Errorf("image %s: %w", im.path, ErrBusy))
		return
	}
	clock := v.desks[lane].clock
	clock.Redirected(clock.Take()) // of a command that is no read or write: these have taken theirs
	e := &errand{im: im, lane: lane, until: since.Add(v.opts.Redirected), do: do, done: done}
	im.lanes[lane].away.Begin(&e.trip, protocol.Everywhere)
	v.work.run(e.run)
}

// run tries once. It runs on a worker.
func (e *errand) run() {
	t, a, err := e.im.reach()
	switch {
	case err != nil:
		e.end(err)
		return
	case !time.Now().Before(e.until):
		e.end(e.late(nil))
		return
	case a == nil:
		e.im.v.strand(e)
		return
	}
	call := a.call
	call.Retry = e.tried != nil
	e.tried = t
	limited, cancel := context.WithDeadline(context.Background(), e.until)
	limited, done := t.begin(limited)
	err = e.do(limited, t.c, call)
	done()
	cancel()
	switch {
	case !t.again(err):
		e.end(err)
	case !time.Now().Before(e.until):
		e.end(e.late(err))
	default:
		e.im.v.strand(e)
	}
}

func (e *errand) late(err error) error {
	return errors.Join(fmt.Errorf("image %s: no coordinator: %w", e.im.path, ErrWaited), err)
}

// end answers on the lane.
func (e *errand) end(err error) {
	v := e.im.v
	v.answer(context.Background(), e.lane, func() {
		v.errands.Add(-1)
		e.im.lanes[e.lane].away.End(&e.trip)
		e.done(err)
	})
}

// reach is the term and the attachment by which the image reaches its coordinator: none while it has to
// wait. ErrGone when that would be for ever.
func (im *Image) reach() (*term, *attachment, error) {
	if gone := im.gone.Load(); gone != nil {
		return nil, nil, *gone
	}
	t, a := im.v.term.Load(), im.at.Load()
	if t.c == nil || a == nil || a.epoch != t.epoch || im.astray.Load() {
		return t, nil, nil
	}
	return t, a, nil
}

// stranded are the errands that wait for a coordinator; with those that run no more than Options.Queue.
type stranded struct {
	mu  sync.Mutex // guards all
	all []*errand
}

// strand lets e wait.
func (v *Volume) strand(e *errand) {
	im, tried := e.im, e.tried
	v.stranded.mu.Lock()
	v.stranded.all = append(v.stranded.all, e)
	v.stranded.mu.Unlock()
	v.keep.soon()
	if t, a, err := im.reach(); err != nil || a != nil && t != tried { // it came between the look and the wait
		v.wake(im)
	}
}

// wake sends the stranded errands of im out again.
func (v *Volume) wake(im *Image) {
	v.setOut(func(e *errand) bool { return e.im == im })
}

// setOut sends those out again that go accepts, and leaves the others.
func (v *Volume) setOut(goes func(*errand) bool) (left int) {
	s := &v.stranded
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.all[:0]
	for _, e := range s.all {
		if goes(e) {
			v.work.run(e.run)
		} else {
			kept = append(kept, e)
		}
	}
	clear(s.all[len(kept):])
	s.all = kept
	return len(kept)
}

// retryStranded sends those out again that may reach a coordinator now, or have waited too long.
func (v *Volume) retryStranded(now time.Time) (left int) {
	return v.setOut(func(e *errand) bool {
		_, a, err := e.im.reach()
		return a != nil || err != nil || now.After(e.until)
	})
}

// answer runs fn on the lane's thread; on the caller's only when that thread is gone. ctx
// does not end. Called by workers.
func (v *Volume) answer(ctx context.Context, lane int, fn func()) {
	if v.post(ctx, lane, fn) != nil {
		fn()
	}
}

// postRetry is how soon a post to a lane whose mailbox is full is tried again.
const postRetry = time.Millisecond

// post runs fn on the lane's thread, and waits while its mailbox is full. Not called on lanes.
func (v *Volume) post(ctx context.Context, lane int, fn func()) error {
	err := v.opts.Lanes[lane].Post(fn)
	for ; errors.Is(err, uring.ErrQueueFull) && ctx.Err() == nil; err = v.opts.Lanes[lane].Post(fn) {
		time.Sleep(postRetry)
	}
	return err
}
