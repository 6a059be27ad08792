package iscsi

import (
	"encoding/binary"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// answer ends a command: its data, if it has any to send, and its status.
func (c *conn) answer(t *task) {
	c.retire(t)
	status, sense := t.cmd.Status, t.cmd.Sense
	if t.fault != nil {
		status, sense = t.fault.status, t.fault.sense
		t.cmd.Count, t.cmd.Length = 0, 0
	}
	var sent uint32
	if t.cmd.Direction == scsi.DataIn {
		if n := min(t.cmd.Count, t.need); n > 0 {
			whole := status == scsi.Good
			sent = c.sendData(t, n, whole)
			if whole {
				return
			}
		}
	} else if t.fault == nil {
		c.counters.bytesIn.Add(uint64(t.out.want))
	}
	c.sendStatus(t, status, sense, sent)
}

// residual is the count and its flag, RFC 7143 §11.4.5.
func (t *task) residual() (n uint32, flag byte) {
	switch r := t.cmd.Residual(t.edtl); {
	case r > 0:
		return uint32(r), pdu.FlagOverflow
	case r < 0:
		return uint32(-r), pdu.FlagUnderflow
	}
	return 0, 0
}

// sendData sends buf[:n] in PDUs of MaxRecvDataSegmentLength and sequences of MaxBurstLength, the
// status in the last one if whole is set. It returns the number of PDUs.
func (c *conn) sendData(t *task, n int, whole bool) (sn uint32) {
	c.counters.bytesOut.Add(uint64(n))
	t.shown = true
	for at := 0; at < n; sn++ {
		burstEnd := min(n, at-at%c.params.MaxBurst+c.params.MaxBurst)
		end := min(burstEnd, at+c.params.MaxRecvData)
		f := c.dataFrame(t, sn, at, end)
		if end == burstEnd {
			f.head().SetFlags(pdu.FlagFinal)
		}
		if end == n && whole {
			c.collapse(f, t)
		}
		c.send(f)
		at = end
	}
	return sn
}

func (c *conn) dataFrame(t *task, sn uint32, from, to int) *frame {
	f := c.frame(pdu.OpDataIn, 0, t.itt)
	h := pdu.DataIn{Header: f.head()}
	h.SetTTT(pdu.NoTag)
	h.SetDataSN(sn)
	h.SetOffset(uint32(from))
	f.data = t.buf[from:to]
	return f
}

// collapse puts the status GOOD into the command's last Data-In.
func (c *conn) collapse(f *frame, t *task) {
	h := pdu.DataIn{Header: f.head()}
	n, flag := t.residual()
	h.SetFlags(pdu.FlagFinal | pdu.FlagStatus | flag)
	h.SetStatus(uint8(scsi.Good))
	h.SetResidual(n)
	f.settle(t)
}

func (c *conn) sendStatus(t *task, status scsi.Status, sense []byte, sent uint32) {
	n, flag := t.residual()
	f := c.frame(pdu.OpSCSIResponse, pdu.FlagFinal|flag, t.itt)
	h := pdu.SCSIResponse{Header: f.head()}
	h.SetStatus(uint8(status))
	h.SetExpDataSN(sent + t.out.r2tSN)
	h.SetResidual(n)
	if len(sense) > 0 {
		binary.BigEndian.PutUint16(t.sense[:], uint16(len(sense)))
		f.data = t.sense[:2+copy(t.sense[2:], sense)]
	}
	f.settle(t)
	c.send(f)
}

// settle makes f the frame that ends the command.
func (f *frame) settle(t *task) {
	f.stat, f.task = statTake, t
	f.opens, t.counted = t.counted, false
}
