package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Read fills p from off of an image. Like every redirected operation it needs off and len(p) to lie
// inside the image.
func (c *Coordinator) Read(ctx context.Context, call protocol.Call, p []byte, off int64) (err error) {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.exit(&err)
	err = im.share(ctx, layout.Range{Off: off, Len: int64(len(p))}, func() error { return im.pread(p, off) })
	return im.explain(err, "read", off, len(p))
}

// Write stores p at off of an image, allocating what it needs and some more ahead; with fua it is
// durable on return. It does not keep p.
func (c *Coordinator) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) (err error) {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.exit(&err)
	r := layout.Range{Off: off, Len: int64(len(p))}
	if err := errors.Join(im.writable(), im.inside(r)); err != nil {
		return im.explain(err, "write", off, len(p))
	}
	done, err := im.overwrite(ctx, r, p, fua)
	switch {
	case done || err != nil:
	case im.sharedOnly(r):
		err = im.unshare(ctx, r, p, fua)
	default:
		err = im.allocate(ctx, r, p, fua)
	}
	return im.explain(err, "write", off, len(p))
}

func (im *image) inside(r layout.Range) error {
	if size := im.current().Size(); r.Off < 0 || r.Len < 0 || r.End() > size {
		return fmt.Errorf("%w: beyond the image's %d bytes", ErrSize, size)
	}
	return nil
}

func (im *image) explain(err error, operation string, off int64, n int) error {
	if err == nil {
		return nil
	}
	return explain(im.name(), fmt.Sprintf("%s %d bytes at %d", operation, n, off), err)
}

// overwrite writes where all blocks are there and the image's own; done is false where they are not.
func (im *image) overwrite(ctx context.Context, r layout.Range, p []byte, fua bool) (done bool, err error) {
	if !im.whole(r) || !im.current().Is(r, layout.State.Writable) {
		return false, nil
	}
	err = im.share(ctx, r, func() error {
		if done = im.current().Is(r, layout.State.Writable); !done {
			return nil
		}
		return im.place(p, r.Off, fua)
	})
	return done, err
}

// place writes p at off as a holder would, to the blocks that the layout names; the caller has that
// range, Writable. ExclusiveWrite: the file system would be free to move what it writes, and XFS does
// so where it reserved blocks around others that were shared once.
func (im *image) place(p []byte, off int64, fua bool) error {
	if !isAligned(p) {
		p = alignedCopy(p)
	}
	for e := range im.current().In(layout.Range{Off: off, Len: int64(len(p))}) {
		if im.c.down.Load() {
			return fmt.Errorf("after the shutdown: %w", unix.EIO)
		}
		err := writeFull(im.c.dev.Fd(), p[e.FileOff-off:e.End()-off], e.DevOff, fua)
		if errors.Is(err, unix.ENOSPC) && im.c.probe() != nil { // the device has shrunk; else it is thin, and full
			err = unix.EIO
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// whole tells whether r is made of the device's logical blocks.
func (im *image) whole(r layout.Range) bool {
	unit := int64(im.c.dev.LogicalBlock)
	return r.Off%unit == 0 && r.Len%unit == 0
}

// allocate writes p where blocks have to be allocated, converted or unshared for it, and some more
// ahead. All of it is durable afterwards.
//
// Like every change it takes whole blocks, also the one with the end of the file: the image may grow
// until the change has its range.
func (im *image) allocate(ctx context.Context, r layout.Range, p []byte, fua bool) error {
	im.mu.Lock()
	chunk := im.window.next(r.Align(im.c.fs.block), im.layout.Size())
	im.mu.Unlock()
	another := func() (bool, error) { // was faster, with a chunk that has r
		if !im.whole(r) || !im.current().Is(r, layout.State.Writable) {
			return false, nil
		}
		return true, im.place(p, r.Off, fua)
	}
	return im.changeUnless(ctx, chunk.Align(im.c.fs.block), another, func() (effect, error) {
		began := time.Now()
		if err := im.store(p, r, chunk); err != nil {
			return moved, err
		}
		err := im.fill(chunk)
		im.mu.Lock()
		im.window.made(chunk, time.Since(began))
		im.mu.Unlock()
		return moved, err
	})
}

// store writes p in the middle of a chunk that nobody else touches.
func (im *image) store(p []byte, r, chunk layout.Range) error {
	// In one piece if that can be had; when it cannot, the write itself tells what is wrong.
	_ = unix.Fallocate(im.fd(), unix.FALLOC_FL_KEEP_SIZE, chunk.Off, chunk.Len)
	return im.put(p, r)
}

// put writes p through the file system to a range that nobody else touches.
func (im *image) put(p []byte, r layout.Range) error {
	if im.whole(r) {
		return im.pwrite(p, r.Off)
	}
	blocks := r.Align(int64(im.c.dev.LogicalBlock))
	q := alignedBuffer(int(blocks.Len))
	if err := im.pread(q, blocks.Off); err != nil {
		return err
	}
	copy(q[r.Off-blocks.Off:], p)
	return im.pwrite(q, blocks.Off)
}

// fill writes zeroes to what has no data in r, so that it becomes Written. NoLeak: never over data.
// A volume that is full ends it early, without an error.
func (im *image) fill(r layout.Range) error {
	extents, err := fiemap(im.file, r)
	if err != nil {
		return err
	}
	if extents, err = layout.Tile(r, extents); err != nil {
		return err
	}
	for _, e := range extents {
		if !e.State.Zero() {
			continue
		}
		if err := im.zero(layout.Range{Off: e.FileOff, Len: e.Len}); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// zero writes zeroes.
func (im *image) zero(r layout.Range) error {
	for r.Len > 0 {
		n := min(r.Len, int64(len(zeroes)))
		if err := im.pwrite(zeroes[:n], r.Off); err != nil {
			return err
		}
		r.Off, r.Len = r.Off+n, r.Len-n
	}
	return nil
}

// Flush makes what was written and changed durable.
func (c *Coordinator) Flush(_ context.Context, call protocol.Call) (err error) {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.exit(&err)
	return explain(im.name(), "flush", durableData(im.file))
}

// Unmap gives ranges of an image back to the volume; afterwards all of them read as zeroes. Whole
// file system blocks are freed, ragged edges written with zeroes. It is durable after a Flush.
func (c *Coordinator) Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) (err error) {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.exit(&err)
	for _, r := range ranges {
		if err = errors.Join(im.writable(), im.inside(r)); err == nil {
			err = im.unmap(ctx, r)
		}
		if err != nil {
			return im.explain(err, "unmap", r.Off, int(r.Len))
		}
	}
	return nil
}

func (im *image) unmap(ctx context.Context, r layout.Range) error {
	if r.Len == 0 || im.current().Is(r, func(s layout.State) bool { return s == layout.Hole }) {
		return nil
	}
	around := r.Align(im.c.fs.block)
	return im.change(ctx, around, func() (effect, error) {
		_ = unix.Fadvise(im.fd(), around.Off, around.Len, unix.FADV_DONTNEED)
		return im.punch(r, around, im.current().Size())
	})
}

// punch frees the blocks that lie in r, and zeroes what is left of it at both ends. The block with
// the end of the file counts as whole when r reaches that end.
func (im *image) punch(r, around layout.Range, size int64) (effect, error) {
	did, inner := freed, around
	if r.Off != around.Off {
		inner.Off += im.c.fs.block
		inner.Len -= im.c.fs.block
	}
	if r.End() != around.End() && r.End() != size {
		inner.Len -= im.c.fs.block
	}
	head := layout.Range{Off: r.Off, Len: min(r.Len, inner.Off-r.Off)}
	edges := []layout.Range{head}
	if tail := max(head.End(), inner.End()); inner.Len >= 0 {
		edges = append(edges, layout.Range{Off: tail, Len: r.End() - tail})
	} else {
		edges[0] = r // within two blocks, or one
	}
	for _, e := range edges {
		if e.Len > 0 && !im.current().Is(e, layout.State.Zero) {
			did = moved
			if err := im.zeroEdge(e); err != nil {
				return did, err
			}
		}
	}
	if inner.Len <= 0 {
		return did, nil
	}
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return did, unix.Fallocate(im.fd(), punch, inner.Off, inner.Len)
}

func (im *image) zeroEdge(r layout.Range) error {
	if im.whole(r) {
		return im.zero(r)
	}
	return im.store(make([]byte, r.Len), r, r.Align(im.c.fs.block))
}

// pread reads around the page cache; p may be of any length and alignment.
func (im *image) pread(p []byte, off int64) error {
	r := layout.Range{Off: off, Len: int64(len(p))}
	if im.whole(r) && isAligned(p) {
		return doubt(readFull(im.fd(), p, off))
	}
	blocks := r.Align(int64(im.c.dev.LogicalBlock))
	q := alignedBuffer(int(blocks.Len))
	if err := readFull(im.fd(), q, blocks.Off); err != nil {
		return doubt(err)
	}
	copy(p, q[off-blocks.Off:])
	return nil
}

// readFull reads all of p; what lies beyond the end of the file is an error.
func readFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("%w: %w", unix.EIO, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pwrite writes through the file system, around its page cache, and so may change the mapping. Offset
// and length are multiples of the logical block.
func (im *image) pwrite(p []byte, off int64) error {
	if !isAligned(p) {
		p = alignedCopy(p)
	}
	return writeFull(im.fd(), p, off, false)
}

// writeFull writes all of p; with fua it is durable on return.
func writeFull(fd int, p []byte, off int64, fua bool) error {
	flags := 0
	if fua {
		flags = unix.RWF_DSYNC
	}
	for len(p) > 0 {
		n, err := unix.Pwritev2(fd, [][]byte{p}, off, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
