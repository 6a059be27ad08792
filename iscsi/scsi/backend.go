package scsi

// Backend stores the blocks behind one logical unit. It is asynchronous: a method returns at once
// and calls done exactly once, on the lane that it was called on, possibly before it returns.
//
// A lane is one of the host's I/O threads, numbered from 0; every method that takes one is called
// on that lane's thread and never blocks it. Offsets and lengths are bytes, multiples of 512,
// inside Size. Buffers belong to the Backend until done is called; they come from the host's
// buffer pool, aligned for direct I/O.
//
// Errors are, or wrap, a syscall.Errno; the sense table turns them into sense data: ENOSPC into
// SPACE ALLOCATION FAILED WRITE PROTECT, EIO into a medium error, and so on.
type Backend interface {
	// Size is the present capacity in bytes.
	Size() int64
	// Read fills p from off. A range that was never written, or was unmapped, reads as zeroes.
	Read(lane int, p []byte, off int64, done func(error))
	// Write stores p at off; with fua it is durable, its metadata too, before done.
	Write(lane int, p []byte, off int64, fua bool, done func(error))
	// Flush makes every write that was acknowledged before it durable.
	Flush(lane int, done func(error))
	// Unmap gives the range back to the volume; afterwards it reads as zeroes, all of it.
	Unmap(lane int, off, n int64, done func(error))
	// CompareAndWrite writes data at off if the present content equals expect, atomically against
	// every other command on the range. miscompare is the index of the first byte that differs,
	// or -1; it counts only when the error is nil.
	CompareAndWrite(lane int, expect, data []byte, off int64, fua bool, done func(miscompare int, err error))
	// Mapped tells whether the byte at off is allocated on the volume, and for how many bytes on
	// that holds (at least 1, clipped to Size). It answers from memory and never blocks.
	Mapped(off int64) (mapped bool, n int64)
	// Space tells the bytes that this backend occupies on its volume and those still free there.
	// It answers from memory and never blocks.
	Space() (used, free int64)
}
