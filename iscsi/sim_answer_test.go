package iscsi

import (
	"bytes"
	"slices"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// What the model initiator does with answers, and the rules of RFC 7143 that it holds them against.

// read takes up to n bytes that have come and looks at the PDUs that are whole.
func (c *simConn) read(n int) {
	s := c.sock
	n = min(n, len(s.toInitiator))
	c.rx = append(c.rx, s.toInitiator[:n]...)
	s.toInitiator = s.toInitiator[n:]
	s.read += n
	for c.world.failure == nil && c.phase != simOver {
		h, data, size := c.next()
		if size == 0 {
			break
		}
		c.rx = c.rx[size:]
		c.take(h, data)
	}
	c.noticeGone()
}

// noticeGone ends the session when the target has closed and nothing is left to read.
func (c *simConn) noticeGone() {
	if c.sock.gone && (c.mute || len(c.sock.toInitiator) == 0) && c.phase != simOver {
		c.world.log("%v ended by the target", c)
		c.over()
	}
}

// next is the first whole PDU, size 0 if there is none yet.
func (c *simConn) next() (h *pdu.Header, data []byte, size int) {
	end := pdu.HeaderLen
	if c.wire.headerDigest {
		end += pdu.DigestLen
	}
	if len(c.rx) < end {
		return nil, nil, 0
	}
	h = new(pdu.Header)
	copy(h[:], c.rx)
	n := h.DataLen()
	padded := n + pdu.Pad(n)
	size = end + padded
	digest := c.wire.dataDigest && n > 0
	if digest {
		size += pdu.DigestLen
	}
	if len(c.rx) < size {
		return nil, nil, 0
	}
	if c.wire.headerDigest && pdu.GetDigest(c.rx[pdu.HeaderLen:]) != pdu.Digest(h[:]) {
		c.world.fail("HeaderDigest", "%v %v", c, h.Opcode())
	}
	seg := bytes.Clone(c.rx[end : end+padded])
	if digest && pdu.GetDigest(c.rx[end+padded:]) != pdu.Digest(seg) {
		c.world.fail("DataDigest", "%v %v", c, h.Opcode())
	}
	return h, seg[:n], size
}

// simAnswers is the initiator's opcode table.
var simAnswers map[pdu.Opcode]func(c *simConn, h *pdu.Header, data []byte)

func init() {
	simAnswers = map[pdu.Opcode]func(*simConn, *pdu.Header, []byte){
		pdu.OpNopIn: (*simConn).onNop, pdu.OpSCSIResponse: (*simConn).onResponse, pdu.OpTaskResponse: (*simConn).onTask,
		pdu.OpLoginResponse: (*simConn).onLogin, pdu.OpTextResponse: (*simConn).onText, pdu.OpDataIn: (*simConn).onDataIn,
		pdu.OpLogoutResponse: (*simConn).onLogout, pdu.OpR2T: (*simConn).onR2T, pdu.OpAsync: (*simConn).onAsync,
		pdu.OpReject: (*simConn).onReject,
	}
}

func (c *simConn) take(h *pdu.Header, data []byte) {
	c.world.log("%v < %v tag %x stat %x window %x..%x flags %02x %d bytes", c, h.Opcode(), h.ITT(), h.StatSN(), h.ExpCmdSN(), h.MaxCmdSN(), h.Flags(), len(data))
	on := simAnswers[h.Opcode()]
	switch {
	case c.left:
		c.fail("LogoutLast", "%v behind the logout's answer", h.Opcode())
	case on == nil:
		c.fail("OpcodeKnown", "%v", h.Opcode())
		return
	case len(data) > c.recvMax:
		c.fail("SegmentLength", "%d bytes, %d were declared", len(data), c.recvMax)
	}
	c.checkStatSN(h)
	c.checkWindow(h)
	on(c, h, data)
}

func (c *simConn) fail(name, format string, args ...any) {
	c.world.fail(name, c.String()+": "+format, args...)
}

// checkStatSN: the number rises by one per status, and only there, §4.2.2.2.
func (c *simConn) checkStatSN(h *pdu.Header) {
	peek := h.Opcode() == pdu.OpR2T || h.Opcode() == pdu.OpNopIn && h.ITT() == pdu.NoTag
	if h.Opcode() == pdu.OpDataIn && !(pdu.DataIn{Header: h}).HasStatus() {
		return
	}
	if h.StatSN() != c.statSN {
		c.fail("StatSNInOrder", "%v has %x, want %x", h.Opcode(), h.StatSN(), c.statSN)
	}
	if !peek {
		c.statSN = h.StatSN() + 1
	}
}

// checkWindow: neither end goes back, nothing unsent is expected, and it is never wider than the depth, §4.2.2.1.
func (c *simConn) checkWindow(h *pdu.Header) {
	exp, last := h.ExpCmdSN(), h.MaxCmdSN()
	switch {
	case pdu.Before(exp, c.exp), pdu.Before(last, c.last):
		c.fail("WindowForward", "%x..%x after %x..%x", exp, last, c.exp, c.last)
	case pdu.Before(c.cmdSN, exp):
		c.fail("ExpCmdSNSent", "%x, next is %x", exp, c.cmdSN)
	case last-exp+1 > uint32(c.world.options.QueueDepth):
		c.fail("WindowBounded", "%x..%x", exp, last)
	}
	c.exp, c.last = exp, last
}

// find is the open command of an answer.
func (c *simConn) find(h *pdu.Header) *simCommand {
	for _, cmd := range c.open {
		if cmd.itt == h.ITT() {
			return cmd
		}
	}
	c.fail("OneStatus", "%v for tag %x, which is not under way", h.Opcode(), h.ITT())
	return nil
}

func (c *simConn) onDataIn(h *pdu.Header, data []byte) {
	cmd := c.find(h)
	if cmd == nil {
		return
	}
	d := pdu.DataIn{Header: h}
	if d.DataSN() != cmd.dataSN || int(d.Offset()) != len(cmd.got) {
		c.fail("DataInOrder", "DataSN %d offset %d, want %d %d", d.DataSN(), d.Offset(), cmd.dataSN, len(cmd.got))
	}
	cmd.dataSN++
	cmd.got = append(cmd.got, data...)
	cmd.burst += len(data)
	if len(cmd.got) > cmd.edtl || cmd.burst > c.params.MaxBurst || cmd.flags&pdu.FlagRead == 0 {
		c.fail("DataInBounded", "%d bytes of %d, %d in the burst", len(cmd.got), cmd.edtl, cmd.burst)
	}
	if h.Final() {
		cmd.burst = 0
	}
	if !d.HasStatus() {
		return
	}
	if !h.Final() {
		c.fail("StatusFinal", "the S bit without the F bit")
	}
	c.conclude(cmd, verdict{status: scsi.Status(d.Status())}, h, d.Residual())
}

func (c *simConn) onResponse(h *pdu.Header, data []byte) {
	cmd := c.find(h)
	if cmd == nil {
		return
	}
	r := pdu.SCSIResponse{Header: h}
	if r.Response() != 0 || r.ExpDataSN() != cmd.dataSN+cmd.r2tSN {
		c.fail("ExpDataSN", "response %d, ExpDataSN %d, want %d", r.Response(), r.ExpDataSN(), cmd.dataSN+cmd.r2tSN)
	}
	a := answer{Header: *h, data: data}
	c.conclude(cmd, verdict{a.scsiStatus(), a.senseCode()}, h, r.Residual())
}

// conclude judges a command's status.
func (c *simConn) conclude(cmd *simCommand, v verdict, h *pdu.Header, residual uint32) {
	if !cmd.allowed(v) {
		c.fail("StatusTrue", "%v %x of CDB % x EDTL %d, expected %v, flawed %v", v.status, v.sense, cmd.cdb, cmd.edtl, cmd.verdicts, cmd.flawed)
	}
	cmd.checkResidual(v.status, h.Flags(), int(residual))
	if v.status == scsi.Good {
		cmd.checkData()
	}
	cmd.settle(v.status == scsi.Good)
}

// checkResidual, §11.4.5.
func (cmd *simCommand) checkResidual(status scsi.Status, flags byte, n int) {
	over, under := flags&pdu.FlagOverflow != 0, flags&pdu.FlagUnderflow != 0
	want := 0
	switch {
	case over:
		want = n
	case under:
		want = -n
	}
	switch {
	case over && under, !over && !under && n != 0, under && n > cmd.edtl:
		cmd.conn.fail("Residual", "flags %02x count %d", flags, n)
	case status == scsi.Good && cmd.length >= 0 && want != cmd.length-cmd.edtl:
		cmd.conn.fail("Residual", "%d, CDB %d, EDTL %d", want, cmd.length, cmd.edtl)
	case status == scsi.Good && cmd.length == lengthOpen && under && n != cmd.edtl-len(cmd.got):
		cmd.conn.fail("Residual", "%d of %d, %d came", n, cmd.edtl, len(cmd.got))
	}
}

// checkData: GOOD means that all data went, and that what was read is what was written.
func (cmd *simCommand) checkData() {
	if !cmd.media {
		return
	}
	n := min(cmd.length, cmd.edtl)
	switch {
	case cmd.want > 0 && (!cmd.claimed || cmd.sent != cmd.want):
		cmd.conn.fail("WrittenWhenGood", "%d of %d bytes sent, on the disk: %v", cmd.sent, cmd.want, cmd.claimed)
	case cmd.flags == pdu.FlagRead && len(cmd.got) != n:
		cmd.conn.fail("AllDataIn", "%d bytes, want %d", len(cmd.got), n)
	case cmd.flags == pdu.FlagRead:
		cmd.conn.world.checkContent(cmd.got, cmd.lun, cmd.lba, cmd.issued)
	}
}

// onR2T: in order, within MaxBurstLength and MaxOutstandingR2T, for what is missing alone, §11.8.
func (c *simConn) onR2T(h *pdu.Header, _ []byte) {
	cmd := c.find(h)
	if cmd == nil {
		return
	}
	r := pdu.R2T{Header: h}
	at, n := int(r.Offset()), int(r.Length())
	cmd.waiting++
	switch {
	case r.R2TSN() != cmd.r2tSN || at != cmd.asked || n == 0:
		c.fail("R2TInOrder", "R2TSN %d offset %d length %d, want %d %d", r.R2TSN(), at, n, cmd.r2tSN, cmd.asked)
	case n > c.params.MaxBurst || at+n > cmd.want:
		c.fail("R2TBounded", "%d bytes at %d of %d, MaxBurstLength %d", n, at, cmd.want, c.params.MaxBurst)
	case cmd.waiting > c.params.MaxR2T:
		c.fail("R2TOutstanding", "%d, %d are allowed", cmd.waiting, c.params.MaxR2T)
	case h.TTT() == pdu.NoTag || h.LUN() != pdu.EncodeLUN(uint32(cmd.lun)):
		c.fail("R2TTag", "tag %x LUN %x", h.TTT(), h.LUN())
	case slices.ContainsFunc(c.solicited, func(j *simJob) bool { return j.tag == h.TTT() }):
		c.fail("R2TTag", "tag %x twice", h.TTT())
	}
	if c.world.failure != nil {
		return
	}
	cmd.r2tSN++
	cmd.asked = at + n
	c.solicited = append(c.solicited, &simJob{cmd: cmd, tag: h.TTT(), at: at, end: at + n})
}

func (c *simConn) onTask(h *pdu.Header, _ []byte) {
	w := c.world
	i := slices.IndexFunc(w.tasks, func(t *simTask) bool { return t.conn == c && t.itt == h.ITT() })
	if i < 0 {
		c.fail("OneStatus", "a task management response for tag %x", h.ITT())
		return
	}
	t, got := w.tasks[i], pdu.TaskResponse{Header: h}.Result()
	w.tasks = slices.Delete(w.tasks, i, i+1)
	switch {
	case !t.mayAnswer(got):
		c.fail("TaskResult", "function %d: %d", t.fn, got)
	case got == pdu.TaskComplete:
		t.complete()
	}
}

// mayAnswer knows the answers of §11.6.1.
func (t *simTask) mayAnswer(got pdu.TaskResult) bool {
	switch t.fn {
	case pdu.ClearACA:
		return got == pdu.TaskNotSupported
	case pdu.TaskReassign:
		return got == pdu.TaskNoReassign
	case pdu.AbortTask:
		return got == pdu.TaskComplete || !t.lost && (got == pdu.TaskNoTask || got == pdu.TaskNoLUN && t.conn.world.remapped)
	case pdu.AbortTaskSet, pdu.ClearTaskSet, pdu.LUNReset:
		return got == pdu.TaskComplete || got == pdu.TaskNoLUN && t.conn.world.remapped
	case pdu.TargetWarmReset, pdu.TargetColdReset:
		return got == pdu.TaskComplete
	}
	return got == pdu.TaskRejected
}

// complete: the initiator's commands that the function covers, and that the target had taken before, are
// over: no status, and nothing of theirs on its way to the disk.
func (t *simTask) complete() {
	if t.fn == pdu.TargetColdReset {
		t.conn.fatal = true
	}
	for _, cmd := range slices.Clone(t.conn.open) {
		taken := cmd.immediate || pdu.Before(cmd.sn, t.exp) || t.fn == pdu.AbortTask
		if !t.covers(cmd) || cmd.order > t.order || !taken {
			continue
		}
		for _, l := range t.conn.world.lanes {
			if slices.ContainsFunc(l.flights, func(f *simFlight) bool { return f.cmd == cmd }) {
				t.conn.fail("AbortIsTrue", "tag %x is still being written", cmd.itt)
			}
		}
		cmd.settle(false)
	}
}

func (c *simConn) onNop(h *pdu.Header, data []byte) {
	if h.ITT() == pdu.NoTag {
		if h.TTT() != pdu.NoTag {
			c.pongs = append(c.pongs, h.TTT())
		}
		return
	}
	want, ok := c.nops[h.ITT()]
	if !ok || !bytes.Equal(want, data) || h.TTT() != pdu.NoTag {
		c.fail("PingEchoed", "%d bytes for tag %x, want %d", len(data), h.ITT(), len(want))
	}
	delete(c.nops, h.ITT())
}

func (c *simConn) onText(h *pdu.Header, _ []byte) {
	switch {
	case !c.texts[h.ITT()]:
		c.fail("OneStatus", "a text response for tag %x", h.ITT())
	case h.Continue() == h.Final(), h.Final() != (h.TTT() == pdu.NoTag):
		c.fail("TextFlags", "flags %02x tag %x", h.Flags(), h.TTT())
	case h.Final():
		delete(c.texts, h.ITT())
	default:
		c.moreText(h.ITT(), h.TTT())
	}
}

func (c *simConn) onLogout(h *pdu.Header, _ []byte) {
	if result := (pdu.LogoutResponse{Header: h}).Result(); !c.logout || result != pdu.LogoutDone {
		c.fail("LogoutResult", "%d", result)
	}
	c.fatal, c.logout, c.left = true, false, true
}

func (c *simConn) onAsync(h *pdu.Header, _ []byte) {
	switch (pdu.Async{Header: h}).Event() {
	case pdu.AsyncLogout:
		if !c.world.leaving {
			c.fail("AsyncMeant", "a request to log out")
		}
		if c.chance(2) {
			c.sendLogout()
		}
	case pdu.AsyncDropConnection:
		c.fatal = true
	default:
		c.fail("AsyncMeant", "flags %02x", h.Flags())
	}
}

func (c *simConn) onReject(h *pdu.Header, data []byte) {
	if len(data) != pdu.HeaderLen {
		c.fail("RejectMeant", "%d bytes", len(data))
		return
	}
	sent, why := pdu.Header(data), pdu.Reject{Header: h}.Reason()
	list := c.rejects[sent]
	if len(list) == 0 || list[0].why != why {
		c.fail("RejectMeant", "reason %d for % x", why, data)
		return
	}
	if c.rejects[sent] = list[1:]; len(list) == 1 {
		delete(c.rejects, sent)
	}
	if list[0].then != nil {
		list[0].then()
	}
}
