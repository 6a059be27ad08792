package iscsi

import (
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// lendSize is what one connection's Pages hold, in bytes: 16 reads of 128 KiB that are under way, as many that
// wait for their acknowledgement, and room for larger ones.
const lendSize = 8 << 20

// lending is a connection's memory for large reads, which is sent without a copy. The network refers to it until the
// initiator has read it, and the initiator says so by its ExpStatSN. One that lies can only get data of later reads
// of its own session in place of earlier ones: that is why the memory is the session's alone and is unmapped with it.
// Whoever does not acknowledge, or asks for more than fits, is sent copies.
type lending struct {
	pages   Pages // nil: none now
	refused bool  // the socket has none to give
	taken   int   // buffers that commands hold
	lent    []loan
	at      time.Time // of the last use
}

// loan is a buffer that was sent. They are in the order of StatSN.
type loan struct {
	buf  []byte
	stat uint32 // of its command's answer
}

// borrow gives a large read a buffer of the connection's pages; nil when it is none, or there are none.
func (c *conn) borrow(t *task) []byte {
	l, least := &c.lending, c.opts().LendMin
	if t.cmd.Direction != scsi.DataIn || t.need < least || c.params.MaxRecvData < least || !c.openPages() {
		return nil
	}
	l.at = c.reactor.now
	buf := l.pages.Get(t.need)
	if buf != nil {
		l.taken++
		t.borrowed = true
	}
	return buf
}

func (c *conn) openPages() bool {
	l, s := &c.lending, c.reactor.server
	if l.pages != nil || l.refused || c.closing {
		return l.pages != nil
	}
	if s.lent.Add(lendSize) > int64(s.opts.LendBytes) {
		s.lent.Add(-lendSize)
		return false
	}
	pages, err := c.sock.Pages(lendSize)
	if err != nil {
		s.opts.Log.Debug("iscsi: reads are sent as copies", "remote", c.remote, "error", err)
		s.lent.Add(-lendSize)
		l.refused = true
		return false
	}
	l.pages = pages
	return true
}

// giveBack ends a command's hold on its buffer: at once if nothing of it was sent.
func (c *conn) giveBack(t *task) {
	l := &c.lending
	l.taken--
	if t.shown {
		l.lent = append(l.lent, loan{t.buf, t.stat})
	} else {
		l.pages.Put(t.buf)
	}
}

// acknowledge takes back what the initiator has read. A response is at the end of its command's data, but an initiator
// may acknowledge it when it has seen no more than the header of the last PDU; when it acknowledges the response
// after that, it has read everything before (RFC 7143 §4.2.2.2: the stream is in order).
func (c *conn) acknowledge(exp uint32) {
	l := &c.lending
	if len(l.lent) == 0 || pdu.Before(c.tx.statSN, exp) { // the latter acknowledges what was not sent
		return
	}
	n := 0
	for n < len(l.lent) && pdu.Before(l.lent[n].stat+1, exp) {
		l.pages.Put(l.lent[n].buf)
		n++
	}
	l.lent = l.lent[:copy(l.lent, l.lent[n:])]
}

// tickLending lets others have the memory of a connection that has no large reads any more.
func (c *conn) tickLending(now time.Time) {
	if l := &c.lending; l.pages != nil && l.taken == 0 && now.Sub(l.at) > c.opts().IdleTime {
		c.closePages()
	}
}

// closePages unmaps them. What is on its way keeps its content.
func (c *conn) closePages() {
	l := &c.lending
	if l.pages == nil {
		return
	}
	if err := l.pages.Close(); err != nil {
		c.opts().Log.Warn("iscsi: pages not unmapped", "remote", c.remote, "error", err)
	}
	c.reactor.server.lent.Add(-lendSize)
	l.pages, l.lent = nil, l.lent[:0]
}
