package scsi

import "encoding/binary"

// Execute performs the command that Decode prepared. Done is called once, now or later, on the
// command's lane.
func (t *Target) Execute(c *Command) {
	if !t.locate(c) {
		return
	}
	if c.it != nil {
		c.it.insert(c)
		c.state = taskEnabled
		if !c.it.mayStart(c) {
			c.state = taskDormant
			return
		}
	}
	c.start()
}

// locate finds the logical unit; a command for a LUN that has none ends here unless its row
// answers for any LUN.
func (t *Target) locate(c *Command) bool {
	lun, ok := decodeLUN(c.LUN)
	if ok {
		if m := t.luns.Load().get(lun); m != nil {
			c.lu, c.it = m.lu, c.Nexus.reach(m, c.Lane)
			return true
		}
	}
	if c.row != nil && c.row.has(anyLUN) {
		return true
	}
	c.reject(senseUnitNotSupported)
	return false
}

// mayStart tells whether c, which is in the task set, is to be enabled (SAM-5 §8.7).
func (it *itl) mayStart(c *Command) bool {
	if it.ordered == 0 || c.Attr == HeadOfQueue {
		return true
	}
	if c.Attr == Ordered {
		return it.head == c
	}
	for older := c.prev; older != nil; older = older.prev {
		if older.Attr == Ordered {
			return false
		}
	}
	return true
}

// dispatch enables the dormant tasks whose turn has come. A task that completes at once calls it
// again; only the outermost call works.
func (it *itl) dispatch() {
	if it.dispatching {
		return
	}
	it.dispatching = true
	for c := it.nextDormant(); c != nil; c = it.nextDormant() {
		c.state = taskEnabled
		c.start()
	}
	it.dispatching = false
}

func (it *itl) nextDormant() *Command {
	for c := it.head; c != nil; c = c.next {
		if c.state == taskDormant && it.mayStart(c) {
			return c
		}
	}
	return nil
}

// start does the checks that come before any command and calls the handler.
func (c *Command) start() {
	if c.aborted {
		c.complete()
		return
	}
	if c.it != nil && c.it.attentions.any() && (c.row == nil || !c.row.has(passAttention)) {
		if a, ok := c.it.attentions.take(); ok {
			c.reject(a.sense())
			return
		}
	}
	if c.row == nil {
		c.rejectUnknown()
		return
	}
	if c.lu != nil && !c.admitted() {
		return
	}
	if !c.wellFormed() {
		return
	}
	c.row.run(c)
}

// rejectUnknown refuses a CDB that has no row: INVALID COMMAND OPERATION CODE, or INVALID FIELD IN
// CDB at the service action.
func (c *Command) rejectUnknown() {
	if _, known := commands.find(&c.CDB); known {
		c.reject(senseInvalidField.atBit(1, 4))
		return
	}
	c.reject(senseInvalidOpcode)
}

// admitted checks the unit's state: ALUA, reservations, power. It completes the command
// if it returns false.
func (c *Command) admitted() bool {
	r := c.row
	if s, ok := c.checkALUA(); !ok {
		c.reject(s)
		return false
	}
	if c.lu.reservations.conflicts(c) {
		c.rejectStatus(ReservationConflict)
		return false
	}
	if !r.has(passUnready) {
		if s, ok := c.lu.ready(); !ok {
			c.reject(s)
			return false
		}
	}
	return true
}

// wellFormed checks the CDB against the row and the unit's write protection. It completes the
// command if it returns false.
func (c *Command) wellFormed() bool {
	if field, bit, found := c.row.reservedBit(&c.CDB); found {
		c.reject(senseInvalidField.atBit(field, bit))
		return false
	}
	if c.Attr == ACA {
		c.reject(senseInvalidField.at(controlByte(&c.CDB)))
		return false
	}
	return true
}

// controlByte is where the CONTROL byte stands in a CDB, by its group code (SPC-4 §4.3.2).
func controlByte(cdb *[16]byte) int { return cdbLength(cdb[0]) - 1 }

// cdbLength is the length of a CDB by its group code.
func cdbLength(opcode byte) int {
	switch opcode >> 5 {
	case 0:
		return 6
	case 4:
		return 16
	case 5:
		return 12
	}
	return 10
}

// Fields of CDBs and parameter lists are big endian.
func be16(p []byte) int    { return int(binary.BigEndian.Uint16(p)) }
func be24(p []byte) int    { return int(p[0])<<16 | int(p[1])<<8 | int(p[2]) }
func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }
func be64(p []byte) uint64 { return binary.BigEndian.Uint64(p) }
