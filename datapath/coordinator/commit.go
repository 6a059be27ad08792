package coordinator

import (
	"errors"
	"sync"
)

// commits makes changes of one file durable, many by one call. A file system commits its log as a whole, and lets no
// write of the file allocate meanwhile. So writes that allocate wait for each other: those that come while some are
// made and committed are the next ones.
type commits struct {
	mu   sync.Mutex // guards what follows, and what next has
	next *round     // not begun; who made it leads it
	last *round     // that was made
}

// round is what is committed by one call.
type round struct {
	writes []*allocating
	over   chan struct{} // closed when err is set
	err    error         // of the commit
}

// allocating is a write through the file system that gives its blocks another place.
type allocating struct {
	p    []byte // for direct I/O; on the heap
	off  int64
	done bool
	err  error
}

// do returns when w, if it is not nil, and sync have been run in this order, here or for another caller; sync began
// after do did.
func (c *commits) do(w *allocating, write func([]*allocating), sync func() error) error {
	r, before, lead := c.join(w)
	if lead {
		if before != nil {
			<-before.over
		}
		write(c.begin(r))
		r.err = sync()
		close(r.over)
	}
	<-r.over
	if w != nil {
		return errors.Join(w.err, r.err)
	}
	return r.err
}

// join adds w to the next round. Who leads it runs it, when the one before is over.
func (c *commits) join(w *allocating) (r, before *round, lead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if lead = c.next == nil; lead {
		before = c.last
		c.next = &round{over: make(chan struct{})}
		c.last = c.next
	}
	if w != nil {
		c.next.writes = append(c.next.writes, w)
	}
	return c.next, before, lead
}

// begin lets nobody join r any more.
func (c *commits) begin(r *round) []*allocating {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = nil
	return r.writes
}

// commit makes durable what was changed before.
func (im *image) commit() error { return im.putDurable(nil) }

// putDurable makes a write durable, and what was changed before.
func (im *image) putDurable(w *allocating) error {
	return im.commits.do(w, im.putAll, func() error { return durableData(im.file) })
}

// putAll makes writes of ranges that nobody else touches, and notes how each fared.
func (im *image) putAll(writes []*allocating) {
	if len(writes) > 1 {
		if a, err := im.c.aios.take(); err == nil { // else there are too many in the system
			for at := 0; at < len(writes); at += aioDepth {
				a.write(im.fd(), writes[at:min(len(writes), at+aioDepth)])
			}
			im.c.aios.give(a)
		}
	}
	for _, w := range writes {
		if !w.done { // not begun, or in part, or not at all: the call itself tells what is wrong
			w.err = writeFull(im.fd(), w.p, w.off, false)
		}
	}
}
