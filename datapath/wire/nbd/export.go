package nbd

import (
	"context"

	"lunar/datapath/layout/protocol"
)

// Info describes an export to its clients.
type Info struct {
	ReadOnly    bool
	Block       uint32 // least and unit of a request, a power of 2 of 64 KiB at most; 0 is 1
	Preferred   uint32 // from which on requests are efficient, a power of 2; 0 is 4096
	Description string // for people
}

// Export is what a connection serves. Its methods are called from many goroutines, and end soon after
// their ctx: a try that was given up waits for them. What they return goes to the client by the
// table of errors (protocol.ErrStale is NBD_ESHUTDOWN). Ranges lie inside Size and are multiples of
// Info.Block. Buffers begin at multiples of 4096 and are the server's: they are not kept.
type Export interface {
	// Size in bytes; it may grow while the export is open.
	Size() int64
	Info() Info
	// Read fills p.
	Read(ctx context.Context, p []byte, off int64) error
	// Write stores p; with fua it is durable on return.
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	// Flush makes durable what was written before, on any connection.
	Flush(ctx context.Context) error
	// Trim says that a range is no longer needed; what it reads as afterwards is open.
	Trim(ctx context.Context, off, n int64) error
	// WriteZeroes makes a range read as zeroes. With NoHole it stays allocated; with Fast it returns
	// EOPNOTSUPP at once, and changes nothing, unless it is faster than writing.
	WriteZeroes(ctx context.Context, off, n int64, o ZeroOptions) error
	// Status tells what lies in a range, in order and without gaps, until each returns false.
	Status(ctx context.Context, off, n int64, each func(Extent) bool) error
	// Close ends the connection's use of the export, after the last call has returned.
	Close() error
}

// ZeroOptions are WRITE_ZEROES's flags, but FUA.
type ZeroOptions struct {
	NoHole, Fast bool
}

// Extent is a part of an export, in the words of base:allocation.
type Extent struct {
	Len  int64 // bytes
	Hole bool  // not allocated
	Zero bool  // reads as zeroes
}

// Carrying is what an Export may be, too: READs and WRITEs are then executed without a goroutine each.
type Carrying interface {
	// Carrier makes one for a connection; nil: the export has none now. done gets the transfers that have
	// ended, many at once; it is called by one goroutine at a time, does not block, and does not keep the slice.
	Carrier(done func([]*protocol.Transfer)) Carrier
}

// Carrier executes transfers asynchronously.
type Carrier interface {
	// Start begins what it can, and returns the rest, in batch's memory: for these, as for those that come
	// back without Done, the Export's Read or Write is called. It does not block, and is called by one
	// goroutine. What it began cannot be cancelled: an abandoned try waits for it.
	Start(batch []*protocol.Transfer) (rest []*protocol.Transfer)
}
