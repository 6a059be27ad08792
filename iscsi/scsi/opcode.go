package scsi

import (
	"encoding/binary"
	"fmt"
)

// handler executes a command that passed the checks of Execute; it ends, now or later, in
// complete, good, reply or reject.
type handler func(c *Command)

// lengthFunc tells the bytes that a CDB asks to move, from the CDB's own fields; the unit is the
// logical block length for media commands. -1: more than the device server takes.
type lengthFunc func(cdb *[16]byte) int

// noServiceAction marks a row whose opcode has no service actions.
const noServiceAction = -1

// reservationClass tells when a reservation held by another I_T nexus refuses a command
// (SPC-4 §5.13, tables of the allowed commands).
type reservationClass uint8

const (
	classAlways reservationClass = iota // allowed whatever the reservation
	classRead                           // refused by Exclusive Access kinds, allowed by Write Exclusive kinds
	classWrite                          // refused by every kind
	classOwn                            // the handler checks for itself (PERSISTENT RESERVE, RESERVE, RELEASE)
)

// flags of a row.
type rowFlag uint8

const (
	// passAttention: a pending unit attention does not stop the command (SAM-5 §5.14).
	passAttention rowFlag = 1 << iota
	// passUnready: allowed while the unit is stopped or not ready otherwise.
	passUnready
	// passALUA: allowed in the standby and unavailable states (SPC-4 §5.16.2).
	passALUA
	// anyLUN: answered for a LUN without a logical unit too; the handler finds c.lu nil.
	anyLUN
	// writes: refused with DATA PROTECT on a write-protected unit; its EIO is a write error.
	writes
	// passReserve6: allowed by another I_T nexus's RESERVE(6) reservation (SPC-2 §5.5.1).
	passReserve6
)

// row is one supported command. usage is the CDB usage data of REPORT SUPPORTED OPERATION CODES:
// the opcode, then a mask of the bits that the device server evaluates; a CDB that sets any other
// bit is refused with INVALID FIELD IN CDB.
type row struct {
	opcode byte
	action int // service action, or noServiceAction
	name   string
	usage  []byte
	dir    Direction
	length lengthFunc // nil: no data
	class  reservationClass
	flags  rowFlag
	run    handler

	refused [2]uint64 // complement of usage, made by newTable
}

func (r *row) has(f rowFlag) bool { return r.flags&f != 0 }

// table finds a row by opcode and service action in two steps.
type table struct {
	plain   [256]*row
	actions [256]*[32]*row
	rows    []*row
}

// commands is the one opcode table; each file of commands contributes its rows.
var commands *table

func init() {
	commands = newTable(
		primaryCommands,
		inquiryCommands,
		reportCommands,
		modeCommands,
		logCommands,
		readCommands,
		writeCommands,
		verifyCommands,
		compareCommands,
		writeSameCommands,
		provisioningCommands,
		cacheCommands,
		capacityCommands,
		startStopCommands,
		diagnosticCommands,
		reservationCommands,
		aluaCommands,
		xcopyCommands,
	)
}

func newTable(groups ...[]row) *table {
	t := &table{}
	for _, group := range groups {
		for i := range group {
			t.add(&group[i])
		}
	}
	return t
}

func (t *table) add(r *row) {
	if len(r.usage) != cdbLength(r.opcode) || r.usage[0] != r.opcode || r.run == nil || t.lookup(r.opcode, r.action) != nil {
		panic(fmt.Sprintf("scsi: bad row %s in the opcode table", r.name))
	}
	var mask [16]byte
	copy(mask[:], r.usage)
	mask[0] = 0xFF
	if r.action != noServiceAction && r.usage[1]&0x1F == byte(r.action) {
		mask[1] |= 0x1F
	}
	for i := len(r.usage); i < len(mask); i++ {
		mask[i] = 0xFF
	}
	r.refused[0] = ^binary.BigEndian.Uint64(mask[0:])
	r.refused[1] = ^binary.BigEndian.Uint64(mask[8:])
	t.rows = append(t.rows, r)
	if r.action == noServiceAction {
		t.plain[r.opcode] = r
		return
	}
	if t.actions[r.opcode] == nil {
		t.actions[r.opcode] = new([32]*row)
	}
	t.actions[r.opcode][r.action] = r
}

func (t *table) lookup(opcode byte, action int) *row {
	if r := t.plain[opcode]; r != nil || t.actions[opcode] == nil {
		return r
	}
	if action < 0 || action > 31 {
		return nil
	}
	return t.actions[opcode][action]
}

// find is lookup by CDB; known tells that the opcode is supported, if not this service action.
func (t *table) find(cdb *[16]byte) (r *row, known bool) {
	r = t.lookup(cdb[0], int(cdb[1]&0x1F))
	return r, r != nil || t.actions[cdb[0]] != nil
}

// reservedBit finds the first bit in cdb that the row does not allow.
func (r *row) reservedBit(cdb *[16]byte) (field, bit int, found bool) {
	if binary.BigEndian.Uint64(cdb[0:])&r.refused[0] == 0 && binary.BigEndian.Uint64(cdb[8:])&r.refused[1] == 0 {
		return 0, 0, false
	}
	for i := range cdb {
		bad := cdb[i] & byte(r.refused[i/8]>>(56-8*(i%8)))
		for b := 7; bad != 0 && b >= 0; b-- {
			if bad&(1<<b) != 0 {
				return i, b, true
			}
		}
	}
	return 0, 0, false
}

// Decode sets Direction and Length from the CDB. A CDB that the table does not know moves no data;
// Execute refuses it.
func (t *Target) Decode(c *Command) {
	c.begin(t)
	c.Direction, c.Length = NoData, 0
	if c.row == nil || c.row.length == nil {
		return
	}
	c.Direction = c.row.dir
	n := c.row.length(&c.CDB)
	switch {
	case n < 0:
		c.oversize = true
	case c.Direction == DataOut && n > MaxData:
		c.oversize = true
	default:
		c.Length = min(n, MaxData)
	}
}
