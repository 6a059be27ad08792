package nbd

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Redirector executes redirected I/O: a coordinator, or a DataPath to it.
type Redirector interface {
	Read(ctx context.Context, call protocol.Call, p []byte, off int64) error
	Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error
	Flush(ctx context.Context, call protocol.Call) error
	Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error
}

// Image is the Export of a coordinator's image.
type Image struct {
	To   Redirector
	Call protocol.Call
	// Layout is the present one: it gives the size, and what BLOCK_STATUS answers.
	Layout func() *layout.Layout
	About  Info
	// Carry makes a connection's Carrier, or nil; may be nil.
	Carry  func(done func([]*protocol.Transfer)) Carrier
	Closed func() error // called by Close; may be nil
}

var (
	_ Export   = (*Image)(nil)
	_ Carrying = (*Image)(nil)
)

// Carrier is what Carry makes.
func (im *Image) Carrier(done func([]*protocol.Transfer)) Carrier {
	if im.Carry == nil {
		return nil
	}
	return im.Carry(done)
}

// Size is the image's.
func (im *Image) Size() int64 { return im.Layout().Size() }

// Info describes the image.
func (im *Image) Info() Info { return im.About }

// Read fills p.
func (im *Image) Read(ctx context.Context, p []byte, off int64) error {
	return im.To.Read(ctx, im.Call, p, off)
}

// Write stores p.
func (im *Image) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return im.To.Write(ctx, im.Call, p, off, fua)
}

// Flush makes what was written durable, whoever wrote it.
func (im *Image) Flush(ctx context.Context) error { return im.To.Flush(ctx, im.Call) }

// Trim unmaps.
func (im *Image) Trim(ctx context.Context, off, n int64) error {
	return im.To.Unmap(ctx, im.Call, []layout.Range{{Off: off, Len: n}})
}

// zeroes is what NoHole writes; read only.
var zeroes = aligned(1 << 20)

// WriteZeroes unmaps, or writes zeroes where no hole is wanted.
func (im *Image) WriteZeroes(ctx context.Context, off, n int64, o ZeroOptions) error {
	switch {
	case !o.NoHole:
		return im.Trim(ctx, off, n)
	case o.Fast:
		return fmt.Errorf("zeroes without a hole are written: %w", unix.EOPNOTSUPP)
	}
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := errors.Join(ctx.Err(), im.Write(ctx, zeroes[:k], off, false)); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Status tells what the layout says.
func (im *Image) Status(_ context.Context, off, n int64, each func(Extent) bool) error {
	for e := range im.Layout().In(layout.Range{Off: off, Len: n}) {
		if !each(Extent{Len: e.Len, Hole: !e.State.Allocated(), Zero: e.State.Zero()}) {
			return nil
		}
	}
	return nil
}

// Close ends the use of the image.
func (im *Image) Close() error {
	if im.Closed == nil {
		return nil
	}
	return im.Closed()
}
