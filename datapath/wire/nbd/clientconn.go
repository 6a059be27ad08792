package nbd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"lunar/datapath/layout/protocol"
)

// callState says who has a call's buffer.
type callState uint8

const (
	queued    callState = iota // the caller; not a byte was sent
	sending                    // the writer: a payload on its way out
	sent                       // nobody, until the answer comes
	receiving                  // the reader
	answered                   // the writer still, although the answer is there
	abandoned                  // given up: the answer goes to nobody
)

// call is a request under way at a client, in a slot of its connection. Guarded by the connection's mu.
type call struct {
	request
	state callState
	buf   []byte
	err   error
	began time.Time
	spans []span        // of a reply in several chunks
	done  chan struct{} // one token, when the call has ended and its buffer is free
}

// span is a part of a read that has arrived.
type span struct{ from, to uint64 }

// clientConn is one connection: a reader, a writer, and a slot per call under way. A cookie is the
// slot's number below the number of its use, so that an answer that comes twice is found out.
type clientConn struct {
	set    *connSet
	ses    *session
	tokens chan struct{} // window
	wake   chan struct{} // for the writer
	ended  chan struct{} // closed by stop

	mu     sync.Mutex // guards what follows
	slots  []*call
	uses   []uint32
	free   []uint16
	queue  []*call
	given  int // calls that are abandoned
	closed bool
}

func newClientConn(s *connSet, x *session) *clientConn {
	n := s.opts.Window
	c := &clientConn{set: s, ses: x, tokens: make(chan struct{}, n), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		slots: make([]*call, n), uses: make([]uint32, n)}
	for i := range n {
		c.free = append(c.free, uint16(n-1-i))
	}
	return c
}

func (c *clientConn) start() {
	var writer sync.WaitGroup
	writer.Add(1)
	c.set.wg.Add(2)
	go func() {
		defer c.set.wg.Done()
		defer writer.Done()
		c.write()
	}()
	go func() {
		defer c.set.wg.Done()
		err := c.read()
		c.set.fail(err)
		writer.Wait()
		c.settle()
	}()
}

// stop makes reader and writer end.
func (c *clientConn) stop() {
	close(c.ended)
	_ = c.ses.raw.Close()
}

// settle ends every call, now that nobody else has its buffer.
func (c *clientConn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for i, k := range c.slots {
		if k != nil {
			c.slots[i] = nil
			k.err = c.set.reason()
			k.done <- struct{}{}
		}
	}
}

func newCall(r request, p []byte) *call {
	return &call{request: r, buf: p, done: make(chan struct{}, 1)}
}

// do makes one call and waits for its end.
func (c *clientConn) do(ctx context.Context, r request, p []byte) error {
	select {
	case c.tokens <- struct{}{}:
	default:
		select {
		case c.tokens <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("nbd: window of %d requests: %w: %w", len(c.slots), protocol.ErrUnreachable, ctx.Err())
		case <-c.ended:
			return c.set.reason()
		}
	}
	k := newCall(r, p)
	if !c.enqueue(k) {
		<-c.tokens
		return c.set.reason()
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if !c.abandon(k) { // its slot and token are the reader's
			return fmt.Errorf("nbd: %w: %w", protocol.ErrUnreachable, ctx.Err())
		}
		if <-k.done; k.err != nil {
			k.err = fmt.Errorf("%w: %w", ctx.Err(), k.err)
		}
	}
	<-c.tokens
	return k.err
}

func (c *clientConn) enqueue(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	slot := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.uses[slot]++
	k.cookie = uint64(c.uses[slot])<<16 | uint64(slot)
	c.slots[slot] = k
	c.queue = append(c.queue, k)
	if len(c.queue) == 1 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// release frees a call's slot; mu is locked.
func (c *clientConn) release(k *call) {
	slot := uint16(k.cookie)
	if c.slots[slot] == k { // DISC has none
		c.slots[slot] = nil
		c.free = append(c.free, slot)
	}
}

// abandon gives a call up whose ctx has ended. It returns true when the caller has to wait for done,
// which comes soon.
func (c *clientConn) abandon(k *call) (wait bool) {
	c.mu.Lock()
	if len(k.done) > 0 {
		c.mu.Unlock()
		return true
	}
	harmless := k.command == cmdRead || k.command == cmdFlush
	switch {
	case k.state == queued:
		c.unqueue(k)
		c.mu.Unlock()
		return true
	case k.state == sent && harmless && c.given < len(c.slots)/2:
		k.state, k.buf = abandoned, nil
		c.given++
		c.mu.Unlock()
		return false
	}
	c.mu.Unlock()
	c.set.fail(fmt.Errorf("nbd: command %d was given up after it was sent", k.command))
	return true
}

// unqueue ends a call of which nothing was sent; mu is locked.
func (c *clientConn) unqueue(k *call) {
	for i, q := range c.queue {
		if q == k {
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
			break
		}
	}
	c.release(k)
	k.err = errNotSent
	k.done <- struct{}{}
}

var errNotSent = fmt.Errorf("nbd: nothing was sent: %w", protocol.ErrUnreachable)
