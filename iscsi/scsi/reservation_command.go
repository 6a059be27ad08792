package scsi

import "strings"

const (
	opReserve6             = 0x16
	opRelease6             = 0x17
	opPersistentReserveIn  = 0x5E
	opPersistentReserveOut = 0x5F
)

var reservationCommands = []row{
	{opcode: opReserve6, action: noServiceAction, name: "RESERVE(6)", usage: []byte{opReserve6, 0, 0, 0, 0, 0x00}, class: classOwn, run: reserve6},
	{opcode: opRelease6, action: noServiceAction, name: "RELEASE(6)", usage: []byte{opRelease6, 0, 0, 0, 0, 0x00}, class: classOwn, run: release6},
	reserveInRow(0, "PERSISTENT RESERVE IN, READ KEYS", (*reservations).readKeys),
	reserveInRow(1, "PERSISTENT RESERVE IN, READ RESERVATION", (*reservations).readReservation),
	{opcode: opPersistentReserveIn, action: 2, name: "PERSISTENT RESERVE IN, REPORT CAPABILITIES", usage: reserveInUsage(2), dir: DataIn, length: reserveInLength, class: classOwn, flags: reserveFlags, run: reportReserveCapabilities},
	reserveInRow(3, "PERSISTENT RESERVE IN, READ FULL STATUS", (*reservations).readFullStatus),
	reserveOutRow(actionRegister, "REGISTER"),
	reserveOutRow(actionReserve, "RESERVE"),
	reserveOutRow(actionRelease, "RELEASE"),
	reserveOutRow(actionClear, "CLEAR"),
	reserveOutRow(actionPreempt, "PREEMPT"),
	reserveOutRow(actionPreemptAbort, "PREEMPT AND ABORT"),
	reserveOutRow(actionRegisterIgnore, "REGISTER AND IGNORE EXISTING KEY"),
	reserveOutRow(actionRegisterAndMove, "REGISTER AND MOVE"),
}

// reserveFlags: fencing must work whatever the state of the unit and of the port.
const reserveFlags = passUnready | passALUA

func reserveInUsage(action byte) []byte {
	return []byte{opPersistentReserveIn, action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0x00}
}

func reserveInLength(cdb *[16]byte) int { return be16(cdb[7:]) }

func reserveOutLength(cdb *[16]byte) int { return int(be32(cdb[5:])) }

func reserveInRow(action byte, name string, read func(*reservations) []byte) row {
	run := func(c *Command) {
		state := c.lu.reservations.load()
		if state.reserved6 {
			c.rejectStatus(ReservationConflict)
			return
		}
		c.reply(read(state))
	}
	return row{opcode: opPersistentReserveIn, action: int(action), name: name, usage: reserveInUsage(action),
		dir: DataIn, length: reserveInLength, class: classOwn, flags: reserveFlags, run: run}
}

func reserveOutRow(action reservationAction, name string) row {
	usage := []byte{opPersistentReserveOut, byte(action), 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x00}
	return row{opcode: opPersistentReserveOut, action: int(action), name: "PERSISTENT RESERVE OUT, " + name, usage: usage,
		dir: DataOut, length: reserveOutLength, class: classOwn, flags: reserveFlags, run: persistentReserveOut}
}

func reportReserveCapabilities(c *Command) {
	state := c.lu.reservations.load()
	if state.reserved6 {
		c.rejectStatus(ReservationConflict)
		return
	}
	c.reply(state.reportCapabilities(c.target.opts.Reservations.Store != nil))
}

func persistentReserveOut(c *Command) {
	t := c.target
	scope := &reservationScope{ports: c.ports(), initiators: t.initiatorPorts, persistent: t.opts.Reservations.Store != nil}
	order, v := parseReservationOut(&c.CDB, c.Data, c.it.id(), scope)
	if v.status != Good {
		c.conclude(v)
		return
	}
	c.lu.inTurn(c, func(c *Command) { c.lu.execute(c, order) })
}

// initiatorPorts lists the initiator ports that are logged in under an iSCSI node name.
func (t *Target) initiatorPorts(node string) (ports []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.nexuses {
		if strings.HasPrefix(n.initiator, node+isidSeparator) {
			ports = append(ports, n.initiator)
		}
	}
	return ports
}

func reserve6(c *Command) { c.legacyOrder((*reservations).reserve6) }

func release6(c *Command) { c.legacyOrder((*reservations).release6) }

func (c *Command) legacyOrder(change func(*reservations, nexusID) (*reservations, verdict)) {
	if !c.lu.supports(c.row) {
		c.reject(senseInvalidOpcode)
		return
	}
	c.lu.inTurn(c, func(c *Command) {
		next, v := change(c.lu.reservations.load(), c.it.id())
		c.lu.finish(c, next, reservationEffects{}, v)
	})
}
