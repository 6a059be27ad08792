package uring

import (
	"os"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

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

// Limit lets the rings have n operations on f in the kernel together; before its first use.
func Limit(f *File, n int) { f.limit(n) }

// Running is the number of operations on a file with a limit that the kernel has.
func Running(f *File) int { return int(f.running.Load()) }

// QueueDepth is the queue of the block device that f is.
func QueueDepth(f *os.File) (int, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return queueDepth(st.Rdev), err
}

// LentPools is the number of sockets' pools that are mapped.
func LentPools(e *Engine) int {
	e.lent.mu.Lock()
	defer e.lent.mu.Unlock()
	return len(e.lent.all)
}

// LentPlaces is for how many sockets' pools there is a place in a ring's buffer table.
const LentPlaces = lentPlaces

// Registered tells whether p has one.
func Registered(p *Pages) bool { return p.place != noPlace }
