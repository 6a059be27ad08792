package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// CompareAndWrite writes data at off if the present content equals expect, atomically against every
// other operation on any node; miscompare is the first byte that differs, or -1. Once: each call that
// call.Once names is executed once in a term, and a retry gets the result that it had. ErrOutcome when that is not
// known: a write that the end of the term cut off, or a retry without a name.
//
// Atomic: from then on the coordinator alone touches that range, until it has been quiet for Options.Quiet.
func (c *Coordinator) CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error) {
	t, again, err := c.tries.begin(ctx, c, call)
	switch {
	case err != nil:
		return -1, fmt.Errorf("compare and write: %w", err)
	case again:
		return t.miscompare, t.err
	}
	t.miscompare, t.err = c.compareAndWrite(ctx, t, call, expect, data, off, fua)
	if t.decided && errors.Is(t.err, protocol.ErrStale) { // stale means to others that nothing was done
		t.err = fmt.Errorf("%w: %s", protocol.ErrOutcome, t.err.Error())
	}
	close(t.done)
	return t.miscompare, t.err
}

func (c *Coordinator) compareAndWrite(ctx context.Context, t *try, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error) {
	im, err := c.image(call)
	if err != nil {
		return -1, err
	}
	defer c.exit(&err)
	r := layout.Range{Off: off, Len: int64(len(data))}
	if err = errors.Join(im.writable(), im.inside(r)); err == nil && len(expect) != len(data) {
		err = fmt.Errorf("%w: compare %d bytes, write %d", ErrSize, len(expect), len(data))
	}
	if err != nil {
		return -1, im.explain(err, "compare and write", off, len(data))
	}
	miscompare = -1
	around := r.Align(c.fs.block)
	err = im.change(ctx, around, func() (effect, error) {
		at, did, err := im.compareAndWrite(t, expect, data, r, around, fua)
		miscompare = at
		im.keep(around)
		return did, err
	})
	if r, many := im.quiet(time.Time{}); many {
		im.release(r, time.Time{})
	}
	return miscompare, im.explain(err, "compare and write", off, len(data))
}

func (im *image) compareAndWrite(t *try, expect, data []byte, r, around layout.Range, fua bool) (int, effect, error) {
	present := alignedBuffer(len(expect))
	if err := im.pread(present, r.Off); err != nil {
		return -1, none, err
	}
	t.decided = true
	if at := differs(present, expect); at >= 0 {
		return at, none, nil
	}
	if im.whole(r) && im.current().Is(r, layout.State.Writable) {
		return -1, none, im.place(data, r.Off, fua)
	}
	return -1, moved, im.store(data, r, around)
}

// differs is the first byte of present that is not expect's, or -1.
func differs(present, expect []byte) int {
	if bytes.Equal(present, expect) {
		return -1
	}
	for i := range present {
		if present[i] != expect[i] {
			return i
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
