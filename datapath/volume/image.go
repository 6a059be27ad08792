package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Image is an open image. It satisfies scsi.Backend.
type Image struct {
	v      *Volume
	path   string
	call   protocol.Call
	holder protocol.HolderID
	refs   int // guarded by v.opens

	view    atomic.Pointer[protocol.View] // nil before start and after Close
	journal journal
	waiting atomic.Int64  // parked I/Os
	holds   atomic.Uint64 // numbers the ranges that a late write keeps
	lanes   []station

	mu    sync.Mutex                                     // orders changes of view; held for moments only
	early []func(*protocol.View) (*protocol.View, error) // heard before start
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
	im := &Image{v: v, path: path, refs: 1, lanes: make([]station, len(v.desks))}
	for i := range im.lanes {
		im.lanes[i].unmaps.im, im.lanes[i].unmaps.lane = im, i
	}
	return im
}

// start begins with the first grant, and then what was heard since it was made.
func (im *Image) start(g protocol.Grant, holder protocol.HolderID) error {
	view, err := protocol.NewView(g)
	if err != nil {
		return fmt.Errorf("image %s: %w", im.path, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.call, im.holder = g.Call, holder
	for _, heard := range im.early {
		if next, err := heard(view); err == nil {
			view = next
		}
	}
	im.early = nil
	im.v.free.Store(g.Free)
	im.view.Store(view)
	return nil
}

// change makes the next view from the present one.
func (im *Image) change(next func(*protocol.View) (*protocol.View, error)) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	view := im.view.Load()
	if view == nil {
		im.early = append(im.early, next)
		return nil
	}
	view, err := next(view)
	if err == nil {
		im.view.Store(view)
	}
	return err
}

// redirect sends all I/O to the coordinator, or no longer.
func (im *Image) redirect(on bool) {
	_ = im.change(func(v *protocol.View) (*protocol.View, error) { return v.Redirect(on), nil })
}

// Recall is the coordinator's: it takes a range back before a change.
func (im *Image) Recall(ctx context.Context, r protocol.Recall) error {
	err := im.change(func(v *protocol.View) (*protocol.View, error) { return v.Recalled(r) })
	if err != nil {
		return err
	}
	return im.drain(ctx, r.Range, direct)
}

// Publish is the coordinator's: it grants a range, and so ends a recall.
func (im *Image) Publish(g protocol.Grant) {
	err := im.change(func(v *protocol.View) (*protocol.View, error) { return v.Granted(g) })
	if err != nil {
		im.v.opts.Log.Warn("grant refused", "image", im.path, "generation", g.Generation, "err", err)
		return
	}
	im.v.free.Store(g.Free)
	im.resume()
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
func (im *Image) ID() protocol.ImageID { return im.call.Image }

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
	err := im.quiesce(ctx)
	if err != nil {
		return err
	}
	im.refs = 0
	v.mu.Lock()
	delete(v.images, im.call.Image)
	v.mu.Unlock()
	return v.opts.Coordinator.Detach(ctx, im.call, im.holder)
}

// quiesce refuses new I/O and waits for what is under way. When ctx ends first the image stays as it was.
func (im *Image) quiesce(ctx context.Context) error {
	im.mu.Lock()
	view := im.view.Swap(nil)
	im.mu.Unlock()
	im.resume() // what is parked finds the image closed
	err := im.drain(ctx, protocol.Everywhere, direct)
	if err == nil {
		err = im.drain(ctx, protocol.Everywhere, redirected)
	}
	if err != nil {
		im.mu.Lock()
		defer im.mu.Unlock()
		return errors.Join(err, im.reopen(view))
	}
	return nil
}

// reopen goes on after a Close that was given up; mu is locked.
func (im *Image) reopen(view *protocol.View) (err error) {
	for _, heard := range im.early {
		next, herr := heard(view)
		if err = errors.Join(err, herr); herr == nil {
			view = next
		}
	}
	im.early = nil
	im.view.Store(view)
	return err
}
