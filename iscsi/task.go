package iscsi

import (
	"sync/atomic"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// maxManaging bounds the task management functions that one connection has under way.
const maxManaging = 64

// management is one task management function under way.
type management struct {
	conn   *conn
	head   pdu.Header
	notify bool // other initiators hear of it by a unit attention of its own
}

func (m *management) request() pdu.TaskRequest { return pdu.TaskRequest{Header: &m.head} }

// taskFunctions maps the functions of RFC 7143 §11.5.1 to what they do. Commands that gather data
// are ended here; those in the device server by scsi.Target. The answer goes out when the effect
// is true, §4.2.3.3.
var taskFunctions = map[pdu.TaskFunction]func(*management){
	pdu.AbortTask:       (*management).abortTask,
	pdu.AbortTaskSet:    (*management).abortTaskSet,
	pdu.ClearACA:        func(m *management) { m.answer(pdu.TaskNotSupported) }, // NormACA is 0
	pdu.ClearTaskSet:    (*management).clearTaskSet,
	pdu.LUNReset:        (*management).resetLUN,
	pdu.TargetWarmReset: (*management).resetTarget,
	pdu.TargetColdReset: (*management).resetCold,
	pdu.TaskReassign:    func(m *management) { m.answer(pdu.TaskNoReassign) }, // error recovery level 0
}

func runTaskRequest(c *conn, h *pdu.Header, _ []byte) {
	if c.session.discovery {
		c.rejectPDU(h, pdu.RejectNotSupported)
		return
	}
	if c.managing >= maxManaging {
		c.rejectPDU(h, pdu.RejectImmediate)
		return
	}
	c.managing++
	m := &management{conn: c, head: *h}
	if run := taskFunctions[m.request().Function()]; run != nil {
		run(m)
		return
	}
	m.answer(pdu.TaskRejected)
}

func (m *management) target() *scsi.Target { return m.conn.session.export.Target }

func (m *management) answer(r pdu.TaskResult) { m.conn.send(m.response(r)) }

// response makes the answer, with which the function is over.
func (m *management) response(r pdu.TaskResult) *frame {
	c := m.conn
	c.managing--
	f := c.frame(pdu.OpTaskResponse, pdu.FlagFinal, m.head.ITT())
	pdu.TaskResponse{Header: f.head()}.SetResult(r)
	f.stat = statTake
	return f
}

func (m *management) done(r scsi.ManagementResponse) { m.answer(pdu.TaskResult(r)) }

func (m *management) abortTask() {
	c, req := m.conn, m.request()
	t := c.tasks.find(req.RefTag())
	switch {
	case t == nil || t.cmd.LUN != m.head.LUN():
		m.abortAbsent()
	case t.running:
		m.target().AbortTask(c.session.nexus, c.reactor.lane.Index(), m.head.LUN(), t.itt, m.done)
	case !t.ordered:
		t.cancelled = true // it ends at its turn
		m.answer(pdu.TaskComplete)
	default:
		c.forget(t)
		m.answer(pdu.TaskComplete)
	}
}

// abortAbsent answers about a task that is not here: the CmdSN of one that may yet come counts as
// received, §11.6.1.
func (m *management) abortAbsent() {
	c, sn := m.conn, m.request().RefCmdSN()
	if !pdu.InWindow(sn, c.win.expected, c.win.last()) || !pdu.Before(sn, m.head.CmdSN()) {
		m.answer(pdu.TaskNoTask)
		return
	}
	m.answer(pdu.TaskComplete)
	c.skip(sn)
}

func (m *management) abortTaskSet() {
	c := m.conn
	c.dropTasks(m.sameLUN)
	m.target().AbortTaskSet(c.session.nexus, c.reactor.lane.Index(), m.head.LUN(), m.done)
}

func (m *management) clearTaskSet() {
	m.notify = true
	m.everywhere(m.sameLUN, func() {
		m.target().ClearTaskSet(m.conn.session.nexus, m.conn.reactor.lane.Index(), m.head.LUN(), m.done)
	})
}

func (m *management) resetLUN() {
	m.everywhere(m.sameLUN, func() {
		m.target().LUNReset(m.conn.session.nexus, m.conn.reactor.lane.Index(), m.head.LUN(), m.done)
	})
}

func (m *management) resetTarget() {
	m.everywhere(anyTask, func() {
		m.target().TargetReset(m.conn.session.nexus, m.conn.reactor.lane.Index(), m.done)
	})
}

// resetCold ends all connections to the target after the reset, §11.5.1.
func (m *management) resetCold() {
	m.everywhere(anyTask, func() {
		m.target().TargetReset(m.conn.session.nexus, m.conn.reactor.lane.Index(), m.cut)
	})
}

func (m *management) cut(r scsi.ManagementResponse) {
	own := m.conn
	for _, s := range own.reactor.server.sessions.list(own.session.key.target) {
		if s.conn != own {
			s.conn.post(func() { s.conn.close(errTargetReset) })
		}
	}
	f := m.response(pdu.TaskResult(r))
	f.last = true
	own.rx.paused = true
	own.send(f)
}

func anyTask(*task) bool { return true }

func (m *management) sameLUN(t *task) bool { return t.cmd.LUN == m.head.LUN() }

// everywhere ends the commands of every session of the target that match accepts and are not in
// the device server yet; then runs on the connection's lane once that is so.
func (m *management) everywhere(match func(*task) bool, then func()) {
	own := m.conn
	all := own.reactor.server.sessions.list(own.session.key.target)
	left := new(atomic.Int32)
	left.Store(int32(len(all)) + 1)
	step := func() {
		if left.Add(-1) == 0 {
			own.post(then)
		}
	}
	for _, s := range all {
		drop := func() { s.conn.dropTasks(match) }
		if s.conn != own {
			drop = func() { s.conn.clearTasks(match, m.notify) }
		}
		if err := s.conn.reactor.lane.Post(func() { drop(); step() }); err != nil {
			step()
		}
	}
	step()
}

// dropTasks ends the commands that wait for data or for a buffer. Data-Out of theirs that still comes
// finds no task and is dropped, so nothing has to wait for it.
func (c *conn) dropTasks(match func(*task) bool) {
	c.gathering(match, c.forget)
}

// clearTasks is dropTasks on behalf of another initiator: this one is told, by TASK ABORTED or by a
// unit attention.
func (c *conn) clearTasks(match func(*task) bool, notify bool) {
	c.gathering(match, func(t *task) {
		target := c.session.export.Target
		if target.TaskAbortedStatus(t.cmd.LUN) {
			c.tellAborted(t)
			return
		}
		if notify {
			target.CommandsCleared(c.session.nexus, t.cmd.LUN)
		}
		c.vanish(t)
	})
}

func (c *conn) gathering(match func(*task) bool, end func(*task)) {
	if c.gone {
		return
	}
	c.tasks.each(func(t *task) {
		if t.ordered && !t.running && match(t) {
			end(t)
		}
	})
}

// tellAborted answers with TASK ABORTED, at once or when who holds the command has let go of it.
func (c *conn) tellAborted(t *task) {
	t.blame(faultAborted)
	t.out.unsolicited, t.out.bursts = false, t.out.bursts[:0]
	c.expect(t)
	if c.rx.task != t || c.rx.stage == stageHeader {
		c.advance(t)
	}
}
