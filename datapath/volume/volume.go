package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// Volume is a volume on this node. Its methods are safe from any goroutine, and may block.
type Volume struct {
	opts     Options
	file     *uring.File
	desks    []desk // by lane
	counters []counters
	work     *workers
	keep     *keeper

	parked atomic.Int64 // I/Os that wait, of all images
	free   atomic.Int64 // bytes left on the volume, as last heard
	deaf   atomic.Bool  // the coordinator cannot reach the disk either
	mute   atomic.Bool  // the last redirected write failed: no path takes writes
	next   atomic.Uint32

	opens   sync.Mutex // orders opens and closes
	mu      sync.Mutex // guards what follows
	images  map[protocol.ImageID]*Image
	reasons Reason
	closed  bool
}

// Open makes the volume usable on this node.
func Open(ctx context.Context, o Options) (*Volume, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	space, err := o.Coordinator.Space(ctx)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	file, err := o.Engine.Register(o.Device.Fd())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	v := &Volume{
		opts: o, file: file,
		desks:    make([]desk, len(o.Lanes)),
		counters: make([]counters, len(o.Lanes)+1), // the last is for callers off the lanes
		work:     startWorkers(o.Workers, o.Queue),
		images:   map[protocol.ImageID]*Image{},
	}
	v.free.Store(space.Free)
	v.keep = startKeeper(v)
	return v, nil
}

// Name is the volume's name.
func (v *Volume) Name() string { return v.opts.Name }

// Close ends the volume on this node; ErrInUse while an image is open. The coordinator stays.
func (v *Volume) Close() error {
	v.opens.Lock()
	defer v.opens.Unlock()
	v.mu.Lock()
	open := len(v.images)
	was := v.closed
	v.closed = v.closed || open == 0
	v.mu.Unlock()
	switch {
	case was:
		return fmt.Errorf("volume %s: %w", v.opts.Name, ErrClosed)
	case open > 0:
		return fmt.Errorf("volume %s: %w: close these %d first", v.opts.Name, ErrInUse, open)
	}
	v.keep.stop()
	v.work.stop()
	return v.file.Close()
}

// OpenImage opens the image at path, DIR/NAME within the volume. Opens of one image share an Image;
// each needs a Close.
func (v *Volume) OpenImage(ctx context.Context, path string) (*Image, error) {
	v.opens.Lock()
	defer v.opens.Unlock()
	if v.isClosed() {
		return nil, fmt.Errorf("volume %s: %w", v.opts.Name, ErrClosed)
	}
	im := newImage(v, path)
	g, holder, err := v.opts.Coordinator.Attach(ctx, v.opts.Node, path, im)
	if err != nil {
		return nil, err
	}
	if known := v.known(g.Image); known != nil {
		known.refs++
		return known, v.opts.Coordinator.Detach(ctx, g.Call, holder)
	}
	if err := im.start(g, holder); err != nil {
		return nil, errors.Join(err, v.opts.Coordinator.Detach(ctx, g.Call, holder))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.images[g.Image] = im
	im.redirect(v.reasons != 0)
	return im, nil
}

func (v *Volume) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

func (v *Volume) known(id protocol.ImageID) *Image {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.images[id]
}

// openImages is all images that are open now.
func (v *Volume) openImages() (all []*Image) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, im := range v.images {
		all = append(all, im)
	}
	return all
}

// Redirect sets or clears a reason to send all I/O through the coordinator. When it has set one, no
// direct I/O is under way on return.
func (v *Volume) Redirect(ctx context.Context, why Reason, on bool) error {
	v.setReason(why, on)
	if !on {
		return nil
	}
	for _, im := range v.openImages() {
		if err := im.drain(ctx, protocol.Everywhere, direct); err != nil {
			return fmt.Errorf("volume %s: redirect: %w", v.opts.Name, err)
		}
	}
	return nil
}

func (v *Volume) setReason(why Reason, on bool) {
	v.mu.Lock()
	before := v.reasons
	if v.reasons &^= why; on {
		v.reasons |= why
	}
	after := v.reasons
	for _, im := range v.images {
		im.redirect(after != 0)
	}
	v.mu.Unlock()
	if before != after {
		v.opts.Log.Info("volume state", "volume", v.opts.Name, "reasons", after.String(), "were", before.String())
	}
}

// metadata counts a call that changes or reads the name space.
func (v *Volume) metadata(bytes int64) { v.counters[len(v.desks)].add(metadata, bytes) }

// meta goes with a change of the name space.
func (v *Volume) meta() protocol.Meta {
	return protocol.Meta{Key: protocol.NewKey(), Epoch: v.opts.Coordinator.Epoch()}
}

// Create makes an image.
func (v *Volume) Create(ctx context.Context, path string, o protocol.CreateOptions) error {
	v.metadata(0)
	return v.opts.Coordinator.Create(ctx, v.meta(), path, o)
}

// Delete removes an image that is not open anywhere.
func (v *Volume) Delete(ctx context.Context, path string) error {
	v.metadata(0)
	return v.opts.Coordinator.Delete(ctx, v.meta(), path)
}

// Rename gives an image that is not open anywhere another path.
func (v *Volume) Rename(ctx context.Context, from, to string) error {
	v.metadata(0)
	return v.opts.Coordinator.Rename(ctx, v.meta(), from, to)
}

// Resize changes an image's size; it shrinks only while it is not open, and below its data only by
// force. An open Image has the new Size on return.
func (v *Volume) Resize(ctx context.Context, path string, size int64, force bool) error {
	v.metadata(0)
	return v.opts.Coordinator.Resize(ctx, v.meta(), path, size, force)
}

// Clone makes a new image that shares the present content of another.
func (v *Volume) Clone(ctx context.Context, from, to string) error {
	v.metadata(0)
	return v.opts.Coordinator.Clone(ctx, v.meta(), from, to)
}

// List describes the volume's images.
func (v *Volume) List(ctx context.Context) ([]protocol.Stat, error) {
	v.metadata(0)
	return v.opts.Coordinator.List(ctx)
}

// Stat describes one image.
func (v *Volume) Stat(ctx context.Context, path string) (protocol.Stat, error) {
	v.metadata(0)
	return v.opts.Coordinator.Stat(ctx, path)
}

// Space tells how the volume is filled.
func (v *Volume) Space(ctx context.Context) (protocol.Space, error) {
	space, err := v.opts.Coordinator.Space(ctx)
	if err == nil {
		v.free.Store(space.Free)
	}
	return space, err
}
