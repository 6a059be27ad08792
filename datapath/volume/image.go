package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Image is an open image. It satisfies scsi.Backend.
type Image struct {
	v    *Volume
	path string
	id   protocol.ImageID
	refs int           // guarded by v.opens
	turn chan struct{} // has one token; who takes it may attach or detach the image

	view    atomic.Pointer[protocol.View] // nil before the first attachment counts, after Close, and when the image is gone
	at      atomic.Pointer[attachment]    // nil as view is
	astray  atomic.Bool                   // the attachment is not to be relied on: I/O waits for another
	gone    atomic.Pointer[error]         // why I/O fails for good
	journal journal
	waiting atomic.Int64  // parked I/Os
	holds   atomic.Uint64 // numbers the ranges that a late write keeps
	lanes   []station

	mu    sync.Mutex     // orders changes of view, at and attachments, and guards what follows; held for moments only
	shelf *protocol.View // the view while a Close is under way, in case that is given up
}

// station is what an image has on one lane; only the lane's thread touches it.
type station struct {
	flights protocol.Flights // direct I/O
	away    protocol.Flights // redirected operations
	parked  []parked
	unmaps  unmaps
	_       [32]byte
}

func newImage(v *Volume, path string) *Image {
	im := &Image{v: v, path: path, refs: 1, turn: make(chan struct{}, 1), lanes: make([]station, len(v.desks))}
	im.give()
	return im
}

// take waits for the turn to attach or detach.
func (im *Image) take(ctx context.Context) error {
	select {
	case <-im.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("image %s: %w: %w", im.path, ErrWaited, ctx.Err())
	}
}

func (im *Image) give() { im.turn <- struct{}{} }

// set makes the next view from the present one, if there is one; mu is locked.
func (im *Image) set(next change) error {
	view := im.view.Load()
	shelved := view == nil
	if shelved {
		view = im.shelf
	}
	if view == nil {
		return nil
	}
	view, err := next(view)
	switch {
	case err != nil:
		return err
	case shelved:
		im.shelf = view
	default:
		im.view.Store(view)
	}
	return nil
}

// change makes the next view from the present one.
func (im *Image) change(next change) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.set(next)
}

// redirect sends all I/O to the coordinator, or no longer.
func (im *Image) redirect(on bool) {
	_ = im.change(func(v *protocol.View) (*protocol.View, error) { return v.Redirect(on), nil })
}

func direct(st *station) *protocol.Flights     { return &st.flights }
func redirected(st *station) *protocol.Flights { return &st.away }

// drain returns when nothing of a kind that was begun before is under way in r.
func (im *Image) drain(ctx context.Context, r layout.Range, kind func(*station) *protocol.Flights) error {
	done := make(chan struct{}, len(im.lanes))
	for i := range im.lanes {
		if err := im.v.post(ctx, i, func() { kind(&im.lanes[i]).Drain(r, func() { done <- struct{}{} }) }); err != nil {
			return fmt.Errorf("image %s: drain: %w", im.path, err)
		}
	}
	for range im.lanes {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("image %s: drain: %w: %w", im.path, ErrWaited, ctx.Err())
		}
	}
	return nil
}

// Path is the path that the image was opened by.
func (im *Image) Path() string { return im.path }

// ID names the image's file.
func (im *Image) ID() protocol.ImageID { return im.id }

// BlockSize is the device's logical block size: I/O in multiples of it may be direct.
func (im *Image) BlockSize() int { return im.v.opts.Device.LogicalBlock }

// Size is the present capacity in bytes, 0 after Close.
func (im *Image) Size() int64 {
	if view := im.view.Load(); view != nil {
		return view.Layout.Size()
	}
	return 0
}

// Layout is the present layout, nil after Close.
func (im *Image) Layout() *layout.Layout {
	if view := im.view.Load(); view != nil {
		return view.Layout
	}
	return nil
}

// maxMapped bounds the extents that Mapped looks at.
const maxMapped = 64

// Mapped tells whether the byte at off is allocated, and for how many bytes on that holds.
func (im *Image) Mapped(off int64) (mapped bool, n int64) {
	l := im.Layout()
	if l == nil {
		return false, 1
	}
	e, ok := l.At(off)
	if !ok {
		return false, 1
	}
	mapped, end := e.State.Allocated(), e.End()
	for range maxMapped {
		if e, ok = l.At(end); !ok || e.State.Allocated() != mapped {
			break
		}
		end = e.End()
	}
	return mapped, end - off
}

// Space tells the bytes that the image occupies and those left on the volume.
func (im *Image) Space() (used, free int64) {
	if l := im.Layout(); l != nil {
		used = l.Allocated()
	}
	return used, im.v.free.Load()
}

// Close ends one open. The last one refuses new I/O, waits for what is under way, and lets the
// coordinator close the file.
func (im *Image) Close(ctx context.Context) error {
	v := im.v
	v.opens.Lock()
	defer v.opens.Unlock()
	if im.refs == 0 {
		return fmt.Errorf("image %s: %w", im.path, ErrClosed)
	}
	if im.refs > 1 {
		im.refs--
		return nil
	}
	if err := im.take(ctx); err != nil {
		return err
	}
	defer im.give()
	if err := im.quiesce(ctx); err != nil {
		return err
	}
	im.refs = 0
	v.mu.Lock()
	delete(v.images, im.id)
	v.mu.Unlock()
	a := im.at.Swap(nil)
	if a == nil {
		return nil // it was gone
	}
	a.leave()
	return v.depart(ctx, a)
}

// quiesce refuses new I/O and waits for what is under way. When ctx ends first the image stays as it was.
func (im *Image) quiesce(ctx context.Context) error {
	im.mu.Lock()
	im.shelf = im.view.Swap(nil)
	im.mu.Unlock()
	im.resume() // what is parked finds the image closed
	err := im.drain(ctx, protocol.Everywhere, direct)
	if err == nil {
		err = im.drain(ctx, protocol.Everywhere, redirected)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		im.view.Store(im.shelf)
	}
	im.shelf = nil
	return err
}
