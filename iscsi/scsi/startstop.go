package scsi

// startStopCommands are START STOP UNIT (SBC-3 §5.25) and PREVENT ALLOW MEDIUM REMOVAL (§5.12).
var startStopCommands = []row{
	{
		opcode: 0x1B, action: noServiceAction, name: "START STOP UNIT",
		usage: []byte{0x1B, 0x01, 0, 0x0F, 0xF7, 0x00},
		class: classOwn, flags: passUnready, run: startStop,
	},
	{
		opcode: 0x1E, action: noServiceAction, name: "PREVENT ALLOW MEDIUM REMOVAL",
		usage: []byte{0x1E, 0, 0, 0, 0x03, 0x00},
		class: classOwn, flags: passUnready, run: preventAllow,
	},
}

// Power states of a unit.
const (
	powerActive uint32 = iota
	powerStopped
	powerEjected // removable units only
)

// readiness is the sense data of the power states in which media commands are refused.
var readiness = [...]sense{
	powerStopped: senseNotReadyStopped,
	powerEjected: senseMediumNotPresent,
}

// startUnit is what a reset does: the medium is loaded and started, its removal allowed.
func (lu *LogicalUnit) startUnit() {
	lu.power.Store(powerActive)
	lu.mu.Lock()
	defer lu.mu.Unlock()
	clear(lu.preventing)
}

// ready tells whether the unit executes media commands; if not, s says why.
func (lu *LogicalUnit) ready() (s sense, ok bool) {
	if p := lu.power.Load(); p != powerActive {
		return readiness[p], false
	}
	return senseNone, true
}

// startStop changes the power state after all that was written is durable. A power condition other
// than 0 changes nothing: a virtual disk has only the active condition.
func startStop(c *Command) {
	start, load, condition := c.CDB[4]&1 != 0, c.CDB[4]&2 != 0, c.CDB[4]>>4
	if (!start || condition != 0) && c.conflicts(classWrite) {
		return
	}
	switch {
	case condition != 0:
		c.good()
	case load && !c.lu.opts.Removable:
		c.reject(senseInvalidField.atBit(4, 1))
	case load && c.lu.removalPrevented():
		c.reject(senseRemovalPrevented)
	default:
		c.setPower(c.lu.powerAfter(start, load))
	}
}

// powerAfter is the state that START and LOEJ lead to. A removable unit keeps its medium usable
// when it is stopped without LOEJ: it has nothing to spin down.
func (lu *LogicalUnit) powerAfter(start, load bool) uint32 {
	switch {
	case load && !start:
		return powerEjected
	case start && (load || !lu.opts.Removable):
		return powerActive
	case !lu.opts.Removable:
		return powerStopped
	}
	return lu.power.Load()
}

// setPower flushes before the unit stops; NO_FLUSH is not heeded.
func (c *Command) setPower(state uint32) {
	if state == powerActive || state == c.lu.power.Load() {
		c.lu.power.Store(state)
		c.good()
		return
	}
	c.then = stopFlushed
	c.lu.backend.Flush(c.Lane, c.ioDone)
}

func stopFlushed(c *Command, err error) {
	if err == nil {
		c.lu.power.Store(c.lu.powerAfter(c.CDB[4]&1 != 0, c.CDB[4]&2 != 0))
	}
	flushed(c, err)
}

// preventAllow notes which I_T nexuses prevent the removal of the medium.
func preventAllow(c *Command) {
	prevent := c.CDB[4] & 3
	if prevent != 0 && c.conflicts(classWrite) {
		return
	}
	if prevent > 1 {
		c.reject(senseInvalidField.atBit(4, 1))
		return
	}
	c.lu.mu.Lock()
	if prevent == 1 {
		c.lu.preventing[c.it] = struct{}{}
	} else {
		delete(c.lu.preventing, c.it)
	}
	c.lu.mu.Unlock()
	c.good()
}

func (lu *LogicalUnit) removalPrevented() bool {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	return len(lu.preventing) > 0
}

// conflicts rejects the command if a reservation refuses class; for rows of classOwn.
func (c *Command) conflicts(class reservationClass) bool {
	if !c.lu.reservations.load().conflicts(c.it.id(), class, false) {
		return false
	}
	c.rejectStatus(ReservationConflict)
	return true
}
