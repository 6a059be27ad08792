package iscsi

import (
	"time"

	"lunar/iscsi/pdu"
)

// statSN says how a PDU treats the status sequence, RFC 7143 §4.2.2.2.
type statSN uint8

const (
	statNone statSN = iota // the field is reserved
	statPeek               // carries the next number and leaves it
	statTake               // consumes a number
)

// frame is one PDU on its way out. Sequence numbers, window and digests are filled in when it is
// handed to the socket, so they are as fresh as can be.
type frame struct {
	wire  [pdu.HeaderLen + pdu.DigestLen]byte // the header, and its digest in the same vector
	data  []byte
	tail  [3 + pdu.DigestLen]byte
	stat  statSN
	opens bool  // answers a command that held a place in the window
	plain bool  // goes out before the digests of its connection begin
	last  bool  // the connection closes when it was sent
	task  *task // given back when it was sent
	next  *frame
}

func (f *frame) head() *pdu.Header { return (*pdu.Header)(f.wire[:]) }

// framePool keeps frames for anew use on one lane.
type framePool struct{ free *frame }

func (p *framePool) get() *frame {
	f := p.free
	if f == nil {
		return new(frame)
	}
	p.free, f.next = f.next, nil
	return f
}

func (p *framePool) put(f *frame) {
	f.data, f.task, f.stat, f.opens, f.plain, f.last = nil, nil, statNone, false, false, false
	p.free, f.next = f, p.free
}

// sender gathers the answers of a batch into one Send.
type sender struct {
	first, end *frame
	queued     int
	sending    []*frame
	bufs       [][]byte
	underway   bool
	dirty      bool // on the reactor's list
	since      time.Time
	done       func(error)
	statSN     uint32

	headerDigest, dataDigest bool
}

// frame makes an answer to the PDU with tag itt; send puts it into the queue.
func (c *conn) frame(op pdu.Opcode, flags byte, itt uint32) *frame {
	f := c.reactor.frames.get()
	f.head().Reset(op, flags)
	f.head().SetITT(itt)
	return f
}

// send queues f, which is not the caller's any more: a closing connection has given it back already.
func (c *conn) send(f *frame) {
	tx := &c.tx
	if c.closing {
		c.recycle(f)
		return
	}
	if tx.end == nil {
		tx.first = f
	} else {
		tx.end.next = f
	}
	tx.end = f
	tx.queued++
	c.touch()
}

// touch has flush called at the end of the batch.
func (c *conn) touch() {
	if !c.tx.dirty {
		c.tx.dirty = true
		c.reactor.dirty = append(c.reactor.dirty, c)
	}
}

// vectorsPerFrame is what one PDU takes at most: header, data, padding with digest.
const vectorsPerFrame = 3

func (c *conn) flush() {
	tx := &c.tx
	if tx.underway || c.closing {
		return
	}
	if tx.first == nil {
		c.drained()
		return
	}
	tx.bufs, tx.sending = tx.bufs[:0], tx.sending[:0]
	for last := false; tx.first != nil && !last && len(tx.bufs)+vectorsPerFrame <= MaxSendBuffers; {
		f := tx.first
		last = f.last
		tx.first, f.next = f.next, nil
		tx.queued--
		c.stamp(f)
		tx.bufs = c.vectors(tx.bufs, f)
		tx.sending = append(tx.sending, f)
	}
	if tx.first == nil {
		tx.end = nil
	}
	tx.underway, tx.since = true, c.reactor.now
	c.sock.Send(tx.bufs, tx.done)
}

func (c *conn) stamp(f *frame) {
	switch f.stat {
	case statTake:
		f.head().SetStatSN(c.tx.statSN)
		if f.task != nil {
			f.task.stat = c.tx.statSN
		}
		c.tx.statSN++
	case statPeek:
		f.head().SetStatSN(c.tx.statSN)
	}
	if f.opens {
		c.win.used--
	}
	c.win.told = c.win.last()
	f.head().SetWindow(c.win.expected, c.win.told)
	f.head().SetDataLen(len(f.data))
}

func (c *conn) vectors(bufs [][]byte, f *frame) [][]byte {
	if c.tx.headerDigest && !f.plain {
		pdu.PutDigest(f.wire[pdu.HeaderLen:], pdu.Digest(f.wire[:pdu.HeaderLen]))
		bufs = append(bufs, f.wire[:])
	} else {
		bufs = append(bufs, f.wire[:pdu.HeaderLen])
	}
	if len(f.data) == 0 {
		return bufs
	}
	bufs = append(bufs, f.data)
	n := pdu.Pad(len(f.data))
	clear(f.tail[:n])
	if c.tx.dataDigest && !f.plain {
		pdu.PutDigest(f.tail[n:], pdu.DigestUpdate(pdu.Digest(f.data), f.tail[:n]))
		n += pdu.DigestLen
	}
	if n > 0 {
		bufs = append(bufs, f.tail[:n])
	}
	return bufs
}

func (c *conn) sent(err error) {
	tx := &c.tx
	tx.underway = false
	last := false
	if err == nil {
		c.reactor.clock.Sent()
	}
	for i, f := range tx.sending {
		last = last || f.last
		c.recycle(f)
		tx.sending[i] = nil
	}
	c.reactor.clock.Resumed()
	tx.sending = tx.sending[:0]
	clear(tx.bufs)
	switch {
	case err != nil:
		c.close(err)
	case last:
		c.close(errLoggedOut)
	default:
		c.touch()
		c.consume()
	}
}

func (c *conn) recycle(f *frame) {
	if f.task != nil {
		c.release(f.task)
	}
	c.reactor.frames.put(f)
}

func (c *conn) dropFrames() {
	for f := c.tx.first; f != nil; f = c.tx.first {
		c.tx.first = f.next
		c.recycle(f)
	}
	for _, f := range c.tx.sending {
		c.recycle(f)
	}
	c.tx.end, c.tx.sending, c.tx.queued = nil, nil, 0
}

// congested stops receiving while too many answers wait for an initiator that does not read.
func (c *conn) congested() bool { return c.tx.queued > 4*MaxSendBuffers }

// drained ends a connection that was asked to leave once its last answer is out.
func (c *conn) drained() {
	if c.draining && c.running == 0 {
		c.close(errLeft)
	}
}
