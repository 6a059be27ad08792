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
	conn *conn
	head pdu.Header
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

func (m *management) answer(r pdu.TaskResult) { m.respond(r) }

func (m *management) respond(r pdu.TaskResult) *frame {
	c := m.conn
	c.managing--
	f := c.frame(pdu.OpTaskResponse, pdu.FlagFinal, m.head.ITT())
	pdu.TaskResponse{Header: f.head()}.SetResult(r)
	f.stat = statTake
	c.send(f)
	return f
}

func (m *management) done(r scsi.ManagementResponse) { m.answer(pdu.TaskResult(r)) }

func (m *management) abortTask() {
	c, req := m.conn, m.request()
	t := c.tasks.find(req.RefTag())
	switch {
	case t == nil || t.cmd.LUN != m.head.LUN():
		m.answer(m.absent())
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

// absent is the answer about a task that is not here: one that may yet come is taken for received,
// §11.6.1.
func (m *management) absent() pdu.TaskResult {
	w, sn := &m.conn.win, m.request().RefCmdSN()
	if pdu.InWindow(sn, w.expected, w.last()) && pdu.Before(sn, m.head.CmdSN()) {
		return pdu.TaskComplete
	}
	return pdu.TaskNoTask
}

func (m *management) abortTaskSet() {
	c := m.conn
	c.dropTasks(m.sameLUN)
	m.target().AbortTaskSet(c.session.nexus, c.reactor.lane.Index(), m.head.LUN(), m.done)
}

func (m *management) clearTaskSet() {
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
	m.respond(pdu.TaskResult(r)).last = true
	own.rx.paused = true
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
		if err := s.conn.reactor.lane.Post(func() { s.conn.dropTasks(match); step() }); err != nil {
			step()
		}
	}
	step()
}

// dropTasks ends the commands that wait for data or for a buffer.
func (c *conn) dropTasks(match func(*task) bool) {
	if c.gone {
		return
	}
	c.tasks.each(func(t *task) {
		if t.ordered && !t.running && match(t) {
			c.forget(t)
		}
	})
}
