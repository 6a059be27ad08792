package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// image is an image's file while a holder has it open.
type image struct {
	c      *Coordinator
	id     protocol.ImageID
	file   *os.File // O_DIRECT
	frozen bool     // of a snapshot: it is read only

	commits commits

	mu        sync.Mutex // guards what follows
	path      string
	table     protocol.Table
	waiting   map[*protocol.Op]chan struct{} // closed when the operation has its range
	returning map[*protocol.Op]chan struct{} // closed when every holder has returned the range
	sweeping  bool                           // a goroutine lets go of what the table keeps
	holders   map[protocol.HolderID]member
	lastID    protocol.HolderID
	layout    *layout.Layout // what the file system has durably
	window    window
	warmth    warmth
	gone      bool // closed, while a call that had found it was about to begin
}

func newImage(c *Coordinator, id protocol.ImageID, path string, f *os.File, l *layout.Layout) *image {
	return &image{
		c: c, id: id, path: path, file: f, layout: l,
		table:     protocol.Table{Epoch: c.opts.Epoch},
		waiting:   map[*protocol.Op]chan struct{}{},
		returning: map[*protocol.Op]chan struct{}{},
		holders:   map[protocol.HolderID]member{},
		window:    newWindow(),
		warmth:    newWarmth(),
	}
}

func (im *image) name() string {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.path
}

func (im *image) holderCount() int {
	im.mu.Lock()
	defer im.mu.Unlock()
	return len(im.holders)
}

func (im *image) current() *layout.Layout {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.layout
}

// join adds a holder and grants it the whole image, between changes.
func (im *image) join(ctx context.Context, node protocol.NodeID, h protocol.Holder) (g protocol.Grant, id protocol.HolderID, err error) {
	op := &protocol.Op{Range: protocol.Everywhere}
	if err := im.admit(ctx, op); err != nil {
		return g, 0, err
	}
	defer im.end(op)
	im.mu.Lock()
	defer im.mu.Unlock()
	im.lastID++
	im.holders[im.lastID] = member{h, node}
	im.table.Join(im.lastID)
	return im.grant(layout.Range{Len: im.layout.Size()}, 0), im.lastID, nil
}

// leave removes a holder.
func (im *image) leave(h protocol.HolderID) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.remove(h)
}

// retire returns when no operation is under way, and none will be.
func (im *image) retire(ctx context.Context) error {
	op := &protocol.Op{Range: protocol.Everywhere, Change: true}
	if err := im.admit(ctx, op); err != nil {
		return err
	}
	im.mu.Lock()
	im.gone = true
	im.mu.Unlock()
	im.end(op)
	return nil
}

// admit returns when op has its range.
func (im *image) admit(ctx context.Context, op *protocol.Op) error {
	ready := make(chan struct{})
	im.mu.Lock()
	im.waiting[op] = ready
	im.wake(im.table.Begin(op))
	im.mu.Unlock()
	select {
	case <-ready:
		return im.stillOpen(op)
	case <-im.c.life.Done():
		im.end(op)
		return errEnded
	case <-ctx.Done():
		im.end(op)
		return fmt.Errorf("wait for a range of the image: %w: %w", unix.ETIMEDOUT, ctx.Err())
	}
}

// stillOpen ends op when the image was closed meanwhile: its blocks may be another's by now.
func (im *image) stillOpen(op *protocol.Op) error {
	im.mu.Lock()
	gone := im.gone
	im.mu.Unlock()
	if !gone {
		return nil
	}
	im.end(op)
	return fmt.Errorf("image %d was closed: %w", im.id, ErrNotFound)
}

func (im *image) wake(admitted []*protocol.Op) {
	for _, op := range admitted {
		close(im.waiting[op])
		delete(im.waiting, op)
	}
}

func (im *image) end(op *protocol.Op) {
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.waiting, op)
	im.wake(im.table.End(op))
}

// share runs fn beside others on the range; it changes no mapping.
func (im *image) share(ctx context.Context, r layout.Range, fn func() error) error {
	op := &protocol.Op{Range: r}
	if err := im.admit(ctx, op); err != nil {
		return err
	}
	defer im.end(op)
	return fn()
}

// effect is what a change did to the image's mapping.
type effect uint8

const (
	none    effect = iota // nothing: the layout stands
	freed                 // blocks became a hole: nothing new is granted; committed where there are other nodes
	shared                // blocks have another owner too: what is granted is a part of what was, and durable
	moved                 // blocks were allocated, converted or unshared: commit, then grant
	settled               // moved, and committed
)

// change runs fn with r for itself, after every holder has returned r, and grants r anew.
func (im *image) change(ctx context.Context, r layout.Range, fn func() (effect, error)) error {
	return im.changeUnless(ctx, r, func() (bool, error) { return false, nil }, fn)
}

// changeUnless is a change that may turn out to be unneeded when it has its range: then unneeded has
// done all, and nothing is recalled.
func (im *image) changeUnless(ctx context.Context, r layout.Range, unneeded func() (bool, error), fn func() (effect, error)) error {
	if err := im.c.changeable(ctx); err != nil {
		return err
	}
	op := &protocol.Op{Range: r, Change: true}
	if err := im.admit(ctx, op); err != nil {
		return err
	}
	if done, err := unneeded(); done || err != nil {
		im.end(op)
		return err
	}
	did := none
	abandoned, err := im.recall(ctx, op, r)
	if abandoned {
		return err
	}
	defer im.end(op)
	if err == nil {
		did, err = fn()
	}
	if did != none {
		err = errors.Join(err, im.refresh(r, did))
	}
	im.publish(r, op.Number)
	return err
}

func (im *image) call() protocol.Call {
	return protocol.Call{Image: im.id, Epoch: im.c.opts.Epoch}
}

// refresh reads r anew from the file system; what was moved is made durable first. On an error the
// range is withheld: then only the coordinator touches it, until a later change describes it again.
func (im *image) refresh(r layout.Range, did effect) error {
	extents, size, err := im.describe(r, did)
	im.mu.Lock()
	defer im.mu.Unlock()
	if err == nil {
		err = im.redraw(size, r, extents)
	}
	if err == nil {
		return nil
	}
	im.c.opts.Log.Error("layout withheld", "image", im.path, "off", r.Off, "len", r.Len, "err", err)
	size = im.layout.Size()
	known := r.Intersect(layout.Range{Len: size})
	return errors.Join(err, im.redraw(size, known, []layout.Extent{{FileOff: known.Off, Len: known.Len, State: layout.Withheld}}))
}

// redraw replaces r in the layout of a file of size bytes; mu is locked.
func (im *image) redraw(size int64, r layout.Range, extents []layout.Extent) error {
	l, err := im.layout.Resize(size)
	if err == nil {
		l, err = l.Replace(r, extents)
	}
	if err == nil {
		im.layout = l
	}
	return err
}

func (im *image) describe(r layout.Range, did effect) ([]layout.Extent, int64, error) {
	im.c.step("change done")
	if did == moved || did == freed && len(im.c.opts.Members) > 0 { // a crash must not undo what other nodes read
		if err := im.commit(); err != nil {
			return nil, 0, fmt.Errorf("commit: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(im.fd(), &st); err != nil {
		return nil, 0, err
	}
	extents, err := extentsOf(im.file, r.Intersect(layout.Range{Len: st.Size}), im.frozen)
	return extents, st.Size, err
}

func (im *image) fd() int { return int(im.file.Fd()) }

// publish grants r to every holder, and with that ends the recall.
func (im *image) publish(r layout.Range, ends uint64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	g := im.grant(r.Intersect(layout.Range{Len: im.layout.Size()}), ends)
	for _, h := range im.holders {
		h.Publish(g)
	}
}

// grant describes r; mu is locked.
func (im *image) grant(r layout.Range, ends uint64) protocol.Grant {
	g := protocol.Grant{Call: im.call(), Generation: im.table.NextGeneration(), Size: im.layout.Size(),
		Range: r, Ends: ends, Free: im.c.free()}
	g.Extents = im.table.Grantable(slices.Collect(im.layout.In(r)))
	if im.c.withheld.Load() {
		g.Extents = withoutBlocks(g.Extents)
	}
	return g
}
