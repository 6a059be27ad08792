package sys

import (
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extArg is struct io_uring_getevents_arg: io_uring_enter(2), IORING_ENTER_EXT_ARG.
type extArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWait   uint32
	ts        uint64
	spec      unix.Timespec // what ts points at; behind the kernel's struct
}

const sizeofExtArg = 24

// Next returns a free SQE for a builder to fill, or nil while the submission queue is full.
func (r *Ring) Next() *SQE {
	if r.tail-atomic.LoadUint32(r.sqHead) >= uint32(len(r.sqes)) {
		return nil
	}
	e := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	r.tail++
	return e
}

// Pending is the number of SQEs built and not yet taken by the kernel.
func (r *Ring) Pending() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// publish lets the kernel see every SQE built: a store with release semantics after the entries'
// contents (io_uring(7), "submission").
func (r *Ring) publish() uintptr {
	atomic.StoreUint32(r.sqTail, r.tail)
	return uintptr(r.Pending())
}

// Submit hands all SQEs built to the kernel and never waits: io_uring_enter(2) with min_complete 0.
// With events it also runs the kernel's deferred completion work and flushes overflowed CQEs.
// A raw system call: the Go scheduler is not told.
func (r *Ring) Submit(events bool) syscall.Errno {
	flags := r.enterFlags
	if events {
		flags |= enterGetEvents
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD), r.publish(), 0, flags, 0, 0)
	return e
}

// Wait hands all SQEs built to the kernel and sleeps until the completion queue holds one CQE:
// io_uring_enter(2). A limit above 0 ends the sleep with ETIME. EINTR means: look at the completion
// queue and call again.
//
// With release the scheduler knows that the thread is in a system call, and may give its P away.
// Without, the thread keeps its P, so that the scheduler's monitor leaves it alone; a garbage
// collection, or whoever else needs the P, ends the sleep by a signal with EINTR.
func (r *Ring) Wait(limit time.Duration, release bool) syscall.Errno {
	flags := r.enterFlags | enterGetEvents
	var arg, size uintptr
	if limit > 0 {
		r.arg.spec = unix.NsecToTimespec(int64(limit))
		r.arg.ts = uint64(uintptr(unsafe.Pointer(&r.arg.spec)))
		arg, size = uintptr(unsafe.Pointer(&r.arg)), sizeofExtArg
		flags |= enterExtArg
	}
	if release {
		_, _, e := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD), r.publish(), 1, flags, arg, size)
		return e
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD), r.publish(), 1, flags, arg, size)
	return e
}

// Ready is the number of CQEs that wait to be reaped.
func (r *Ring) Ready() int { return int(atomic.LoadUint32(r.cqTail) - atomic.LoadUint32(r.cqHead)) }

// Reap appends every CQE there is to dst and frees their places: one load with acquire semantics
// before the entries are read, one store with release semantics after (io_uring(7), "completion").
func (r *Ring) Reap(dst []CQE) []CQE {
	head, tail := atomic.LoadUint32(r.cqHead), atomic.LoadUint32(r.cqTail)
	if head == tail {
		return dst
	}
	mask := uint32(len(r.cqes) - 1)
	for ; head != tail; head++ {
		dst = append(dst, r.cqes[head&mask])
	}
	atomic.StoreUint32(r.cqHead, head)
	return dst
}

// NeedsEnter says that completions are to be had by a Submit with events: deferred work is
// pending (IORING_SQ_TASKRUN, only under SetupTaskrunFlag) or the completion queue has overflowed.
func (r *Ring) NeedsEnter() bool { return atomic.LoadUint32(r.sqFlags)&(sqCQOverflow|sqTaskrun) != 0 }
