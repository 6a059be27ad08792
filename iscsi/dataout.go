package iscsi

import (
	"slices"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// gathering is the state of a command's Data-Out. Offsets and lengths are bytes in the command's
// buffer.
type gathering struct {
	unsolicited bool   // unsolicited Data-Out is on its way, until its F bit
	at          int    // unsolicited and immediate data that has come
	sn          uint32 // next DataSN of the unsolicited sequence
	asked       int    // up to where data was sent or asked for
	want        int    // up to where the command needs data
	r2tSN       uint32
	bursts      []burst // outstanding R2Ts, in the order of their offsets
	expecting   bool    // counted in conn.expecting
}

// burst is the answer to one R2T.
type burst struct {
	tag     uint32
	at, end int    // the next offset, and where the data asked for ends
	sn      uint32 // next DataSN
}

// burst finds an outstanding R2T by its target transfer tag, -1 if there is none.
func (g *gathering) burst(tag uint32) int {
	return slices.IndexFunc(g.bursts, func(b burst) bool { return b.tag == tag })
}

func (g *gathering) waiting() bool { return g.unsolicited || len(g.bursts) > 0 }
func (g *gathering) missing() bool { return g.asked < g.want }

// plan works out how much data the command moves and how it comes.
func (t *task) plan(h pdu.SCSICommand) {
	t.need = 0
	switch {
	case t.cmd.Direction == scsi.DataOut && h.Write():
		t.need = min(t.cmd.Length, t.edtl)
		t.out.want = t.need
	case t.cmd.Direction == scsi.DataIn && h.Read():
		t.need = min(t.cmd.Length, t.edtl)
	}
}

// makeRoom prepares for the command's immediate and unsolicited data, of which immediate bytes are
// in its PDU, as negotiated: RFC 7143 §13.10, §13.11, §13.14.
func (c *conn) makeRoom(t *task, immediate int) {
	h := pdu.SCSICommand{Header: &c.rx.head}
	more := !h.Final()
	if immediate == 0 && !more {
		return
	}
	limit := min(c.params.FirstBurst, t.edtl)
	switch {
	case !h.Write(), immediate > 0 && !c.params.ImmediateData, more && c.params.InitialR2T:
		t.blame(faultUnsolicited)
	case immediate > limit:
		t.blame(faultAmount)
	case t.out.want > 0 && !c.provide(t):
		c.starve(t)
	}
	t.out.unsolicited = more && h.Write()
	t.out.at = immediate
	t.out.asked = immediate
	c.expect(t)
	c.rx.dst = t.room(0, immediate)
}

// starve receives nothing more until t, whose data is on its way, has a buffer. If other commands of
// the connection wait for data too, or hold buffers until their turn comes, it would wait for itself:
// then the answer is TASK SET FULL.
func (c *conn) starve(t *task) {
	if c.expecting > 0 || c.win.holdsBuffers() {
		t.blame(faultFull)
		return
	}
	t.hungry = true
	c.starved, c.rx.paused = t, true
	c.reactor.hungry.push(t)
}

// fed goes on with a command that waited for a buffer and has one, or was abandoned.
func (c *conn) fed(t *task) {
	starved := c.starved == t
	if starved {
		c.starved = nil
		c.rx.dst = t.room(0, c.rx.size)
	}
	if t.abandoned {
		c.release(t)
	} else {
		t.hungry = false
		c.advance(t)
	}
	if starved {
		c.resume()
	}
}

// room is the part of the buffer for n bytes at offset, cut to what the command needs.
func (t *task) room(offset, n int) []byte {
	if t.fault != nil || t.buf == nil || offset >= t.out.want {
		return nil
	}
	return t.buf[offset:min(offset+n, t.out.want)]
}

// expect keeps count of the commands that wait for data, for the time limit.
func (c *conn) expect(t *task) {
	waiting := t.out.waiting()
	if waiting == t.out.expecting {
		return
	}
	t.out.expecting = waiting
	if waiting {
		c.expecting++
		c.dataAt = c.reactor.now
	} else {
		c.expecting--
	}
}

// solicit asks for data with as many R2Ts as are allowed at a time.
func (c *conn) solicit(t *task) {
	g := &t.out
	for g.missing() && len(g.bursts) < c.params.MaxR2T {
		c.burstTag++
		if c.burstTag == pdu.NoTag {
			c.burstTag = 0
		}
		end := min(g.asked+c.params.MaxBurst, g.want)
		b := burst{tag: c.burstTag, at: g.asked, end: end}
		g.asked = end
		g.bursts = append(g.bursts, b)
		c.sendR2T(t, b)
	}
	c.expect(t)
}

func (c *conn) sendR2T(t *task, b burst) {
	f := c.frame(pdu.OpR2T, pdu.FlagFinal, t.itt)
	h := pdu.R2T{Header: f.head()}
	h.SetLUN(t.cmd.LUN)
	h.SetTTT(b.tag)
	h.SetR2TSN(t.out.r2tSN)
	h.SetOffset(uint32(b.at))
	h.SetLength(uint32(b.end - b.at))
	t.out.r2tSN++
	f.stat = statPeek
	c.send(f)
}

// beginDataOut checks a Data-Out's header against what was asked for. Data of a command that is
// gone, aborted perhaps, is dropped without a word.
func beginDataOut(c *conn) {
	rx := &c.rx
	h := pdu.DataOut{Header: &rx.head}
	t := c.tasks.find(h.ITT())
	if t == nil || t.running {
		return
	}
	c.dataAt = c.reactor.now
	if h.TTT() == pdu.NoTag {
		c.placeUnsolicited(t, h)
		return
	}
	if i := t.out.burst(h.TTT()); i >= 0 {
		rx.task = t
		c.placeSolicited(t, &t.out.bursts[i], h)
		return
	}
	c.reject(pdu.RejectField)
}

func (c *conn) placeUnsolicited(t *task, h pdu.DataOut) {
	g, rx := &t.out, &c.rx
	if !g.unsolicited {
		t.blame(faultUnsolicited)
		return
	}
	rx.task = t
	switch {
	case h.DataSN() != g.sn:
		t.blame(faultCRC) // RFC 7143 §7.9: a hole in the sequence means that a PDU was lost
	case int(h.Offset()) != g.at, g.at+rx.size > min(c.params.FirstBurst, t.edtl):
		t.blame(faultAmount)
	}
	g.sn++
	rx.dst = t.room(g.at, rx.size)
	g.at += rx.size
	g.asked = max(g.asked, min(g.at, t.edtl))
}

func (c *conn) placeSolicited(t *task, b *burst, h pdu.DataOut) {
	rx := &c.rx
	switch {
	case h.DataSN() != b.sn:
		t.blame(faultCRC)
	case int(h.Offset()) != b.at, b.at+rx.size > b.end, h.Final() && b.at+rx.size != b.end:
		t.blame(faultAmount)
	}
	b.sn++
	rx.dst = t.room(b.at, rx.size)
	b.at += rx.size
}

// endDataOut closes a sequence at its F bit and goes on with the command.
func endDataOut(c *conn, intact bool) {
	rx := &c.rx
	t := rx.task
	switch {
	case t == nil:
		return
	case t.abandoned:
		c.release(t)
		return
	case !intact:
		c.reject(pdu.RejectDataDigest)
		t.blame(faultCRC)
	}
	if !rx.head.Final() && t.out.waiting() {
		return
	}
	if i := t.out.burst(rx.head.TTT()); i >= 0 {
		t.out.bursts = slices.Delete(t.out.bursts, i, i+1)
	} else {
		t.out.unsolicited = false
	}
	c.expect(t)
	c.advance(t)
}
