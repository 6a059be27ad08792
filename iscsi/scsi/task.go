package scsi

// taskState is where a task stands in its task set.
type taskState uint8

const (
	taskIdle    taskState = iota // not in the task set
	taskDormant                  // waits for older tasks (SAM-5 §8.8.2)
	taskEnabled                  // executes
)

// stepper does one bounded step of a long command: it issues one backend call, with c.ioDone, and
// returns true; or it sets the command's result and returns false.
type stepper func(c *Command) bool

// task is the device server's state of a Command. The closures are made once per Command.
type task struct {
	target *Target
	lu     *LogicalUnit // nil where the LUN has no logical unit
	it     *itl
	row    *row

	next, prev *Command // in itl.tasks
	state      taskState
	oversize   bool
	aborted    bool
	silent     bool
	waiters    []*taskWait // task management functions that wait for the task to end

	// ioDone and comparedDone are what backend calls take as done.
	ioDone       func(error)
	comparedDone func(int, error)
	then         func(c *Command, err error)
	step         stepper
	stepping     bool // inside step: a completion is noted, not acted on
	stepped      bool
	stepErr      error
	mismatch     int // comparedDone's index

	// State of multi-step commands: the range still to do, in bytes, and buffers to give back.
	offset, left int64
	chunk        int
	buffers      [2][]byte
	cursor       int // place in Data
	retries      int // of an optimistic read-modify-write
	private      any // state of rare commands (EXTENDED COPY)
	senseBytes   [senseLength]byte
}

// begin makes the state ready for a new CDB.
func (c *Command) begin(t *Target) {
	if c.ioDone == nil {
		c.ioDone = c.backendDone
		c.comparedDone = c.backendCompared
	}
	c.target, c.lu, c.it = t, nil, nil
	c.row, _ = commands.find(&c.CDB)
	c.state, c.oversize, c.aborted, c.silent = taskIdle, false, false, false
	c.waiters, c.then, c.step = nil, nil, nil
	c.stepping, c.stepped, c.stepErr = false, false, nil
	c.offset, c.left, c.cursor, c.retries, c.chunk, c.private = 0, 0, 0, 0, 0, nil
	c.Count, c.Status, c.Sense = 0, Good, nil
}

// backendDone receives every backend completion that carries only an error.
func (c *Command) backendDone(err error) {
	if c.stepping {
		c.stepped, c.stepErr = true, err
		return
	}
	c.then(c, err)
}

func (c *Command) backendCompared(mismatch int, err error) {
	c.mismatch = mismatch
	c.backendDone(err)
}

// runSteps repeats step until it has nothing left, the backend fails or the task is aborted; then
// the command completes. Backends that complete at once do not deepen the stack.
func (c *Command) runSteps(step stepper) {
	c.step, c.then = step, advance
	advance(c, nil)
}

func advance(c *Command, err error) {
	for {
		if err != nil {
			c.rejectError(err)
			return
		}
		c.stepping, c.stepped = true, false
		more := !c.aborted && c.step(c)
		c.stepping = false
		if !more {
			c.complete()
			return
		}
		if !c.stepped {
			return
		}
		err = c.stepErr
	}
}

// borrow takes a buffer for slot 0 or 1, to be given back when the command completes; nil when the
// pool has none left.
func (c *Command) borrow(slot, n int) []byte {
	c.buffers[slot] = c.target.opts.Buffers.Get(n)
	return c.buffers[slot]
}

func (c *Command) returnBuffers() {
	for i, b := range c.buffers {
		if b != nil {
			c.target.opts.Buffers.Put(b)
			c.buffers[i] = nil
		}
	}
}

// good completes the command with GOOD.
func (c *Command) good() { c.complete() }

// reply completes a DataIn command with data, cut to what the CDB allows.
func (c *Command) reply(data []byte) {
	c.Length = min(c.Length, len(data))
	c.Count = copy(c.Data, data[:c.Length])
	c.complete()
}

// fail sets CHECK CONDITION with s, for a stepper that returns false then.
func (c *Command) fail(s sense) {
	c.Status = CheckCondition
	descriptor := c.lu != nil && c.lu.modes.Load().descriptorSense
	c.Sense = s.encode(c.senseBytes[:], descriptor)
	if c.Direction == DataIn {
		c.Count, c.Length = 0, 0
	}
}

// reject completes the command with CHECK CONDITION and s.
func (c *Command) reject(s sense) {
	c.fail(s)
	c.complete()
}

// rejectStatus completes the command with a status that has no sense data.
func (c *Command) rejectStatus(status Status) {
	c.Status = status
	if c.Direction == DataIn {
		c.Count, c.Length = 0, 0
	}
	c.complete()
}

// rejectError completes the command with what the sense table says of a Backend's error.
func (c *Command) rejectError(err error) {
	status, s := backendFailure(err, c.row.has(writes))
	if status != CheckCondition {
		c.rejectStatus(status)
		return
	}
	c.reject(s)
}

// complete ends the task: it leaves the task set, whoever waits for that is told, and the
// transport has the Command back.
func (c *Command) complete() {
	c.returnBuffers()
	if c.aborted {
		c.Status, c.Sense, c.Count = TaskAborted, nil, 0
	}
	it, waiters, lane := c.it, c.waiters, c.Lane
	ordered := it != nil && it.ordered > 0
	if c.state != taskIdle {
		it.remove(c)
	}
	c.waiters, c.private = nil, nil
	c.Done(c)
	for _, w := range waiters {
		w.done(lane)
	}
	if ordered {
		it.dispatch()
	}
}
