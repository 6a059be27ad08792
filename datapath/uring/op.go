package uring

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// Code says what an Op does.
type Code uint8

// Codes of operations.
const (
	Nop         Code = iota // nothing; completes as an I/O does
	Read                    // fill Buf from Offset
	Write                   // store Buf at Offset
	Flush                   // make what was written durable: fdatasync(2)
	Discard                 // give Length bytes at Offset up: block device discard, or a hole in a file
	WriteZeroes             // make Length bytes at Offset read as zeroes
	numCodes
)

// String names the code.
func (c Code) String() string {
	if c >= numCodes {
		return "unknown"
	}
	return codes[c].name
}

// codes is the table of operations: prep fills the SQE for what is left of op.
var codes = [numCodes]struct {
	name     string
	prep     func(r *Ring, op *Op, e *sys.SQE)
	check    func(op *Op) bool
	transfer bool // moves bytes of Buf and may be short
}{
	Nop:         {name: "nop", prep: prepNop, check: func(*Op) bool { return true }},
	Read:        {name: "read", prep: prepRead, check: hasFile, transfer: true},
	Write:       {name: "write", prep: prepWrite, check: hasFile, transfer: true},
	Flush:       {name: "flush", prep: prepFlush, check: hasFile},
	Discard:     {name: "discard", prep: prepDiscard, check: hasRange},
	WriteZeroes: {name: "write zeroes", prep: prepWriteZeroes, check: hasRange},
}

// Op is one operation. The caller fills the exported fields up to Done and owns the Op again
// when Done is called; it may use it anew then. Offsets and lengths are bytes.
type Op struct {
	Code   Code
	File   *File
	Buf    []byte // Read, Write
	Offset int64
	Length int64 // Discard, WriteZeroes
	FUA    bool  // Write: durable before Done (RWF_DSYNC)
	// Mark is for Options.Clock; 0: the operation is not timed.
	Mark uint32
	// Deadline counts from Submit; 0 means Options.Deadline. When it passes, the operation is
	// cancelled and fails with ErrDeadline.
	Deadline time.Duration
	// Done is called on the ring's thread, once, never before Submit returned.
	Done func(*Op)

	N   int   // Read, Write: bytes done, also beside an error
	Err error // nil, or an *OpError
	// Held is set beside ErrDeadline or ErrCanceled when the request could not be cancelled within
	// Options.Grace: a device that does not answer. The kernel then still owns Buf and may yet do the
	// operation. A buffer of the Pool may be Put as usual, the pool keeps it counted until the
	// kernel lets go; any other buffer must not be used again before Released was called.
	Held bool
	// Released, if set, is called on the ring's thread when the kernel let go of a held operation.
	Released func()

	next    *Op
	slot    uint32
	state   opState
	tries   uint8
	why     syscall.Errno // ETIMEDOUT or ECANCELED once a cancellation is under way
	asked   bool          // the cancel request is with the kernel
	skipCmd bool          // Discard: the uring command is not supported, go by ioctl
	expires time.Duration // on the engine's clock
	fault   *fault
}

type opState uint8

const (
	idle     opState = iota
	queued           // in Ring.queue
	inKernel         // has a slot
	finished         // in Ring.finished
)

// maxTries bounds how often one operation is issued anew after EAGAIN or EINTR without progress.
const maxTries = 16

// maxTransfer is the most that one request moves; the kernel's limit is MAX_RW_COUNT, 2 GiB - 4 KiB.
const maxTransfer = 1 << 30

func hasFile(op *Op) bool  { return op.File != nil && op.Offset >= 0 }
func hasRange(op *Op) bool { return hasFile(op) && op.Length > 0 }

func prepNop(_ *Ring, _ *Op, e *sys.SQE) { e.Nop() }

// rest is the part of Buf that is still to be moved, clipped to one request.
func (op *Op) rest() []byte {
	p := op.Buf[op.N:]
	if len(p) > maxTransfer {
		p = p[:maxTransfer]
	}
	if op.fault != nil {
		p = op.fault.clip(p)
	}
	return p
}

func prepRead(r *Ring, op *Op, e *sys.SQE) {
	p, off := op.rest(), op.Offset+int64(op.N)
	if region, ok := r.fixed(p); ok {
		e.ReadFixed(op.File.index, p, off, region)
		return
	}
	e.Read(op.File.index, p, off)
}

func prepWrite(r *Ring, op *Op, e *sys.SQE) {
	p, off := op.rest(), op.Offset+int64(op.N)
	var rwf uint32
	if op.FUA {
		rwf = unix.RWF_DSYNC
	}
	if region, ok := r.fixed(p); ok {
		e.WriteFixed(op.File.index, p, off, rwf, region)
		return
	}
	e.Write(op.File.index, p, off, rwf)
}

func prepFlush(_ *Ring, op *Op, e *sys.SQE) { e.Fdatasync(op.File.index) }

func prepDiscard(_ *Ring, op *Op, e *sys.SQE) {
	if op.File.block {
		e.Discard(op.File.index, op.Offset, op.Length)
		return
	}
	e.Fallocate(op.File.index, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.Offset, op.Length)
}

// prepWriteZeroes works on files and on block devices, where it is what BLKZEROOUT does.
func prepWriteZeroes(_ *Ring, op *Op, e *sys.SQE) {
	e.Fallocate(op.File.index, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, op.Offset, op.Length)
}

// fail sets the operation's error.
func (op *Op) fail(kind error, errno syscall.Errno) {
	length := op.Length
	if len(op.Buf) > 0 {
		length = int64(len(op.Buf))
	}
	op.Err = &OpError{Code: op.Code, Offset: op.Offset, Length: length, Errno: errno, Kind: kind}
}
