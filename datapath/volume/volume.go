package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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

	term     atomic.Pointer[term] // changed under mu
	asking   atomic.Int64         // calls for metadata
	errands  atomic.Int64         // that run or are stranded
	stranded stranded
	pausing  atomic.Uint32 // reasons for which all I/O waits; changed under mu
	pauses   atomic.Uint64 // counts their changes

	swaps *swaps

	parked atomic.Int64 // I/Os that wait, of all images
	free   atomic.Int64 // bytes left on the volume, as last heard
	deaf   atomic.Bool  // the coordinator cannot reach the disk either
	mute   atomic.Bool  // the last redirected write failed: no path takes writes
	next   atomic.Uint32

	opens   sync.Mutex // orders opens and closes
	mu      sync.Mutex // guards what follows
	images  map[protocol.ImageID]*Image
	reasons Reason
	departs []*attachment // closed while there was no coordinator to be told
	closed  bool
}

// Open makes the volume usable on this node. Without a coordinator, what needs one waits for Follow.
func Open(ctx context.Context, o Options) (*Volume, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	size, err := o.Device.Size()
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	numbers, err := newSwaps()
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	file, err := o.Engine.Register(o.Device.Fd())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	v := &Volume{
		opts: o, file: file,
		desks:    makeDesks(&o),
		counters: make([]counters, len(o.Lanes)+1), // the last is for callers off the lanes
		work:     startWorkers(o.Workers, o.Queue+1),
		images:   map[protocol.ImageID]*Image{},
		swaps:    numbers,
	}
	v.term.Store(newTerm(nil, 0))
	v.keep = startKeeper(context.WithoutCancel(ctx), v, size)
	if o.Coordinator == nil {
		return v, nil
	}
	err = v.Follow(ctx, o.Coordinator)
	if err == nil {
		_, err = v.Space(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
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
	if known := v.knownAs(path); known != nil {
		known.refs++
		return known, nil
	}
	var im *Image
	err := v.ask(ctx, func(ctx context.Context, t *term, _ bool) (err error) {
		im, err = v.openUnder(ctx, t, path)
		return err
	})
	return im, err
}

// openUnder attaches an image that is not open by that path.
func (v *Volume) openUnder(ctx context.Context, t *term, path string) (*Image, error) {
	im := newImage(v, path)
	a := im.attachment(t)
	g, holder, err := t.c.Attach(ctx, v.opts.Node, path, a)
	if err != nil {
		a.leave()
		return nil, err
	}
	if known := v.known(g.Image); known != nil {
		a.leave()
		known.refs++
		return known, detach(ctx, t, g, holder)
	}
	im.id = g.Image
	if err = a.begin(g, holder); err == nil {
		err = v.register(im, t)
	}
	if err != nil {
		a.leave()
		return nil, errors.Join(err, detach(ctx, t, g, holder))
	}
	return im, nil
}

// register makes an image that was attached under t one of the open ones, unless Follow has begun
// another term, and so does not know of it.
func (v *Volume) register(im *Image, t *term) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.knowsLaterThan(t.epoch) {
		return fmt.Errorf("image %s: attached in epoch %d, which is over: %w", im.path, t.epoch, protocol.ErrStale)
	}
	v.images[im.id] = im
	im.redirect(v.reasons != 0)
	if v.pausing.Load() != 0 {
		im.pause()
	}
	return nil
}

// knownAs is the open image with that path. A coordinator renames none that is open.
func (v *Volume) knownAs(path string) *Image {
	for _, im := range v.openImages() {
		if im.path == path && im.gone.Load() == nil {
			return im
		}
	}
	return nil
}

// depart tells the coordinator that an attachment has ended; later, when there is none now but it may
// come back. A coordinator of another term, or by another
// connection, knows nothing of it.
func (v *Volume) depart(ctx context.Context, a *attachment) error {
	v.mu.Lock()
	t := v.term.Load()
	if t.c == nil && t.epoch == a.epoch {
		v.departs = append(v.departs, a)
	}
	v.mu.Unlock()
	if t.c == nil {
		return nil
	}
	return v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		if t.epoch != a.epoch || t.c != a.by {
			return nil
		}
		return t.c.Detach(ctx, a.call, a.holder)
	})
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

// Heed sets which of the reasons in all there are now, and leaves the others. It does not wait for direct I/O
// under way.
func (v *Volume) Heed(all, now Reason) { v.setReasons(all, now&all) }

func (v *Volume) setReason(why Reason, on bool) (changed bool) {
	if on {
		return v.setReasons(why, why)
	}
	return v.setReasons(why, 0)
}

func (v *Volume) setReasons(all, now Reason) (changed bool) {
	v.mu.Lock()
	before := v.reasons
	v.reasons = v.reasons&^all | now
	after := v.reasons
	if before != after {
		for _, im := range v.images {
			im.redirect(after != 0)
		}
	}
	v.mu.Unlock()
	if before != after {
		v.opts.Log.Info("volume state", "volume", v.opts.Name, "reasons", after.String(), "were", before.String())
	}
	return before != after
}

// metadata counts a call that changes or reads the name space.
func (v *Volume) metadata(bytes int64) { v.counters[len(v.desks)].add(metadata, bytes) }

// alter makes a change of the name space, once, whoever is the coordinator then.
func (v *Volume) alter(ctx context.Context, m protocol.Meta, do func(context.Context, Coordinator, protocol.Meta) error) error {
	v.metadata(0)
	m.Key = protocol.NewKey()
	return v.ask(ctx, func(ctx context.Context, t *term, retry bool) error {
		m.Epoch, m.Retry = t.epoch, retry
		return do(ctx, t.c, m)
	})
}

// Create makes an image.
func (v *Volume) Create(ctx context.Context, path string, o protocol.CreateOptions) error {
	return v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Create(ctx, m, path, o)
	})
}

// fileAt is the file that a change is about, so that a retry knows it again; 0 when there is none, which
// the change itself will say better.
func (v *Volume) fileAt(ctx context.Context, path string) protocol.ImageID {
	file, err := v.Stat(ctx, path)
	if err != nil {
		return 0
	}
	return file.ID
}

// Delete removes an image that is not open anywhere.
func (v *Volume) Delete(ctx context.Context, path string) error {
	return v.alter(ctx, protocol.Meta{Image: v.fileAt(ctx, path)}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Delete(ctx, m, path)
	})
}

// Rename gives an image that is not open anywhere another path.
func (v *Volume) Rename(ctx context.Context, from, to string) error {
	return v.alter(ctx, protocol.Meta{Image: v.fileAt(ctx, from)}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Rename(ctx, m, from, to)
	})
}

// Resize changes an image's size; it shrinks only while it is not open, and below its data only by
// force. An open Image has the new Size on return.
func (v *Volume) Resize(ctx context.Context, path string, size int64, force bool) error {
	err := v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Resize(ctx, m, path, size, force)
	})
	if err != nil {
		return err
	}
	v.awaitSize(path, size)
	return nil
}

// sizeLimit bounds the wait for the grant that tells an open image its new size: from another node it comes
// by another way than the answer.
const sizeLimit = time.Second

func (v *Volume) awaitSize(path string, size int64) {
	im := v.knownAs(path)
	for until := time.Now().Add(sizeLimit); im != nil && im.Size() != size && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
}

// Clone makes a new image that shares the present content of another.
func (v *Volume) Clone(ctx context.Context, from, to string) error {
	return v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Clone(ctx, m, from, to)
	})
}

// List describes the volume's images.
func (v *Volume) List(ctx context.Context) (all []protocol.Stat, err error) {
	v.metadata(0)
	err = v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		all, err = t.c.List(ctx)
		return err
	})
	return all, err
}

// Stat describes one image.
func (v *Volume) Stat(ctx context.Context, path string) (s protocol.Stat, err error) {
	v.metadata(0)
	err = v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		s, err = t.c.Stat(ctx, path)
		return err
	})
	return s, err
}

// Space tells how the volume is filled.
func (v *Volume) Space(ctx context.Context) (space protocol.Space, err error) {
	err = v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		space, err = t.c.Space(ctx)
		return err
	})
	if err == nil {
		v.free.Store(space.Free)
	}
	return space, err
}
