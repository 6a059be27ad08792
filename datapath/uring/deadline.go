package uring

import (
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cancelRetry is how soon a cancel request is tried again that found too many others under way.
const cancelRetry = 10 * time.Millisecond

// expire looks for operations past their deadline, when the earliest can have passed.
func (r *Ring) expire() {
	if r.now < r.due {
		return
	}
	r.due = never
	r.eachQueue(func(l *opList) {
		r.drop(l, unix.ETIMEDOUT, func(op *Op) bool { return op.expires <= r.now })
		for op := l.head; op != nil; op = op.next {
			r.due = min(r.due, op.expires)
		}
	})
	for i := range r.slots {
		if op, ok := r.slots[i].owner.(*Op); ok {
			r.judge(op)
		}
	}
}

// drop ends the waiting operations of l for which cond holds.
func (r *Ring) drop(l *opList, why syscall.Errno, cond func(*Op) bool) {
	gone := l.removeIf(cond)
	for op := gone.takeAll(); op != nil; {
		next := op.next
		r.unqueued(op, why)
		op = next
	}
}

// judge cancels an operation in the kernel that is past its deadline, and gives up on one that
// did not come back from that.
func (r *Ring) judge(op *Op) {
	switch {
	case op.expires > r.now:
		r.due = min(r.due, op.expires)
	case !op.asked:
		if op.why == 0 {
			op.why = unix.ETIMEDOUT
		}
		r.cancelInKernel(op)
	default:
		r.hold(op)
	}
}

// cancelInKernel asks the kernel to cancel op; op.why says why.
func (r *Ring) cancelInKernel(op *Op) {
	if op.fault.ignoresCancel() {
		op.asked = true
	} else {
		op.asked = r.cancelTag(r.tag(op.slot))
	}
	if op.asked {
		r.expireAt(op, r.now+r.opts.Grace)
	} else {
		r.expireAt(op, r.now+cancelRetry)
	}
}

// Cancel ends op early, with ErrCanceled unless it completes before the kernel could cancel it.
// Done is called in any case, later. Cancel of an operation that is not under way does nothing.
func (r *Ring) Cancel(op *Op) {
	switch op.state {
	case queued:
		r.eachQueue(func(l *opList) {
			r.drop(l, unix.ECANCELED, func(o *Op) bool { return o == op })
		})
	case inKernel:
		if op.why == 0 {
			op.why = unix.ECANCELED
			r.cancelInKernel(op)
		}
	}
}

// heldOp is what is left of an operation that was reported while the kernel still has it.
type heldOp struct {
	file     *File
	buf      []byte
	released func()
}

// hold reports op although the kernel still has its request: the slot keeps the buffer.
func (r *Ring) hold(op *Op) {
	h := &heldOp{file: op.File, buf: op.Buf, released: op.Released}
	r.slots[op.slot].owner = h
	r.heldOps++
	r.engine.hold(h.buf)
	op.Held = true
	op.fail(kindOf(op.why), op.why)
	r.log.Warn("operation held by the kernel after its cancellation", "op", op.Code.String(), "offset", op.Offset, "bytes", len(op.Buf))
	r.done(op) // at once: Released must not come first
}

func (h *heldOp) complete(r *Ring, slot uint32, _ int32, _ uint32) {
	r.release(slot)
	r.inKernel--
	r.heldOps--
	h.file.count(r.index, -1)
	r.engine.letGo(h.buf)
	r.letFile(h.file)
	if h.released != nil {
		h.released()
	}
}

// tick calls the hooks of OnTick when their time has come.
func (r *Ring) tick() {
	if r.now < r.nextTick {
		return
	}
	r.nextTick = r.now + tickPeriod
	r.keeps = runtime.GOMAXPROCS(0) > r.opts.Rings
	now := r.engine.epoch.Add(r.now)
	for _, fn := range r.onTick {
		fn(now)
	}
}
