package uring

import "lunar/datapath/uring/internal/sys"

// DenyDiscardCommand makes the kernel refuse the discard command, as one without it does; the
// result undoes that.
func DenyDiscardCommand() (undo func()) {
	old := codes[Discard].prep
	codes[Discard].prep = func(_ *Ring, op *Op, e *sys.SQE) { e.Fallocate(op.File.index, 1<<30, op.Offset, op.Length) }
	return func() { codes[Discard].prep = old }
}

// Built is the number of requests that are built and not yet handed to the kernel.
func Built(r *Ring) int { return r.sys.Pending() }

// StartAlone does what a ring does before it waits, and tells how many requests stay built after it.
func StartAlone(r *Ring) int {
	r.startAlone()
	return r.sys.Pending()
}
