package nbd

import (
	"errors"
	"io"
)

// read takes answers in until the set ends. Payload goes straight into the caller's buffer.
func (c *clientConn) read() error {
	var head [structuredSize]byte
	r := c.ses.link.r
	for {
		if _, err := io.ReadFull(r, head[:simpleSize]); err != nil {
			return err
		}
		var err error
		switch magic := be.Uint32(head[:]); {
		case magic == magicSimple:
			err = c.simple(Errno(be.Uint32(head[4:])), be.Uint64(head[8:]))
		case magic == magicStructured && c.ses.structured:
			if _, err = io.ReadFull(r, head[simpleSize:]); err == nil {
				err = c.chunk(parseChunk(head[4:]))
			}
		default:
			err = violation("an answer begins with %#x", magic)
		}
		if err != nil {
			return err
		}
	}
}

// find is the call that an answer is for. With into it says where n bytes at off of the export go,
// nil for nowhere, and the buffer is the reader's until finish or later.
func (c *clientConn) find(cookie uint64) (*call, error) {
	slot := int(uint16(cookie))
	if slot >= len(c.slots) || c.slots[slot] == nil || c.slots[slot].cookie != cookie || c.slots[slot].state == queued {
		return nil, violation("an answer to a request that was not made, cookie %#x", cookie)
	}
	return c.slots[slot], nil
}

func (c *clientConn) simple(errno Errno, cookie uint64) error {
	c.mu.Lock()
	k, err := c.find(cookie)
	if err != nil || k.state == answered || k.command == cmdRead && c.ses.structured {
		c.mu.Unlock()
		return errors.Join(err, violation("a simple reply that does not fit its request"))
	}
	if k.command != cmdRead || errno != 0 {
		defer c.mu.Unlock()
		c.finish(k, errno.err(""))
		return nil
	}
	p := c.receive(k)
	c.mu.Unlock()
	if err := c.fill(p, int64(k.length)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(k, nil)
	return nil
}

// receive takes a read's buffer for the reader; nil when the call was given up. mu is locked.
func (c *clientConn) receive(k *call) []byte {
	if k.state == abandoned {
		return nil
	}
	k.state = receiving
	return k.buf
}

// fill reads n bytes into p, or over them where p is nil.
func (c *clientConn) fill(p []byte, n int64) error {
	if p == nil {
		_, err := io.CopyN(io.Discard, c.ses.link.r, n)
		return err
	}
	_, err := io.ReadFull(c.ses.link.r, p)
	return err
}

// finish ends a call; mu is locked.
func (c *clientConn) finish(k *call, err error) {
	switch k.state {
	case abandoned:
		c.release(k)
		c.given--
		<-c.tokens
		return
	case sending:
		k.state, k.err = answered, err
		return
	}
	k.err = err
	c.release(k)
	k.done <- struct{}{}
}

// chunkTable says what is done with each kind of chunk.
var chunkTable = map[uint16]func(c *clientConn, k *call, h chunk) error{
	chunkNone: func(_ *clientConn, _ *call, h chunk) error {
		if h.length != 0 || h.flags&chunkDone == 0 {
			return violation("a chunk NONE with %d bytes, flags %#x", h.length, h.flags)
		}
		return nil
	},
	chunkData: (*clientConn).data,
	chunkHole: (*clientConn).hole,
}

// chunk takes one part of a structured reply.
func (c *clientConn) chunk(h chunk) error {
	c.mu.Lock()
	k, err := c.find(h.cookie)
	if err == nil && k.state == answered {
		err = violation("an answer after the last, cookie %#x", h.cookie)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	do := chunkTable[h.kind]
	switch {
	case h.kind&chunkErrorBit != 0:
		do = (*clientConn).errorChunk
	case do == nil:
		return violation("a chunk of kind %d", h.kind)
	}
	if err := do(c, k, h); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.flags&chunkDone == 0 {
		return nil
	}
	if k.err == nil && k.command == cmdRead && k.state != abandoned && !k.complete() {
		return violation("a read of %d bytes with only some of them answered", k.length)
	}
	c.finish(k, k.err)
	return nil
}

// maxMessage bounds an error chunk: its fields and a message.
const maxMessage = 14 + maxString

func (c *clientConn) errorChunk(k *call, h chunk) error {
	if h.length > maxMessage {
		return violation("an error chunk of %d bytes", h.length)
	}
	p, err := exactly(c.ses.link.r, int(h.length))
	if err != nil {
		return err
	}
	errno, message, err := parseError(p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.state != abandoned && k.err == nil {
		k.err = errno.err(message)
	}
	return nil
}

func (c *clientConn) data(k *call, h chunk) error {
	if h.length <= 8 {
		return violation("a chunk DATA of %d bytes", h.length)
	}
	p, n, err := c.part(k, h.length-8)
	if err != nil {
		return err
	}
	return c.fill(p, n)
}

func (c *clientConn) hole(k *call, h chunk) error {
	if h.length != 12 {
		return violation("a chunk HOLE of %d bytes", h.length)
	}
	p, _, err := c.part(k, 0)
	clear(p)
	return err
}

// part reads where a content chunk belongs, n bytes, or as many as it says itself, and checks that it
// is asked for and new. p is nil for a call that was given up.
func (c *clientConn) part(k *call, n uint32) (p []byte, _ int64, err error) {
	var b [12]byte
	own := 8
	if n == 0 {
		own = 12
	}
	if _, err := io.ReadFull(c.ses.link.r, b[:own]); err != nil {
		return nil, 0, err
	}
	if n == 0 {
		n = be.Uint32(b[8:])
	}
	off := be.Uint64(b[:]) - k.off
	if k.command != cmdRead || n == 0 || off > uint64(k.length) || uint64(n) > uint64(k.length)-off || !k.arrives(span{off, off + uint64(n)}) {
		return nil, 0, violation("a chunk with %d bytes at %d that were not asked for", n, be.Uint64(b[:]))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p = c.receive(k); p != nil {
		p = p[off : off+uint64(n)]
	}
	return p, int64(n), nil
}

// maxSpans bounds the parts of one answer.
const maxSpans = 4096

// arrives notes a part of a read; false when it was there before.
func (k *call) arrives(s span) bool {
	for i := range k.spans {
		o := &k.spans[i]
		switch {
		case s.from < o.to && o.from < s.to:
			return false
		case o.to == s.from:
			o.to = s.to
			return true
		}
	}
	k.spans = append(k.spans, s)
	return len(k.spans) <= maxSpans
}

// complete tells whether all of a read has arrived; parts do not overlap.
func (k *call) complete() bool {
	var n uint64
	for _, s := range k.spans {
		n += s.to - s.from
	}
	return n == uint64(k.length)
}
