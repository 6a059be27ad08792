package uring

import "lunar/datapath/uring/internal/sys"

// completer owns a slot: an operation, a socket's half, or what is left of a held operation. The
// slot keeps it, and with it the memory that the kernel uses, reachable.
type completer interface {
	complete(r *Ring, slot uint32, res int32, flags uint32)
}

// slot is one request that the kernel may have. The kernel knows it by a tag of its number and
// generation, never by a pointer.
type slot struct {
	owner completer
	gen   uint32
}

// Tags of the ring's own requests; above every slot's number.
const (
	tagWake = ^uint32(0) - iota
	tagTick
	tagCancel
)

func (r *Ring) makeSlots(n int) {
	r.slots = make([]slot, n)
	r.free = make([]uint32, 0, n)
	for i := n - 1; i >= 0; i-- {
		r.free = append(r.free, uint32(i))
	}
}

// acquire gives c a slot; the callers' bounds leave one free always.
func (r *Ring) acquire(c completer) uint32 {
	i := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.slots[i].owner = c
	return i
}

// release frees a slot; a completion that still names it is stale.
func (r *Ring) release(i uint32) {
	r.slots[i].owner = nil
	r.slots[i].gen++
	r.free = append(r.free, i)
}

func (r *Ring) tag(i uint32) uint64 { return uint64(r.slots[i].gen)<<32 | uint64(i) }

// complete hands one completion to its owner.
func (r *Ring) complete(c sys.CQE) {
	i, gen := uint32(c.UserData), uint32(c.UserData>>32)
	if int(i) < len(r.slots) {
		s := &r.slots[i]
		if s.owner == nil || s.gen != gen {
			r.log.Error("stale completion", "slot", i, "generation", gen, "res", c.Res)
			return
		}
		r.quiet = 0
		s.owner.complete(r, i, c.Res, c.Flags)
		return
	}
	r.completeOwn(i, c)
}

func (r *Ring) completeOwn(tag uint32, c sys.CQE) {
	switch tag {
	case tagWake:
		if c.Flags&sys.CQEMore == 0 && !r.closing {
			r.armWake()
		}
	case tagTick:
		if !r.aborted {
			r.armTick()
		}
	case tagCancel:
		r.cancels--
	}
}

// armWake polls the descriptor that wakes the thread. Its count is never read: each write posts a
// completion.
func (r *Ring) armWake() {
	e := r.sqe()
	e.PollMultishot(int32(r.mail.fd))
	e.Tag(uint64(tagWake))
}

// armTick starts the timer that bounds every sleep.
func (r *Ring) armTick() {
	e := r.sqe()
	e.Timeout(&r.period)
	e.Tag(uint64(tagTick))
}

// cancelTag asks the kernel to cancel a request; false while too many such requests are under way.
func (r *Ring) cancelTag(tag uint64) bool {
	if r.cancels == maxCancels {
		return false
	}
	r.cancels++
	e := r.sqe()
	e.Cancel(tag)
	e.Tag(uint64(tagCancel))
	return true
}
