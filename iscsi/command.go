package iscsi

import (
	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// task is one SCSI command from its PDU to its answer. Tasks belong to a lane and are used anew.
type task struct {
	cmd  scsi.Command
	conn *conn
	next *task // in a bucket of taskTable, in taskQueue or in taskPool

	itt, sn   uint32
	edtl      int
	buf       []byte // from Buffers, or the connection's Pages
	need      int    // bytes of buf that the command uses
	ordered   bool   // its CmdSN's turn has come
	counted   bool   // it holds a place in the window
	running   bool   // in the device server
	hungry    bool   // waits for a buffer
	cancelled bool   // aborted before its turn
	borrowed  bool   // buf is of the Pages
	shown     bool   // some of buf was sent
	stat      uint32 // StatSN of its answer, once that is sent
	mark      uint32 // of the clock
	abandoned bool   // aborted; whoever still refers to it lets go
	fault     *fault // answered instead of the command's own result

	out   gathering
	sense [2 + 252]byte // SenseLength and sense data, as they go out
}

// fault is what the transport itself answers a command with.
type fault struct {
	status scsi.Status
	sense  []byte
}

// fixedSense is ABORTED COMMAND in fixed format, SPC-4 §4.5.3.
func fixedSense(asc, ascq byte) []byte {
	s := make([]byte, 18)
	s[0], s[2], s[7], s[12], s[13] = 0x70, 0x0b, 10, asc, ascq
	return s
}

// The conditions of RFC 7143 §11.4.7.2.
var (
	faultUnsolicited = &fault{scsi.CheckCondition, fixedSense(0x0c, 0x0c)} // UNEXPECTED UNSOLICITED DATA
	faultAmount      = &fault{scsi.CheckCondition, fixedSense(0x0c, 0x0d)} // NOT ENOUGH UNSOLICITED DATA: incorrect amount
	faultCRC         = &fault{scsi.CheckCondition, fixedSense(0x47, 0x05)} // PROTOCOL SERVICE CRC ERROR
	faultAborted     = &fault{scsi.TaskAborted, nil}
	faultFull        = &fault{scsi.TaskSetFull, nil}
)

// blame keeps the first fault.
func (t *task) blame(f *fault) {
	if t.fault == nil {
		t.fault = f
	}
}

// taskPool keeps tasks for anew use on one lane.
type taskPool struct{ free *task }

func (p *taskPool) get() *task {
	t := p.free
	if t == nil {
		t = new(task)
		t.cmd.Done = t.executed
		return t
	}
	p.free, t.next = t.next, nil
	return t
}

func (p *taskPool) put(t *task) {
	t.conn, t.buf, t.fault, t.cmd.Nexus, t.cmd.Data = nil, nil, nil, nil, nil
	t.ordered, t.counted, t.running, t.hungry, t.cancelled, t.abandoned = false, false, false, false, false, false
	t.borrowed, t.shown = false, false
	p.free, t.next = t, p.free
}

// taskQueue is a list of tasks that wait for a buffer.
type taskQueue struct{ first, last *task }

func (q *taskQueue) push(t *task) {
	if q.first == nil {
		q.first = t
	} else {
		q.last.next = t
	}
	q.last = t
	t.next = nil
}

func (q *taskQueue) take() *task {
	t := q.first
	q.first, q.last = nil, nil
	return t
}

// taskBuckets is a power of two.
const taskBuckets = 64

// taskTable finds a connection's tasks by initiator task tag, from the command's PDU until its
// status is queued.
type taskTable struct {
	buckets [taskBuckets][]*task
	count   int
}

func (tt *taskTable) find(itt uint32) *task {
	for _, t := range tt.buckets[itt%taskBuckets] {
		if t.itt == itt {
			return t
		}
	}
	return nil
}

func (tt *taskTable) add(t *task) {
	b := &tt.buckets[t.itt%taskBuckets]
	*b = append(*b, t)
	tt.count++
}

func (tt *taskTable) remove(t *task) {
	b := tt.buckets[t.itt%taskBuckets]
	for i, x := range b {
		if x == t {
			last := len(b) - 1
			b[i], b[last] = b[last], nil
			tt.buckets[t.itt%taskBuckets] = b[:last]
			tt.count--
			return
		}
	}
}

// each calls fn for every task; fn may remove it.
func (tt *taskTable) each(fn func(*task)) {
	for i := range tt.buckets {
		for j := len(tt.buckets[i]) - 1; j >= 0; j-- {
			fn(tt.buckets[i][j])
		}
	}
}

// beginCommand checks a SCSI Command's header and makes room for its immediate data. It leaves
// rx.task nil if the command is not to be taken.
func beginCommand(c *conn) {
	rx := &c.rx
	h := pdu.SCSICommand{Header: &rx.head}
	if reason := c.refuse(h); reason != 0 {
		c.reject(reason)
		return
	}
	if !h.Immediate() && c.win.place(h.CmdSN()) == placeDrop {
		return
	}
	t := c.newTask(h)
	c.session.export.Target.Decode(&t.cmd)
	t.plan(h)
	c.mark(t)
	rx.task = t
	c.tasks.add(t)
	c.makeRoom(t, rx.size)
}

// refuse says why a command is answered with Reject, 0 if it is not.
func (c *conn) refuse(h pdu.SCSICommand) pdu.RejectReason {
	switch {
	case c.session.discovery:
		return pdu.RejectNotSupported
	case h.ITT() == pdu.NoTag:
		return pdu.RejectField
	case c.tasks.find(h.ITT()) != nil:
		return pdu.RejectTaskInUse
	case h.Immediate() && c.tasks.count >= 2*c.win.depth:
		return pdu.RejectImmediate
	case !validAHS(c.rx.ahs):
		return pdu.RejectProtocol
	}
	return 0
}

func validAHS(b []byte) bool {
	for len(b) > 0 {
		_, rest, err := pdu.NextAHS(b)
		if err != nil {
			return false
		}
		b = rest
	}
	return true
}

func (c *conn) newTask(h pdu.SCSICommand) *task {
	t := c.reactor.tasks.get()
	t.conn, t.itt, t.sn = c, h.ITT(), h.CmdSN()
	t.edtl = int(h.EDTL())
	t.out = gathering{bursts: t.out.bursts[:0]}
	cmd := &t.cmd
	copy(cmd.CDB[:], h.CDB())
	cmd.LUN, cmd.Nexus, cmd.Lane = h.LUN(), c.session.nexus, c.reactor.lane.Index()
	cmd.Tag, cmd.Attr, cmd.Expected = t.itt, scsi.TaskAttribute(h.Attr()), t.edtl
	return t
}

// endCommand puts a command whose PDU is complete into its place in the order.
func endCommand(c *conn, intact bool) {
	t := c.rx.task
	switch {
	case t == nil:
	case !intact:
		c.reject(pdu.RejectDataDigest)
		c.forget(t)
	case c.rx.head.Immediate():
		c.begin(t)
	default:
		c.order(&c.rx.head, t)
	}
}

// begin starts a command whose turn has come.
func (c *conn) begin(t *task) {
	t.ordered = true
	c.counters.inFlight.Add(1)
	if t.cancelled {
		c.forget(t)
		return
	}
	c.advance(t)
}

// advance takes a command to its next step, if nothing is missing for it.
func (c *conn) advance(t *task) {
	switch {
	case !t.ordered || t.hungry || t.abandoned || t.out.unsolicited:
	case t.fault == nil && t.need > 0 && !c.provide(t):
		t.hungry = true
		c.reactor.hungry.push(t)
	case t.fault == nil && t.out.missing():
		c.solicit(t)
	case len(t.out.bursts) > 0:
	case t.fault != nil:
		c.answer(t)
	default:
		c.execute(t)
	}
}

// provide gets the command its buffer; false when there is none to be had now.
func (c *conn) provide(t *task) bool {
	if t.buf != nil {
		return true
	}
	if c.overBudget(t) {
		return false
	}
	if t.buf = c.borrow(t); t.buf == nil {
		t.buf = c.opts().Buffers.Get(t.need)
	}
	if t.buf == nil {
		return false
	}
	c.bytes += t.need
	return true
}

func (c *conn) overBudget(t *task) bool {
	return c.bytes > 0 && c.bytes+t.need > c.opts().ConnectionBytes
}

func (c *conn) execute(t *task) {
	t.running = true
	c.running++
	t.cmd.Data = nil
	if t.need > 0 {
		t.cmd.Data = t.buf[:t.need]
	}
	clock := c.reactor.clock
	clock.Start(t.mark)
	c.session.export.Target.Execute(&t.cmd)
	clock.Left()
}

// executed is the command's Done.
func (t *task) executed(cmd *scsi.Command) {
	c := t.conn
	c.reactor.clock.Executed(t.mark, uint8(cmd.Status))
	t.running = false
	c.running--
	c.counters.commands.Add(1)
	switch {
	case c.closing:
		c.forget(t)
		c.finish()
	case cmd.Silent():
		c.vanish(t)
	default:
		c.answer(t)
	}
}

// forget ends a command without an answer.
func (c *conn) forget(t *task) {
	c.retire(t)
	if t.counted {
		c.win.used--
		t.counted = false
	}
	if c.rx.task == t && c.rx.stage != stageHeader || t.hungry {
		t.abandoned = true // the receiver or the reactor holds it still
		return
	}
	c.release(t)
}

// vanish is forget with no answer to come that could tell of the window that opens.
func (c *conn) vanish(t *task) {
	c.forget(t)
	if c.win.secret() {
		c.win.told = c.win.last()
		c.reopen()
	}
}

// retire takes a command out of what the initiator can refer to.
func (c *conn) retire(t *task) {
	c.tasks.remove(t)
	if t.ordered {
		c.counters.inFlight.Add(-1)
		t.ordered = false
	}
	if t.out.expecting {
		t.out.expecting = false
		c.expecting--
	}
}

// release gives the command's memory back.
func (c *conn) release(t *task) {
	c.reactor.clock.End(t.mark)
	t.mark = 0
	if t.buf != nil {
		c.bytes -= t.need
		if t.borrowed {
			c.giveBack(t)
		} else {
			c.opts().Buffers.Put(t.buf)
		}
	}
	c.reactor.tasks.put(t)
}

// dropGathering frees, at the end of a connection, the commands that never got to the device server.
func (c *conn) dropGathering() {
	if t := c.rx.task; t != nil && c.rx.stage != stageHeader && t.abandoned && !t.hungry {
		c.release(t) // the receiver alone still held it
	}
	c.rx.stage, c.rx.task = stageHeader, nil
	c.tasks.each(func(t *task) {
		if !t.running {
			c.forget(t)
		}
	})
}
