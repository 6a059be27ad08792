package iscsi

import (
	"io"
	"slices"
	"strconv"
	"syscall"

	"lunar/iscsi/pdu"
)

type simPhase uint8

const (
	simLogin simPhase = iota
	simFull
	simOver
)

// simPort is an initiator port: logging in anew while it has a session reinstates it.
type simPort struct {
	index int
	name  string
	isid  [6]byte
	conn  *simConn // the newest
}

// simRequest is a PDU that has its CmdSN and waits to be sent.
type simRequest struct {
	head  *pdu.Header
	data  []byte
	cmd   *simCommand
	after func() // called when it was sent
}

// simJob is a sequence of Data-Out.
type simJob struct {
	cmd     *simCommand
	tag     uint32 // target transfer tag, pdu.NoTag when unsolicited
	sn      uint32
	at, end int
}

// simLost is a CmdSN that the target has not got, because it rejected the PDU.
type simLost struct {
	sn  uint32
	cmd *simCommand
}

// simTask is a task management function under way.
type simTask struct {
	conn  *simConn
	fn    pdu.TaskFunction
	itt   uint32
	lun   int
	ref   *simCommand
	lost  bool   // ref was rejected
	exp   uint32 // ExpCmdSN known when it was sent
	order int
}

// simConn is a connection with its session, from the initiator's side. doomed says that the target may
// end it, fatal that it has to.
type simConn struct {
	world *world
	port  *simPort
	sock  *simSocket
	phase simPhase
	wire  client // encodes
	rx    []byte

	doomed, fatal, mute bool

	logins    []simLoginStep
	mayRefuse []pdu.LoginStatus
	offered   map[string]string
	answered  []byte
	tsih      uint16
	params    params
	recvMax   int // declared to the target
	targetMax int // declared by the target

	cmdSN, exp, last uint32 // next CmdSN, ExpCmdSN, MaxCmdSN
	statSN           uint32
	itt              uint32
	held             []*simRequest
	lost             []simLost
	open             []*simCommand
	unsolicited      []*simJob
	solicited        []*simJob
	nops             map[uint32][]byte // by tag: what has to come back
	texts            map[uint32]bool
	pongs            []uint32 // NOP-In to answer
	logout           bool     // asked for
	left             bool     // and answered
	rejects          map[pdu.Header][]simReject
}

// simReject is a Reject that may come.
type simReject struct {
	why  pdu.RejectReason
	then func()
}

// mayReject notes that a PDU may be answered with Reject, and what that means then.
func (c *simConn) mayReject(sent pdu.Header, why pdu.RejectReason, then func()) {
	c.rejects[sent] = append(c.rejects[sent], simReject{why, then})
}

func (c *simConn) rnd(n int) int     { return c.world.rnd.IntN(n) }
func (c *simConn) chance(n int) bool { return c.rnd(n) == 0 }

func (c *simConn) tag() uint32 {
	c.itt++
	return c.itt
}

// write sends a PDU and returns its header as it went. bad is called with the bytes and may spoil them.
func (c *simConn) write(h *pdu.Header, data []byte, bad func(wire []byte)) pdu.Header {
	h.SetExpStatSN(c.statSN)
	wire := c.wire.encode(h, data)
	if bad != nil {
		bad(wire)
	}
	c.world.log("%v > %v tag %x sn %x flags %02x %d bytes", c, h.Opcode(), h.ITT(), h.CmdSN(), h.Flags(), len(data))
	if c.sock.cut == nil && !c.sock.closing {
		c.sock.toTarget = append(c.sock.toTarget, wire...)
	}
	return pdu.Header(wire)
}

// request makes a header with a tag of its own and no CmdSN yet.
func (c *simConn) request(op pdu.Opcode, flags byte) *pdu.Header {
	h := new(pdu.Header)
	h.Reset(op, flags)
	h.SetITT(c.tag())
	return h
}

// put sends an immediate request now and queues any other.
func (c *simConn) put(r *simRequest, immediate bool) {
	r.head.SetCmdSN(c.cmdSN)
	if immediate {
		r.head.SetImmediate()
		c.launch(r)
		return
	}
	c.cmdSN++
	c.held = append(c.held, r)
}

func (c *simConn) launch(r *simRequest) {
	c.write(r.head, r.data, nil)
	if r.after != nil {
		r.after()
	}
}

// sendHeld sends a queued request that the window lets through; not always the first.
func (c *simConn) sendHeld() bool {
	i := 0
	if c.chance(5) {
		i = c.rnd(len(c.held) + 1)
	}
	for _, i := range []int{i, 0} {
		if i < len(c.held) && pdu.InWindow(c.held[i].head.CmdSN(), c.exp, c.last) {
			r := c.held[i]
			c.held = slices.Delete(c.held, i, i+1)
			c.launch(r)
			return true
		}
	}
	return false
}

// actions are what an initiator may do in the full feature phase; frequent ones come often.
var simActions = []func(*simConn){
	(*simConn).command, (*simConn).command, (*simConn).command, (*simConn).command, (*simConn).command,
	(*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work,
	(*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work, (*simConn).work,
	(*simConn).manage, (*simConn).nop, (*simConn).sendText, (*simConn).foul, (*simConn).rare,
}

// rare actions end the session, most of them.
func (c *simConn) rare() {
	switch c.rnd(10) {
	case 0:
		c.sendLogout()
	case 1, 2:
		c.severe()
	case 3:
		c.mute, c.doomed = c.world.mutes, c.world.mutes || c.doomed
	case 4:
		c.foulFatal()
	}
}

// work does one thing that brings open business on.
func (c *simConn) work() {
	switch k := c.rnd(4); {
	case len(c.pongs) > 0:
		c.pong()
	case k == 0 && len(c.lost) > 0:
		c.recover()
	case k <= 1 && len(c.held) > 0 && c.sendHeld():
	case k <= 2 && len(c.unsolicited) > 0:
		c.sendData(&c.unsolicited, 0)
	case len(c.solicited) > 0:
		c.sendData(&c.solicited, c.nextSolicited())
	}
}

// severe cuts the connection, at any byte that has not arrived yet.
func (c *simConn) severe() {
	s := c.sock
	s.toTarget = s.toTarget[:c.rnd(len(s.toTarget)+1)]
	s.cut = error(syscall.ECONNRESET)
	if c.chance(2) {
		s.cut = io.EOF
	}
	c.world.log("%v cut: %v", c, s.cut)
	c.over()
}

func (c *simConn) over() {
	c.doomed, c.fatal, c.phase = true, true, simOver
}

func (c *simConn) dropJobs(cmd *simCommand) {
	of := func(j *simJob) bool { return j.cmd == cmd }
	c.unsolicited = slices.DeleteFunc(c.unsolicited, of)
	c.solicited = slices.DeleteFunc(c.solicited, of)
}

// command makes a SCSI command.
func (c *simConn) command() {
	if len(c.open) >= 16 || len(c.held) >= 6 {
		return
	}
	w := c.world
	w.commands++
	cmd := &simCommand{conn: c, id: w.commands, lun: c.rnd(len(w.disks)), immediate: c.chance(8), attr: byte(c.rnd(4))}
	simKinds[c.rnd(len(simKinds))](cmd)
	h := c.request(pdu.OpSCSICommand, pdu.FlagFinal|cmd.flags|cmd.attr)
	h.SetLUN(pdu.EncodeLUN(uint32(cmd.lun)))
	v := pdu.SCSICommand{Header: h}
	v.SetEDTL(uint32(cmd.edtl))
	copy(v.CDB(), cmd.cdb)
	immediate, total, more := c.planData(cmd)
	if more {
		h.SetFlags(h.Flags() &^ pdu.FlagFinal)
	}
	cmd.asked = total
	c.put(&simRequest{head: h, data: cmd.data[:immediate], cmd: cmd, after: func() {
		w.order++
		cmd.itt, cmd.sn, cmd.order = h.ITT(), h.CmdSN(), w.order
		w.issue(cmd)
		cmd.note(0, immediate)
		if more {
			c.unsolicited = append(c.unsolicited, &simJob{cmd: cmd, tag: pdu.NoTag, at: immediate, end: total})
		}
		if cmd.immediate {
			c.mayReject(*h, pdu.RejectImmediate, func() { cmd.settle(false) })
		}
	}}, cmd.immediate)
}

// note counts Data-Out that was sent.
func (cmd *simCommand) note(from, to int) {
	cmd.sent += max(0, min(to, cmd.want)-min(from, cmd.want))
}

// planData decides how much data goes with the command (immediate) and unasked (total); more says that
// Data-Out follows the command. One command in sixteen breaks what was negotiated.
func (c *simConn) planData(cmd *simCommand) (immediate, total int, more bool) {
	p := &c.params
	if cmd.flags&pdu.FlagWrite == 0 {
		if cmd.edtl > 0 && c.chance(32) {
			cmd.data = make([]byte, cmd.edtl)
			cmd.spoil(verdictUnsolicited)
			return min(cmd.edtl, c.targetMax, 64), 0, false
		}
		return 0, 0, false
	}
	bad := c.chance(16)
	limit := min(p.FirstBurst, cmd.edtl)
	if most := min(cmd.edtl, c.targetMax); bad && most > limit && c.chance(2) {
		cmd.spoil(verdictAmount)
		cmd.spoil(verdictUnsolicited)
		return limit + 1 + c.rnd(most-limit), 0, false
	}
	if limit > 0 && (p.ImmediateData || bad) && !c.chance(3) {
		immediate = min(limit, c.targetMax)
		if c.chance(3) {
			immediate = 1 + c.rnd(immediate)
		}
	}
	if immediate > 0 && !p.ImmediateData {
		cmd.spoil(verdictUnsolicited)
	}
	total = immediate
	if more = (!p.InitialR2T || bad && c.chance(2)) && !c.chance(3); !more {
		return immediate, total, false
	}
	if p.InitialR2T {
		cmd.spoil(verdictUnsolicited)
	}
	if total = limit; c.chance(3) {
		total = immediate + c.rnd(limit-immediate+1)
	}
	if bad && cmd.edtl > limit {
		total = limit + 1 + c.rnd(cmd.edtl-limit)
		cmd.spoil(verdictAmount)
	}
	return immediate, total, true
}

// spoil notes that the transport has to refuse the command.
func (cmd *simCommand) spoil(v verdict) {
	if !cmd.flawed {
		cmd.flawed, cmd.verdicts = true, nil
	}
	cmd.verdicts = append(cmd.verdicts, v)
}

// nextSolicited picks a sequence; those of one command are sent in the order of their R2Ts.
func (c *simConn) nextSolicited() int {
	i := c.rnd(len(c.solicited))
	first := c.solicited[i].cmd
	return slices.IndexFunc(c.solicited, func(j *simJob) bool { return j.cmd == first })
}

// sendData sends the next Data-Out of a sequence, seldom a wrong one.
func (c *simConn) sendData(jobs *[]*simJob, i int) {
	j := (*jobs)[i]
	n := min(j.end-j.at, c.targetMax)
	if n > 0 && c.chance(3) {
		n = 1 + c.rnd(n)
	}
	h := new(pdu.Header)
	h.Reset(pdu.OpDataOut, 0)
	h.SetITT(j.cmd.itt)
	h.SetTTT(j.tag)
	h.SetLUN(pdu.EncodeLUN(uint32(j.cmd.lun)))
	d := pdu.DataOut{Header: h}
	d.SetDataSN(j.sn)
	d.SetOffset(uint32(j.at))
	data := j.cmd.data[j.at : j.at+n]
	if final := j.at+n == j.end; final {
		h.SetFlags(pdu.FlagFinal)
	}
	var bad func([]byte)
	if c.chance(40) && j.cmd.settled == 0 {
		data, bad = c.spoilData(j, h, data)
	} else {
		j.cmd.note(j.at, j.at+n)
	}
	c.write(h, data, bad)
	j.sn++
	j.at += n
	if h.Final() {
		*jobs = slices.Delete(*jobs, i, i+1)
		if j.tag != pdu.NoTag {
			j.cmd.waiting--
		}
	}
}

// spoilData breaks a Data-Out; its command cannot succeed any more.
func (c *simConn) spoilData(j *simJob, h *pdu.Header, data []byte) ([]byte, func([]byte)) {
	d := pdu.DataOut{Header: h}
	switch k := c.rnd(5); {
	case k == 0:
		d.SetDataSN(j.sn + 1 + uint32(c.rnd(3)))
		j.cmd.spoil(verdictCRC)
	case k == 1:
		d.SetOffset(uint32(j.at) + 512 + uint32(c.rnd(2))<<31)
		j.cmd.spoil(verdictAmount)
	case k == 2 && j.tag != pdu.NoTag && len(data) < c.targetMax:
		h.SetFlags(pdu.FlagFinal)
		data = append(slices.Clone(data), make([]byte, min(600, c.targetMax-len(data)))...)
		if j.at+len(data) == j.end {
			data = data[:len(data)-1]
		}
		j.cmd.spoil(verdictAmount)
	case k == 3 && j.tag != pdu.NoTag && j.at+len(data) < j.end:
		h.SetFlags(pdu.FlagFinal)
		j.cmd.spoil(verdictAmount)
	case k == 4 && c.wire.dataDigest && len(data) > 0:
		j.cmd.spoil(verdictCRC)
		return data, func(wire []byte) {
			spoilLast(wire)
			c.mayReject(pdu.Header(wire), pdu.RejectDataDigest, nil)
		}
	default:
		j.cmd.note(j.at, j.at+len(data))
	}
	return data, nil
}

func spoilLast(wire []byte) { wire[len(wire)-1] ^= 0x55 }

// manage asks for a task management function.
func (c *simConn) manage() {
	w := c.world
	fns := []pdu.TaskFunction{
		pdu.AbortTask, pdu.AbortTask, pdu.AbortTask, pdu.AbortTask, pdu.AbortTask, pdu.AbortTask, pdu.AbortTaskSet, pdu.AbortTaskSet,
		pdu.ClearTaskSet, pdu.LUNReset, pdu.TargetWarmReset, pdu.ClearACA, pdu.TaskReassign, 0x44,
	}
	fn := fns[c.rnd(len(fns))]
	if fn == pdu.TargetWarmReset && c.chance(3) {
		fn = pdu.TargetColdReset
	}
	t := &simTask{conn: c, fn: fn, lun: c.rnd(len(w.disks))}
	if fn == pdu.AbortTask {
		if len(c.open) == 0 {
			return
		}
		t.ref = c.open[c.rnd(len(c.open))]
		t.lun = t.ref.lun
	}
	c.ask(t, !c.chance(4))
}

func (c *simConn) ask(t *simTask, immediate bool) {
	h := c.request(pdu.OpTaskRequest, pdu.FlagFinal|byte(t.fn))
	h.SetLUN(pdu.EncodeLUN(uint32(t.lun)))
	h.SetTTT(pdu.NoTag)
	if t.ref != nil {
		r := pdu.TaskRequest{Header: h}
		r.SetRefTag(t.ref.itt)
		r.SetRefCmdSN(t.ref.sn)
		if t.ref.immediate {
			r.SetRefCmdSN(c.cmdSN) // §11.5.5: that of the request itself
		}
	}
	c.put(&simRequest{head: h, after: func() { c.world.begin(t, h.ITT()) }}, immediate)
}

// begin notes whom a function may hit from now on.
func (w *world) begin(t *simTask, itt uint32) {
	w.order++
	t.itt, t.exp, t.order = itt, t.conn.exp, w.order
	w.tasks = append(w.tasks, t)
	w.cold = w.cold || t.fn == pdu.TargetColdReset
	for _, c := range w.conns {
		for _, cmd := range c.open {
			cmd.vanish = cmd.vanish || t.covers(cmd)
		}
	}
}

func (t *simTask) covers(cmd *simCommand) bool {
	switch t.fn {
	case pdu.AbortTask:
		return cmd == t.ref
	case pdu.AbortTaskSet:
		return cmd.conn == t.conn && cmd.lun == t.lun
	case pdu.ClearTaskSet, pdu.LUNReset:
		return cmd.lun == t.lun
	case pdu.TargetWarmReset, pdu.TargetColdReset:
		return true
	}
	return false
}

// recover closes a hole in the CmdSNs: by a NOP-Out in its place, or by aborting what was there.
func (c *simConn) recover() {
	l := c.lost[0]
	c.lost = c.lost[1:]
	if l.cmd != nil && c.chance(2) {
		c.ask(&simTask{conn: c, fn: pdu.AbortTask, lun: l.cmd.lun, ref: l.cmd, lost: true}, true)
		return
	}
	h := c.ping(nil)
	h.SetCmdSN(l.sn)
	c.launch(&simRequest{head: h})
}

// ping makes a NOP-Out and expects its answer.
func (c *simConn) ping(data []byte) *pdu.Header {
	h := c.request(pdu.OpNopOut, pdu.FlagFinal)
	h.SetTTT(pdu.NoTag)
	c.nops[h.ITT()] = data[:min(len(data), c.recvMax)]
	return h
}

func (c *simConn) nop() {
	if len(c.held) >= 6 {
		return
	}
	data := make([]byte, c.rnd(min(c.targetMax, 2000)))
	for i := range data {
		data[i] = byte(c.rnd(256))
	}
	c.put(&simRequest{head: c.ping(data), data: data}, c.chance(2))
}

// pong answers a NOP-In of the target.
func (c *simConn) pong() {
	h := c.request(pdu.OpNopOut, pdu.FlagFinal)
	h.SetITT(pdu.NoTag)
	h.SetTTT(c.pongs[0])
	c.pongs = c.pongs[1:]
	c.put(&simRequest{head: h}, true)
}

// sendText begins a text negotiation, one at a time. The answer may need several PDUs.
func (c *simConn) sendText() {
	if len(c.texts) > 0 || len(c.held) >= 6 {
		return
	}
	h := c.request(pdu.OpTextRequest, pdu.FlagFinal)
	h.SetTTT(pdu.NoTag)
	data := text("SendTargets", "")
	for i := range min(c.rnd(60), (c.targetMax-len(data))/32) {
		data = pdu.AppendPair(data, "X-test.lunar.key-"+strconv.Itoa(i), "value")
	}
	var why pdu.RejectReason
	switch c.rnd(8) {
	case 0:
		h.SetTTT(0x12345678)
		why = pdu.RejectField
	case 1:
		h.SetFlags(pdu.FlagFinal | pdu.FlagContinue)
		why = pdu.RejectProtocol
	}
	c.texts[h.ITT()] = true
	c.put(&simRequest{head: h, data: data, after: func() {
		if why != 0 {
			c.mayReject(*h, why, func() { delete(c.texts, h.ITT()) })
		}
	}}, c.chance(2))
}

// moreText asks for the rest of an answer.
func (c *simConn) moreText(itt, tag uint32) {
	h := c.request(pdu.OpTextRequest, pdu.FlagFinal)
	h.SetITT(itt)
	h.SetTTT(tag)
	c.put(&simRequest{head: h}, c.chance(2))
}

func (c *simConn) sendLogout() {
	h := c.request(pdu.OpLogoutRequest, pdu.FlagFinal|byte(pdu.LogoutSession))
	c.put(&simRequest{head: h, after: func() { c.doomed, c.logout = true, true }}, c.chance(2))
}
