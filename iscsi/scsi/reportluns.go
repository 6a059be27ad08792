package scsi

import "encoding/binary"

// reportCommands are REPORT LUNS and the reports about the device server itself.
var reportCommands = []row{
	{
		opcode: 0xA0, action: noServiceAction, name: "REPORT LUNS",
		usage: []byte{0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[6:])) },
		class: classAlways, flags: passAttention | passUnready | passALUA | passReserve6 | anyLUN,
		run: reportLUNs,
	},
	{
		opcode: 0xA3, action: 0x0C, name: "REPORT SUPPORTED OPERATION CODES",
		usage: []byte{0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[6:])) },
		class: classRead, flags: passUnready, run: reportOpcodes,
	},
	{
		opcode: 0xA3, action: 0x0D, name: "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
		usage: []byte{0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[6:])) },
		class: classRead, flags: passUnready, run: reportTaskManagement,
	},
	{
		opcode: 0xA3, action: 0x05, name: "REPORT IDENTIFYING INFORMATION",
		usage: []byte{0xA3, 0x05, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[6:])) },
		class: classAlways, run: reportIdentifying,
	},
}

// Values of SELECT REPORT (SPC-4 §6.33).
const (
	selectUnits     = 0x00
	selectWellKnown = 0x01
	selectAll       = 0x02
)

// reportLUNs lists the target's LUNs, whichever LUN was asked, and clears REPORTED LUNS DATA HAS
// CHANGED for all of them.
func reportLUNs(c *Command) {
	choice := c.CDB[2]
	if choice > selectAll {
		c.reject(senseInvalidField.at(2))
		return
	}
	data := make([]byte, 8)
	if choice != selectUnits {
		data = binary.BigEndian.AppendUint64(data, reportLUNsWellKnown)
	}
	if choice != selectWellKnown {
		for _, lun := range c.target.luns.Load().luns {
			data = binary.BigEndian.AppendUint64(data, EncodeLUN(lun))
		}
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-8))
	for _, it := range c.Nexus.itls {
		if it != nil {
			it.attentions.clear(attnLUNsChanged)
		}
	}
	c.reply(data)
}

// reportTaskManagement names the functions of taskmgmt.go (SPC-4 §6.36); with REPD, no timeouts.
func reportTaskManagement(c *Command) {
	// ATS, ATSS, CTSS, LURS, TRS; I_TNRS and the QUERY functions are not supported.
	short := []byte{0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0, 0}
	if c.CDB[2]&0x80 == 0 {
		c.reply(short)
		return
	}
	extended := make([]byte, 16)
	copy(extended, short)
	extended[3] = 12
	c.reply(extended)
}

// reportIdentifying says that no identifying information was set (SPC-4 §6.32).
func reportIdentifying(c *Command) {
	switch c.CDB[10] >> 1 {
	case 0:
		c.reply(make([]byte, 4))
	case 0x7F: // supported information types: type 0, none longer than 0 bytes
		c.reply(make([]byte, 4))
	default:
		c.reject(senseInvalidField.at(10))
	}
}
