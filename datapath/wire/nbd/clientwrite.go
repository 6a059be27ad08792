package nbd

import (
	"fmt"
	"runtime"
	"time"
)

// batch is what the writer sends at once; its memory is used again.
type batch struct {
	heads  [][requestSize]byte
	pieces [][]byte
	writes []*call // those whose payload goes out
}

// write sends what was queued, all of it at once, until the set ends.
func (c *clientConn) write() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	b := batch{heads: make([][requestSize]byte, 0, len(c.slots)+1)}
	for {
		select {
		case <-c.wake:
		case now := <-tick.C:
			c.watch(now)
			continue
		case <-c.ended:
			return
		}
		runtime.Gosched() // callers that are about to call come first, so that one call sends all
		for c.take(&b) {
			_ = c.ses.raw.SetWriteDeadline(time.Now().Add(c.set.opts.CallTimeout))
			if err := c.ses.link.send(b.pieces); err != nil {
				c.set.fail(err)
				return
			}
			c.wrote(&b)
		}
	}
}

// take empties the queue into b; false when it was empty.
func (c *clientConn) take(b *batch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.heads, b.pieces, b.writes = b.heads[:0], b.pieces[:0], b.writes[:0]
	if len(c.queue) == 0 {
		return false
	}
	now := time.Now()
	for i, k := range c.queue {
		b.heads = append(b.heads, [requestSize]byte{})
		head := b.heads[len(b.heads)-1][:]
		k.put(head)
		k.began, k.state = now, sent
		b.pieces = append(b.pieces, head)
		switch k.command {
		case cmdWrite:
			k.state = sending
			b.pieces = append(b.pieces, k.buf)
			b.writes = append(b.writes, k)
		case cmdDisc:
			k.state = answered
			b.writes = append(b.writes, k)
		}
		c.queue[i] = nil
	}
	c.queue = c.queue[:0]
	return true
}

// wrote gives the payloads that were sent back.
func (c *clientConn) wrote(b *batch) {
	if len(b.writes) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range b.writes {
		if k.state == answered {
			c.release(k)
			k.done <- struct{}{}
		} else {
			k.state = sent
		}
		b.writes[i] = nil
	}
}

// watch breaks the set when a request is not answered for too long.
func (c *clientConn) watch(now time.Time) {
	limit := c.set.opts.CallTimeout
	c.mu.Lock()
	late := false
	for _, k := range c.slots {
		late = late || k != nil && k.state != queued && now.Sub(k.began) > limit
	}
	c.mu.Unlock()
	if late {
		c.set.fail(fmt.Errorf("nbd: a request was not answered in %v", limit))
	}
}

// goodbye sends DISC when nothing is under way.
func (c *clientConn) goodbye() {
	k := newCall(request{command: cmdDisc}, nil)
	c.mu.Lock()
	if len(c.free) != len(c.slots) || c.closed {
		c.mu.Unlock()
		return
	}
	c.queue = append(c.queue, k)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-k.done:
	case <-c.ended:
	case <-patience.C:
	}
}
