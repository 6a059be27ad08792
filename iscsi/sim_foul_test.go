package iscsi

import (
	"lunar/iscsi/pdu"
)

// simFouls are PDUs that break RFC 7143, and what has to come of them.
var simFouls = []func(*simConn){
	(*simConn).foulOpcode, (*simConn).foulSNACK, (*simConn).foulStale, (*simConn).foulBeyond, (*simConn).foulStray,
	(*simConn).foulDigest, (*simConn).foulNopDigest, (*simConn).foulTag, (*simConn).foulAHS, (*simConn).foulUnasked,
	(*simConn).foulTransferTag,
}

func (c *simConn) foul() { simFouls[c.rnd(len(simFouls))](c) }

// unit makes a TEST UNIT READY.
func (c *simConn) unit() *pdu.Header {
	return c.request(pdu.OpSCSICommand, pdu.FlagFinal|1)
}

// refused sends a PDU that has to be rejected.
func (c *simConn) refused(h *pdu.Header, data []byte, why pdu.RejectReason, bad func([]byte), then func()) {
	c.mayReject(c.write(h, data, bad), why, then)
}

// numbered gives a header the next CmdSN and tells whether the window has room for it at once.
func (c *simConn) numbered(h *pdu.Header) bool {
	if !pdu.InWindow(c.cmdSN, c.exp, c.last) {
		return false
	}
	h.SetCmdSN(c.cmdSN)
	c.cmdSN++
	return true
}

// lose sends a PDU whose CmdSN the target does not take, since it rejects it.
func (c *simConn) lose(h *pdu.Header, data []byte, why pdu.RejectReason, bad func([]byte)) {
	if !c.numbered(h) {
		return
	}
	l := simLost{sn: h.CmdSN()}
	if h.Opcode() == pdu.OpSCSICommand && h.ITT() != pdu.NoTag {
		l.cmd = &simCommand{conn: c, itt: h.ITT(), sn: l.sn}
	}
	c.refused(h, data, why, bad, func() { c.lost = append(c.lost, l) })
}

func (c *simConn) foulOpcode() {
	h := c.request(0x1d, pdu.FlagFinal)
	h.SetImmediate()
	c.refused(h, nil, pdu.RejectNotSupported, nil, nil)
}

func (c *simConn) foulSNACK() {
	c.refused(c.request(pdu.OpSNACK, pdu.FlagFinal), nil, pdu.RejectSNACK, nil, nil)
}

// foulStale and foulBeyond are outside of the window: ignored, §4.2.2.1.
func (c *simConn) foulStale() {
	h := c.unit()
	h.SetCmdSN(c.exp - 1 - uint32(c.rnd(5)))
	c.write(h, nil, nil)
}

func (c *simConn) foulBeyond() {
	h := c.unit()
	h.SetCmdSN(c.cmdSN + uint32(c.world.options.QueueDepth+c.rnd(100)))
	c.write(h, nil, nil)
}

// foulStray is Data-Out of no command: dropped.
func (c *simConn) foulStray() {
	h := c.request(pdu.OpDataOut, pdu.FlagFinal)
	h.SetTTT(uint32(c.rnd(4)) - 1)
	c.write(h, make([]byte, c.rnd(min(600, c.targetMax)+1)), nil)
}

// foulUnasked is unsolicited Data-Out of a command that has sent all of its own.
func (c *simConn) foulUnasked() {
	if j := c.pending(); j != nil {
		j.cmd.spoil(verdictUnsolicited)
		c.write(c.stray(j, pdu.NoTag), nil, nil)
	}
}

// foulTransferTag names an R2T that there is not; the command goes on.
func (c *simConn) foulTransferTag() {
	if j := c.pending(); j != nil {
		c.refused(c.stray(j, 0xfffffff0), nil, pdu.RejectField, nil, nil)
	}
}

// pending is an R2T that the target surely waits on.
func (c *simConn) pending() *simJob {
	for _, j := range c.solicited {
		if j.cmd.settled == 0 && !j.cmd.flawed {
			return j
		}
	}
	return nil
}

func (c *simConn) stray(j *simJob, tag uint32) *pdu.Header {
	h := new(pdu.Header)
	h.Reset(pdu.OpDataOut, pdu.FlagFinal)
	h.SetITT(j.cmd.itt)
	h.SetTTT(tag)
	return h
}

// foulDigest spoils a WRITE's immediate data, §7.8.
func (c *simConn) foulDigest() {
	if !c.wire.dataDigest || !c.params.ImmediateData || c.params.FirstBurst < 512 || c.targetMax < 512 {
		return
	}
	h := c.request(pdu.OpSCSICommand, pdu.FlagFinal|pdu.FlagWrite|1)
	v := pdu.SCSICommand{Header: h}
	v.SetEDTL(512)
	copy(v.CDB(), write10(0, 1))
	c.lose(h, pattern(512, 1), pdu.RejectDataDigest, spoilLast)
}

func (c *simConn) foulNopDigest() {
	if !c.wire.dataDigest {
		return
	}
	h := c.request(pdu.OpNopOut, pdu.FlagFinal)
	h.SetTTT(pdu.NoTag)
	c.lose(h, pattern(33, 1), pdu.RejectDataDigest, spoilLast)
}

func (c *simConn) foulTag() {
	h := c.unit()
	h.SetITT(pdu.NoTag)
	c.lose(h, nil, pdu.RejectField, nil)
}

// foulAHS has an additional header segment that does not add up. The fixture's encoder knows no AHS,
// so this is for sessions without digests.
func (c *simConn) foulAHS() {
	if c.wire.headerDigest || c.wire.dataDigest {
		return
	}
	h := c.unit()
	h.SetAHSLen(4)
	c.lose(h, []byte{0, 200, pdu.AHSExtendedCDB, 0}, pdu.RejectProtocol, func(wire []byte) {
		(*pdu.Header)(wire).SetDataLen(0)
	})
}

// foulFatal sends a PDU after which the stream cannot go on.
func (c *simConn) foulFatal() {
	c.doomed, c.fatal = true, true
	h := c.request(pdu.OpNopOut, pdu.FlagFinal)
	h.SetImmediate()
	h.SetCmdSN(c.cmdSN)
	if c.wire.headerDigest {
		c.write(h, nil, spoilLast)
		return
	}
	c.refused(h, make([]byte, c.targetMax+4), pdu.RejectProtocol, nil, nil)
}
