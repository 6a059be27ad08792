package iscsi

import "lunar/iscsi/pdu"

// reject refuses the PDU that is being received, RFC 7143 §11.17, and drops its data.
func (c *conn) reject(why pdu.RejectReason) { c.rejectPDU(&c.rx.head, why) }

func (c *conn) rejectPDU(h *pdu.Header, why pdu.RejectReason) { c.send(c.rejection(h, why)) }

func (c *conn) rejection(h *pdu.Header, why pdu.RejectReason) *frame {
	c.reactor.server.totals.rejects.Add(1)
	f := c.frame(pdu.OpReject, pdu.FlagFinal, pdu.NoTag)
	pdu.Reject{Header: f.head()}.SetReason(why)
	f.data = append([]byte(nil), h[:]...)
	f.stat = statTake
	return f
}

// fail rejects a PDU after which the stream cannot go on, and ends the connection.
func (c *conn) fail(why pdu.RejectReason) {
	if c.session == nil {
		c.close(errProtocol)
		return
	}
	f := c.rejection(&c.rx.head, why)
	f.last = true
	c.rx.paused = true
	c.send(f)
}
