package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/volume"
	"lunar/datapath/wire/nbd"
)

// transferExport is what a transfer's socket serves: the image by the way that initiators' I/O takes.
type transferExport struct {
	t        *transfer
	image    *volume.Image
	readOnly bool
}

var _ nbd.Export = (*transferExport)(nil)

// Size implements nbd.Export.
func (x *transferExport) Size() int64 { return x.image.Size() }

// Info implements nbd.Export.
func (x *transferExport) Info() nbd.Info {
	return nbd.Info{ReadOnly: x.readOnly, Block: uint32(x.image.BlockSize()), Description: x.t.r.Image}
}

// bufferPause is between tries while initiators have all the engine's buffers.
const bufferPause = 2 * time.Millisecond

// patiently tries again while there is no buffer.
func patiently(ctx context.Context, move func() error) error {
	for {
		err := move()
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		if pause(ctx, bufferPause) != nil {
			return ctx.Err()
		}
	}
}

// Read implements nbd.Export.
func (x *transferExport) Read(ctx context.Context, p []byte, off int64) error {
	err := patiently(ctx, func() error {
		_, err := x.image.ReadAt(p, off)
		return err
	})
	if x.readOnly && err == nil {
		x.t.job.reached(off + int64(len(p)))
	}
	return err
}

// Write implements nbd.Export.
func (x *transferExport) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	err := patiently(ctx, func() error {
		_, err := x.image.WriteAt(p, off)
		return err
	})
	if err != nil {
		return err
	}
	x.t.track.add(off, int64(len(p)))
	x.t.job.reached(off + int64(len(p)))
	if fua {
		return x.image.Sync()
	}
	return nil
}

// Flush implements nbd.Export.
func (x *transferExport) Flush(context.Context) error { return x.image.Sync() }

// Trim implements nbd.Export. A thick image keeps its blocks.
func (x *transferExport) Trim(ctx context.Context, off, n int64) error {
	return x.WriteZeroes(ctx, off, n, nbd.ZeroOptions{NoHole: x.t.r.Thick})
}

// transferZeroes is what a thick image is zeroed with; read only.
var transferZeroes [1 << 20]byte

// WriteZeroes implements nbd.Export.
func (x *transferExport) WriteZeroes(ctx context.Context, off, n int64, o nbd.ZeroOptions) error {
	x.t.job.reached(off + n)
	if !o.NoHole && !x.t.r.Thick {
		return x.image.Discard(off, n)
	}
	if o.Fast {
		return fmt.Errorf("zeroes without a hole are written: %w", unix.EOPNOTSUPP)
	}
	for n > 0 {
		k := min(n, int64(len(transferZeroes)))
		if err := errors.Join(ctx.Err(), x.Write(ctx, transferZeroes[:k], off, false)); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Status implements nbd.Export.
func (x *transferExport) Status(_ context.Context, off, n int64, each func(nbd.Extent) bool) error {
	l := x.image.Layout()
	if l == nil {
		return fmt.Errorf("image %s: %w", x.t.r.Image, unix.EIO)
	}
	for e := range l.In(layout.Range{Off: off, Len: n}) {
		if !each(nbd.Extent{Len: e.Len, Hole: !e.State.Allocated(), Zero: e.State.Zero()}) {
			return nil
		}
	}
	return nil
}

// Close implements nbd.Export.
func (x *transferExport) Close() error { return nil }

// written knows which parts of an image were written, in units, so that what was only allocated ahead can be given
// back. The zero value is ready.
type written struct {
	mu    sync.Mutex // guards pages
	pages map[int64]*[pageUnits / 64]uint64
}

const (
	writtenUnit = 64 << 10
	pageUnits   = 16 << 10 // of a page: 1 GiB of the image
)

func (w *written) add(off, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pages == nil {
		w.pages = map[int64]*[pageUnits / 64]uint64{}
	}
	for u := off / writtenUnit; u*writtenUnit < off+n; u++ {
		page := w.pages[u/pageUnits]
		if page == nil {
			page = new([pageUnits / 64]uint64)
			w.pages[u/pageUnits] = page
		}
		page[u%pageUnits/64] |= 1 << (u % 64)
	}
}

func (w *written) has(u int64) bool {
	page := w.pages[u/pageUnits]
	return page != nil && page[u%pageUnits/64]&(1<<(u%64)) != 0
}

// unwritten are the whole units of r that were not written.
func (w *written) unwritten(r layout.Range) (out []layout.Range) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for u := (r.Off + writtenUnit - 1) / writtenUnit; (u+1)*writtenUnit <= r.End(); u++ {
		switch n := len(out); {
		case w.has(u):
		case n > 0 && out[n-1].End() == u*writtenUnit:
			out[n-1].Len += writtenUnit
		default:
			out = append(out, layout.Range{Off: u * writtenUnit, Len: writtenUnit})
		}
	}
	return out
}

// discards is how many are under way at once: the volume joins those that wait.
const discards = 256

// makeSparse gives back what was allocated ahead of writes that did not come, so that the source's holes are holes.
func (t *transfer) makeSparse() error {
	l := t.image.Layout()
	if t.r.Thick || l == nil {
		return nil
	}
	var ahead []layout.Range
	for e := range l.In(layout.Range{Len: t.image.Size()}) {
		if e.State.Allocated() {
			ahead = append(ahead, t.track.unwritten(layout.Range{Off: e.FileOff, Len: e.Len})...)
		}
	}
	var mu sync.Mutex // guards failed
	var failed error
	var under sync.WaitGroup
	turns := make(chan struct{}, discards)
	for _, r := range ahead {
		turns <- struct{}{}
		under.Go(func() {
			err := t.image.Discard(r.Off, r.Len)
			<-turns
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	under.Wait()
	return failed
}
