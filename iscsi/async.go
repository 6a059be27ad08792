package iscsi

import (
	"time"

	"lunar/iscsi/pdu"
)

// askToLeave asks the initiator to log out, RFC 7143 §11.9.1, and starts the time after which the
// connection is drained. It may be called again.
func (c *conn) askToLeave() {
	if !c.leaveBy.IsZero() || c.closing {
		return
	}
	c.leaveBy = time.Now().Add(c.opts().LogoutTime)
	if c.session == nil {
		c.close(errCut)
		return
	}
	c.async(pdu.AsyncLogout, 0, 0, uint16(min(c.opts().LogoutTime/time.Second+1, 3600)))
}

func (c *conn) async(event pdu.AsyncEvent, p1, p2, p3 uint16) {
	f := c.frame(pdu.OpAsync, pdu.FlagFinal, pdu.NoTag)
	f.head().SetTTT(pdu.NoTag)
	pdu.Async{Header: f.head()}.SetEvent(event, p1, p2, p3)
	f.stat = statTake
	c.send(f)
}

// drain ends the connection as soon as the commands in the device server are answered.
func (c *conn) drain() {
	c.draining = true
	c.async(pdu.AsyncDropConnection, 0, 0, 0)
}

// tick looks at the connection's time limits.
func (c *conn) tick(now time.Time) {
	c.tickLending(now)
	o := c.opts()
	silent := now.Sub(c.heard)
	switch {
	case c.closing:
	case c.session == nil && now.Sub(c.started) > o.LoginTime:
		c.close(errLoginTime)
	case c.session == nil:
	case c.tx.underway && now.Sub(c.tx.since) > o.StallTime:
		c.close(errStalled)
	case c.expecting > 0 && now.Sub(c.dataAt) > o.StallTime:
		c.close(errNoData)
	case c.probing && silent > o.IdleTime+o.StallTime:
		c.close(errSilent)
	case !c.probing && silent > o.IdleTime:
		c.probe()
	case !c.leaveBy.IsZero() && !c.draining && now.After(c.leaveBy):
		c.drain()
	}
}
