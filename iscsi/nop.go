package iscsi

import "lunar/iscsi/pdu"

// runNopOut answers a ping, RFC 7143 §11.18; the answer to a NOP-In of ours needs none.
func runNopOut(c *conn, h *pdu.Header, data []byte) {
	if h.ITT() == pdu.NoTag {
		return
	}
	f := c.frame(pdu.OpNopIn, pdu.FlagFinal, h.ITT())
	f.head().SetLUN(h.LUN())
	f.head().SetTTT(pdu.NoTag)
	f.data = append([]byte(nil), data[:min(len(data), c.params.MaxRecvData)]...)
	f.stat = statTake
	c.send(f)
}

// probe asks the initiator for a sign of life.
func (c *conn) probe() {
	c.probing = true
	c.nopTag++
	if c.nopTag == pdu.NoTag {
		c.nopTag = 0
	}
	c.sendNopIn(c.nopTag)
}

// reopen tells of a window that opened without an answer that could carry it, RFC 7143 §4.2.2.1.
func (c *conn) reopen() { c.sendNopIn(pdu.NoTag) }

func (c *conn) sendNopIn(tag uint32) {
	f := c.frame(pdu.OpNopIn, pdu.FlagFinal, pdu.NoTag)
	f.head().SetTTT(tag)
	f.stat = statPeek
	c.send(f)
}
