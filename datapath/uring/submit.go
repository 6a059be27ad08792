package uring

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// opList is a FIFO of operations, linked through Op.next.
type opList struct {
	head, tail *Op
	n          int
}

func (l *opList) empty() bool { return l.head == nil }

func (l *opList) push(op *Op) {
	op.next = nil
	if l.tail == nil {
		l.head = op
	} else {
		l.tail.next = op
	}
	l.tail = op
	l.n++
}

func (l *opList) pop() *Op {
	op := l.head
	if l.head = op.next; l.head == nil {
		l.tail = nil
	}
	op.next = nil
	l.n--
	return op
}

// takeAll empties the list; what it returns is linked through next.
func (l *opList) takeAll() *Op {
	head := l.head
	*l = opList{}
	return head
}

// removeIf takes out every operation for which cond holds, in order.
func (l *opList) removeIf(cond func(*Op) bool) (out opList) {
	var rest opList
	for op := l.takeAll(); op != nil; {
		next := op.next
		if cond(op) {
			out.push(op)
		} else {
			rest.push(op)
		}
		op = next
	}
	*l = rest
	return out
}

// Submit starts op; Done is called later, never before Submit returned. Operations of a ring start in the
// order of their Submit, those for other devices excepted while a device's queue is full, and complete in any.
// When Options.InFlight operations are in the kernel, or as many as the device takes, and Options.Queue wait,
// op fails with ErrQueueFull.
func (r *Ring) Submit(op *Op) {
	op.N, op.Err, op.Held, op.tries, op.why, op.asked = 0, nil, false, 0, 0, false
	op.skipCmd = false
	if kind := r.refusal(op); kind != nil {
		r.finish(op, kind, errnos[kind])
		return
	}
	if op.File != nil {
		op.File.uses[r.index].ops++
	}
	limit := op.Deadline
	if limit <= 0 {
		limit = r.opts.Deadline
	}
	r.expireAt(op, r.now+limit)
	if op.Mark != 0 {
		r.clock.Queued(op.Mark)
	}
	if r.queue.empty() && r.inKernel < r.opts.InFlight {
		r.place(op)
		return
	}
	op.state = queued
	r.queue.push(op)
}

// refusal tells why op cannot be taken.
func (r *Ring) refusal(op *Op) error {
	switch {
	case op.Code >= numCodes || !codes[op.Code].check(op):
		return ErrInvalid
	case r.closing || op.File != nil && op.File.closing.Load():
		return ErrClosed
	case r.waiting() >= r.opts.Queue:
		return ErrQueueFull
	}
	return nil
}

// start issues what is left of op.
func (r *Ring) start(op *Op) {
	op.slot = r.acquire(op)
	r.inKernel++
	r.fresh++
	op.File.count(r.index, 1)
	op.state = inKernel
	if op.Mark != 0 {
		r.clock.Issued(op.Mark)
	}
	if op.skipCmd {
		r.discardByIoctl(op)
		return
	}
	e := r.sqe()
	codes[op.Code].prep(r, op, e)
	if op.fault != nil {
		op.fault.alter(r, op, e)
	}
	e.Tag(r.tag(op.slot))
}

// refill starts what waits, as far as the bound allows.
func (r *Ring) refill() {
	if len(r.crowded) > 0 {
		r.refillCrowded()
	}
	for !r.queue.empty() && r.inKernel < r.opts.InFlight {
		r.place(r.queue.pop())
	}
}

// finish lets op fail; Done follows from the loop.
func (r *Ring) finish(op *Op, kind error, errno syscall.Errno) {
	op.fail(kind, errno)
	op.state = finished
	r.finished.push(op)
}

// unqueued ends the engine's part in an accepted op that is not in the kernel.
func (r *Ring) unqueued(op *Op, errno syscall.Errno) {
	r.letFile(op.File)
	r.finish(op, kindOf(errno), errno)
}

func (r *Ring) letFile(f *File) {
	if f == nil {
		return
	}
	use := &f.uses[r.index]
	use.ops--
	use.settle()
}

// done gives op back to its owner.
func (r *Ring) done(op *Op) {
	op.state = idle
	op.next, op.fault = nil, nil
	if op.Done != nil {
		op.Done(op)
	}
}

// complete is the kernel's answer to one request of op.
func (op *Op) complete(r *Ring, slot uint32, res int32, _ uint32) {
	r.release(slot)
	r.inKernel--
	op.File.count(r.index, -1)
	if op.Mark != 0 {
		r.clock.Completed(op.Mark)
	}
	if op.fault != nil {
		res = op.fault.result(res)
	}
	if res < 0 {
		op.failed(r, syscall.Errno(-res))
		return
	}
	if !codes[op.Code].transfer {
		op.end(r)
		return
	}
	op.N += int(res)
	switch {
	case op.N >= len(op.Buf):
		op.end(r)
	case res == 0:
		op.endWith(r, ErrShort, unix.EIO)
	case op.why != 0:
		op.endWith(r, kindOf(op.why), op.why)
	default:
		op.tries = 0
		r.start(op)
	}
}

// failed judges an errno: try again, another way, or the end.
func (op *Op) failed(r *Ring, e syscall.Errno) {
	interrupted := e == unix.EINTR || e == unix.ECANCELED || e == unix.EAGAIN
	switch {
	case op.why != 0 && interrupted:
		op.endWith(r, kindOf(op.why), op.why)
	case (e == unix.EAGAIN || e == unix.EINTR) && op.tries < maxTries:
		op.tries++
		r.start(op)
	case e == unix.EINVAL && op.Code == Read && op.N%512 != 0:
		op.endWith(r, ErrShort, unix.EIO) // direct I/O met the end of the file inside a sector
	case op.Code == Discard && op.File.block && !op.skipCmd && (e == unix.EOPNOTSUPP || e == unix.EINVAL):
		op.skipCmd = true
		r.start(op)
	default:
		op.endWith(r, kindOf(e), e)
	}
}

func (op *Op) endWith(r *Ring, kind error, errno syscall.Errno) {
	op.fail(kind, errno)
	op.end(r)
}

func (op *Op) end(r *Ring) {
	r.letFile(op.File)
	r.done(op)
}

// expireAt sets the time at which op needs attention.
func (r *Ring) expireAt(op *Op, at time.Duration) {
	op.expires = at
	r.due = min(r.due, at)
}
