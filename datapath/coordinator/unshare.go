package coordinator

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
)

// Bounds of what is unshared ahead of the writes of an image. A range is unshared ahead only where writes
// gather: what is unshared without need takes space, and counts as changed in a Diff of snapshots.
const (
	warmRegion = 64 << 10 // bytes, in which first writes are counted
	warmWrites = 4        // in a region, or in a row, before what lies ahead is unshared too
	maxWarm    = 4096     // regions that are remembered
	maxUnshare = 16 << 20 // bytes ahead
)

// warmth tells where an image's first writes to shared blocks gather.
type warmth struct {
	writes map[int64]int // by where the region begins
	last   int64         // end of the last write
	row    int           // writes that each began where the one before ended
	end    int64         // of the last range that was unshared ahead
	chunk  int64         // how much is unshared ahead next
}

func newWarmth() warmth { return warmth{writes: map[int64]int{}, chunk: warmRegion} }

// next is the range to unshare for a write to blocks, in an image of size bytes.
func (w *warmth) next(blocks layout.Range, size int64) layout.Range {
	if blocks.Off == w.last || blocks.Off == w.end {
		w.row++
	} else {
		w.row, w.chunk = 1, warmRegion
	}
	w.last = blocks.End()
	if !w.warm(blocks.Align(warmRegion)) {
		return blocks
	}
	out := blocks.Align(warmRegion)
	out.Len = max(out.Len, w.chunk)
	return out.Intersect(layout.Range{Len: size})
}

func (w *warmth) warm(region layout.Range) bool {
	if w.row >= warmWrites {
		return true
	}
	if len(w.writes) >= maxWarm {
		clear(w.writes)
	}
	w.writes[region.Off]++
	if w.writes[region.Off] < warmWrites {
		return false
	}
	delete(w.writes, region.Off)
	return true
}

// made notes how long it took to unshare r for a write to blocks.
func (w *warmth) made(r, blocks layout.Range, took time.Duration) {
	if blocks.Contains(r) {
		return
	}
	w.end = r.End()
	switch {
	case took < quick:
		w.chunk = min(maxUnshare, w.chunk*2)
	case took > slow:
		w.chunk = max(warmRegion, w.chunk/2)
	}
}

// sharedOnly tells whether a write of r needs nothing but that blocks are unshared.
func (im *image) sharedOnly(r layout.Range) bool {
	return im.current().Is(r, func(s layout.State) bool { return s == layout.Shared || s == layout.Written })
}

// unshare writes p where blocks are shared, and gives the image blocks of its own around it where such
// writes gather, so that the next ones are direct. All of it is durable afterwards.
func (im *image) unshare(ctx context.Context, r layout.Range, p []byte, fua bool) error {
	blocks := r.Align(im.c.fs.block)
	im.mu.Lock()
	chunk := im.warmth.next(blocks, im.layout.Size()).Align(im.c.fs.block)
	im.mu.Unlock()
	another := func() (bool, error) { // was faster, with a chunk that has r
		if !im.whole(r) || !im.current().Is(r, layout.State.Writable) {
			return false, nil
		}
		return true, im.place(p, r.Off, fua)
	}
	return im.changeUnless(ctx, chunk, another, func() (effect, error) {
		if chunk == r {
			return im.unshareAlone(p, r)
		}
		began := time.Now()
		if err := im.put(p, r); err != nil {
			return moved, err
		}
		err := im.own(chunk, blocks)
		im.mu.Lock()
		im.warmth.made(chunk, blocks, time.Since(began))
		im.mu.Unlock()
		return moved, err
	})
}

// unshareAlone writes p to r, whole blocks that the caller has to itself, together with what others write elsewhere.
func (im *image) unshareAlone(p []byte, r layout.Range) (effect, error) {
	if !isAligned(p) {
		p = alignedCopy(p)
	}
	if err := im.putDurable(&allocating{p: p, off: r.Off}); err != nil {
		return moved, err
	}
	return settled, nil
}

// own copies what is shared in chunk to blocks of the image's own, except for done; the caller has the
// chunk to itself. A volume that is full ends it early, without an error.
func (im *image) own(chunk, done layout.Range) error {
	for e := range im.current().In(chunk) {
		if e.State != layout.Shared {
			continue
		}
		for _, part := range []layout.Extent{e.Clip(chunk.Off, done.Off), e.Clip(done.End(), chunk.End())} {
			// The end of the file may lie within a block: that one stays shared.
			err := im.rewrite(layout.Range{Off: part.FileOff, Len: max(0, part.Len) &^ (im.c.fs.block - 1)})
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// rewrite writes what r has, around the page cache. The file system gives shared blocks new places by it.
func (im *image) rewrite(r layout.Range) error {
	buf := alignedBuffer(int(min(r.Len, minChunk)))
	for r.Len > 0 {
		p := buf[:min(r.Len, int64(len(buf)))]
		if err := im.pread(p, r.Off); err != nil {
			return err
		}
		if err := im.pwrite(p, r.Off); err != nil {
			return err
		}
		r.Off, r.Len = r.Off+int64(len(p)), r.Len-int64(len(p))
	}
	return nil
}
