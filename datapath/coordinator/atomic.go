package coordinator

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// CompareAndWrite writes data at off if the present content equals expect, atomically against every
// other operation on any node; miscompare is the first byte that differs, or -1. A retry takes content
// that equals data for its own earlier work, sector by sector, so data should be such that nobody else
// writes it.
//
// Atomic: from then on the coordinator alone touches that range, until it has been quiet for Options.Quiet.
func (c *Coordinator) CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error) {
	im, err := c.image(call)
	if err != nil {
		return -1, err
	}
	defer c.exit(&err)
	r := layout.Range{Off: off, Len: int64(len(data))}
	if err = im.inside(r); err == nil && len(expect) != len(data) {
		err = fmt.Errorf("%w: compare %d bytes, write %d", ErrSize, len(expect), len(data))
	}
	if err != nil {
		return -1, im.explain(err, "compare and write", off, len(data))
	}
	miscompare = -1
	around := r.Align(c.fs.block)
	err = im.change(ctx, around, func() (effect, error) {
		at, did, err := im.compareAndWrite(call.Retry, expect, data, r, around, fua)
		miscompare = at
		im.keep(around)
		return did, err
	})
	if r, many := im.quiet(time.Time{}); many {
		im.release(r, time.Time{})
	}
	return miscompare, im.explain(err, "compare and write", off, len(data))
}

func (im *image) compareAndWrite(retry bool, expect, data []byte, r, around layout.Range, fua bool) (int, effect, error) {
	present := alignedBuffer(len(expect))
	if err := im.pread(present, r.Off); err != nil {
		return -1, none, err
	}
	if at := differs(present, expect, data, retry); at >= 0 {
		return at, none, nil
	}
	if im.whole(r) && im.current().Is(r, layout.State.Writable) {
		return -1, none, im.place(data, r.Off, fua)
	}
	return -1, moved, im.store(data, r, around)
}

// sector is what an initiator's smallest block has.
const sector = 512

// differs is the first byte of present that is not expect's, or -1. For a retry a sector may have what
// was to be written: an earlier try was cut off after it.
func differs(present, expect, data []byte, retry bool) int {
	for at := 0; at < len(present); at += sector {
		end := min(at+sector, len(present))
		if retry && bytes.Equal(present[at:end], data[at:end]) {
			continue
		}
		for i := at; i < end; i++ {
			if present[i] != expect[i] {
				return i
			}
		}
	}
	return -1
}

// keep withholds r, which the caller has for itself, from the holders, and sees to it that this ends.
func (im *image) keep(r layout.Range) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.table.Keep(r, time.Now())
	if !im.sweeping {
		im.sweeping = true
		im.c.background.Go(im.sweep)
	}
}

// sweep lets go of ranges when they are quiet, and ends with the last.
func (im *image) sweep() {
	for quiet := im.c.opts.Quiet; ; {
		im.mu.Lock()
		used, some := im.table.Oldest()
		im.sweeping = some && im.c.life.Err() == nil
		on := im.sweeping
		im.mu.Unlock()
		if !on {
			return
		}
		sleep(im.c.life, time.Until(used.Add(quiet)))
		before := time.Now().Add(-quiet)
		for r, ok := im.quiet(before); ok; r, ok = im.quiet(before) {
			if !im.release(r, before) {
				break
			}
		}
	}
}

func (im *image) quiet(before time.Time) (layout.Range, bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.table.Quiet(before)
}

// release grants r again, unless it was used after before.
func (im *image) release(r layout.Range, before time.Time) (ok bool) {
	_ = im.share(im.c.life, r, func() error {
		im.mu.Lock()
		ok = im.table.Release(r, before)
		im.mu.Unlock()
		if ok {
			im.publish(r, 0)
		}
		return nil
	})
	return ok
}
