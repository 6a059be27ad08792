package uring

import (
	"syscall"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// MaxWatches bounds the watches of a ring.
const MaxWatches = 16

// Watch is a descriptor that a ring waits on for others, who read it themselves.
type Watch struct {
	ring     *Ring
	fd       int32
	slot     uint32
	ready    func()
	stopped  func()
	armed    bool // the kernel has the request
	stopping bool
}

// Watch has ready called on the thread when fd has input, and at each wake-up that brings more; also when fd
// fails, which its owner finds out by reading. One call may stand for several wake-ups, and there may be nothing
// to read in it: fd does not block, and ready reads until EAGAIN. fd stays the caller's, who keeps it open until
// Stop has ended.
func (r *Ring) Watch(fd int, ready func()) (*Watch, error) {
	switch {
	case r.closing:
		return nil, &SocketError{Operation: "watch", Kind: ErrClosed, Errno: unix.EBADF}
	case r.watches >= MaxWatches:
		return nil, &SocketError{Operation: "watch", Kind: ErrQueueFull, Errno: unix.EMFILE}
	}
	w := &Watch{ring: r, fd: int32(fd), ready: ready}
	r.watches++
	w.slot = r.acquire(w)
	w.arm()
	return w, nil
}

func (w *Watch) arm() {
	w.armed = true
	e := w.ring.sqe()
	e.PollMultishot(w.fd)
	e.Tag(w.ring.next(w.slot))
}

func (w *Watch) complete(r *Ring, _ uint32, res int32, flags uint32) {
	w.armed = flags&sys.CQEMore != 0
	if !w.stopping {
		if res < 0 {
			r.log.Warn("wait for input", "descriptor", w.fd, "err", syscall.Errno(-res))
		}
		w.ready()
	}
	switch {
	case w.armed:
	case w.stopping:
		w.end()
	case res != -int32(unix.EBADF):
		w.arm()
	}
}

// Stop ends the calls of ready at once, and calls stopped, later and once, when the kernel has let go of the
// descriptor. It is called once.
func (w *Watch) Stop(stopped func()) {
	w.stopping, w.stopped = true, stopped
	w.ring.later = append(w.ring.later, w.cancel)
}

func (w *Watch) cancel() {
	switch {
	case w.slot == noSlot:
	case !w.armed:
		w.end()
	case !w.ring.cancelTag(w.ring.tag(w.slot)):
		w.ring.later = append(w.ring.later, w.cancel)
	}
}

const noSlot = ^uint32(0)

func (w *Watch) end() {
	w.ring.release(w.slot)
	w.slot = noSlot
	w.ring.watches--
	w.stopped()
}
