package scsi

import "sync/atomic"

// ManagementResponse is the service response of a task management function, numbered as in the
// iSCSI response PDU (RFC 7143 §11.6.1).
type ManagementResponse uint8

// The responses that this device server gives.
const (
	FunctionComplete ManagementResponse = 0
	TaskDoesNotExist ManagementResponse = 1
	LUNDoesNotExist  ManagementResponse = 2
)

// taskWait is what waits for tasks to leave the backend, on whichever lanes they are.
type taskWait struct {
	pending atomic.Int32
	finish  func(lane int) // called once, on the lane where the last task ended
}

// newWait counts its maker as one task: the maker calls done when all tasks were added.
func newWait(finish func(lane int)) *taskWait {
	w := &taskWait{finish: finish}
	w.pending.Store(1)
	return w
}

func (w *taskWait) done(lane int) {
	if w.pending.Add(-1) == 0 {
		w.finish(lane)
	}
}

// abort marks the task; when it leaves the backend it completes with TASK ABORTED and w is told.
// silent says that the initiator is to get no response.
func (c *Command) abort(silent bool, w *taskWait) {
	c.silent = silent
	c.aborted = true
	w.pending.Add(1)
	c.waiters = append(c.waiters, w)
	if c.state == taskDormant {
		c.complete()
	}
}

// abortTasks aborts every task of the I_T_L nexus; on its lane.
func (it *itl) abortTasks(silent bool, w *taskWait) {
	tasks := make([]*Command, 0, it.count)
	for c := it.head; c != nil; c = c.next {
		tasks = append(tasks, c)
	}
	it.dispatching = true
	for _, c := range tasks {
		c.abort(silent, w)
	}
	it.dispatching = false
	it.dispatch()
}

// onLane runs fn on a lane: at once if the caller is there, or if the lane has closed, which has
// no task left then.
func (t *Target) onLane(here, lane int, fn func()) {
	if here == lane || t.opts.Post(lane, fn) != nil {
		fn()
	}
}

// abortTasks aborts the tasks of the unit's I_T_L nexuses that match accepts, on every lane, and
// calls finish when none of them is in the backend any more. by is the I_T nexus that asked: its
// own tasks end in silence; those of others too if TAS is 0, and then they get a unit attention
// COMMANDS CLEARED BY ANOTHER INITIATOR if notify is set (SAM-5 §5.6).
func (lu *LogicalUnit) abortTasks(by *Nexus, here int, notify bool, match func(*itl) bool, finish func(lane int)) {
	lu.abortTasksAs(lu.modes.Load(), by, here, notify, match, finish)
}

// abortTasksAs is abortTasks with the mode parameters that count.
func (lu *LogicalUnit) abortTasksAs(m *modeState, by *Nexus, here int, notify bool, match func(*itl) bool, finish func(lane int)) {
	silent := !m.taskAbortedStatus
	wait := newWait(finish)
	for _, it := range lu.nexuses(match) {
		wait.pending.Add(1)
		own := it.nexus == by
		it.nexus.target.onLane(here, it.lane, func() {
			if notify && !own && silent && it.count > 0 {
				it.attentions.raise(attnCommandsCleared)
			}
			it.abortTasks(own || silent, wait)
			wait.done(it.lane)
		})
	}
	wait.done(here)
}

// answer makes the finish function that reports FUNCTION COMPLETE on the requester's lane.
func (t *Target) answer(lane int, done func(ManagementResponse)) func(here int) {
	return func(here int) {
		t.onLane(here, lane, func() { done(FunctionComplete) })
	}
}

// unitAt is the unit behind the eight LUN bytes of a task management request.
func (t *Target) unitAt(lun uint64) *LogicalUnit {
	n, ok := decodeLUN(lun)
	if !ok {
		return nil
	}
	if m := t.luns.Load().get(n); m != nil {
		return m.lu
	}
	return nil
}

// local finds the nexus's state for a LUN without making it.
func (n *Nexus) local(lun uint64) *itl {
	i, ok := decodeLUN(lun)
	if !ok || i >= len(n.itls) {
		return nil
	}
	return n.itls[i]
}

// find is the task with the initiator task tag, in the LUN's present mapping or in an older one.
func (n *Nexus) find(lun uint64, tag uint32) *Command {
	for _, it := range append(n.old[:len(n.old):len(n.old)], n.local(lun)) {
		if it == nil {
			continue
		}
		for c := it.head; c != nil; c = c.next {
			if c.Tag == tag && c.LUN == lun {
				return c
			}
		}
	}
	return nil
}

// TaskAbortedStatus tells whether commands on the logical unit that another I_T nexus aborts end with
// TASK ABORTED (SPC-4 §7.5.8 TAS), for those that still gather data.
func (t *Target) TaskAbortedStatus(lun uint64) bool {
	lu := t.unitAt(lun)
	return lu != nil && lu.modes.Load().taskAbortedStatus
}

// CommandsCleared makes the unit attention COMMANDS CLEARED BY ANOTHER INITIATOR pending, on the
// nexus's lane.
func (t *Target) CommandsCleared(n *Nexus, lun uint64) {
	if it := n.local(lun); it != nil {
		it.attentions.raise(attnCommandsCleared)
	}
}

// The task management functions are called on the nexus's lane; done is called there too, when
// every affected task has left the backend and its Command.Done was called. They concern the tasks
// that were handed to Execute: the transport deals with those that still gather data.

// AbortTask aborts the task with the initiator task tag.
func (t *Target) AbortTask(n *Nexus, lane int, lun uint64, tag uint32, done func(ManagementResponse)) {
	if c := n.find(lun, tag); c != nil {
		wait := newWait(t.answer(lane, done))
		c.abort(true, wait)
		wait.done(lane)
		return
	}
	if t.unitAt(lun) == nil {
		done(LUNDoesNotExist)
		return
	}
	done(TaskDoesNotExist)
}

// AbortTaskSet aborts all tasks of the nexus on the logical unit.
func (t *Target) AbortTaskSet(n *Nexus, lane int, lun uint64, done func(ManagementResponse)) {
	lu := t.unitAt(lun)
	if lu == nil {
		done(LUNDoesNotExist)
		return
	}
	own := func(it *itl) bool { return it.nexus == n }
	lu.abortTasks(n, lane, false, own, t.answer(lane, done))
}

// ClearTaskSet aborts the tasks of all nexuses on the logical unit.
func (t *Target) ClearTaskSet(n *Nexus, lane int, lun uint64, done func(ManagementResponse)) {
	lu := t.unitAt(lun)
	if lu == nil {
		done(LUNDoesNotExist)
		return
	}
	lu.abortTasks(n, lane, true, nil, t.answer(lane, done))
}

// LUNReset aborts the tasks of all nexuses on the logical unit and resets it (SAM-5 §6.3.3).
func (t *Target) LUNReset(n *Nexus, lane int, lun uint64, done func(ManagementResponse)) {
	lu := t.unitAt(lun)
	if lu == nil {
		done(LUNDoesNotExist)
		return
	}
	lu.reset(n, lane, t.answer(lane, done))
}

// TargetReset resets every logical unit of the target. TARGET COLD RESET is the same here; ending
// the connections is the transport's part of it.
func (t *Target) TargetReset(n *Nexus, lane int, done func(ManagementResponse)) {
	wait := newWait(t.answer(lane, done))
	for _, m := range t.luns.Load().mappings() {
		wait.pending.Add(1)
		m.lu.reset(n, lane, wait.done)
	}
	for _, lu := range t.leftovers() {
		wait.pending.Add(1)
		lu.abortTasks(n, lane, false, t.uses, wait.done)
	}
	wait.done(lane)
}

// AbortNexus aborts all tasks of the nexus, whose connection was lost; done is called when the
// nexus has none left, so that it can be closed.
func (t *Target) AbortNexus(n *Nexus, lane int, done func()) {
	wait := newWait(func(int) { done() })
	for _, it := range append(n.itls[:len(n.itls):len(n.itls)], n.old...) {
		if it != nil {
			it.abortTasks(true, wait)
		}
	}
	wait.done(lane)
}

// reset is the logical unit reset of SAM-5 §6.3.3: tasks aborted, mode parameters and power
// condition as at power on, RESERVE(6) released, medium removal allowed; the other I_T nexuses
// learn of it by a unit attention.
func (lu *LogicalUnit) reset(by *Nexus, lane int, finish func(lane int)) {
	before := lu.modes.Swap(defaultModes(&lu.opts))
	lu.resetThresholds()
	lu.startUnit()
	lu.reservationReset()
	lu.attention(attnReset, nil)
	lu.abortTasksAs(before, by, lane, false, nil, finish)
}
