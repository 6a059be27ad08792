package uring

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// beginClose makes the ring refuse new work and end when it is drained.
func (r *Ring) beginClose() {
	r.mail.refuse()
	_ = r.mail.post(func() {
		r.closing = true
		for s := range r.sockets {
			s.Close(nil)
		}
	}, true)
}

// beginAbort makes the ring cancel what is under way; see Engine.Close.
func (r *Ring) beginAbort() {
	_ = r.mail.post(func() {
		r.aborted = true
		r.eachQueue(func(l *opList) {
			r.drop(l, unix.ECANCELED, func(*Op) bool { return true })
		})
		for i := range r.slots {
			if op, ok := r.slots[i].owner.(*Op); ok {
				r.Cancel(op)
			}
		}
	}, true)
}

// drained says that the ring can end. Held operations are waited for unless the close was aborted.
func (r *Ring) drained() bool {
	left := r.inKernel
	if r.aborted {
		left -= r.heldOps
	}
	return left == 0 && r.waiting() == 0 && r.finished.empty() && len(r.later) == 0 && len(r.sockets) == 0 && r.mail.kill()
}

// abandoned keeps what the kernel may still write to when a ring is closed over held operations.
var abandoned struct {
	sync.Mutex // guards slots
	slots      [][]slot
}

// abandon accounts for the operations that the kernel did not give back.
func (r *Ring) abandon() {
	if r.heldOps == 0 {
		return
	}
	r.closeErr = fmt.Errorf("uring: ring %d: closed with %d operations held by the kernel: %w", r.index, r.heldOps, ErrDeadline)
	abandoned.Lock()
	abandoned.slots = append(abandoned.slots, r.slots)
	abandoned.Unlock()
}
