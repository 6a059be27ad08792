package scsi

import "encoding/binary"

var logCommands = []row{{
	opcode: 0x4D, action: noServiceAction, name: "LOG SENSE",
	usage: []byte{0x4D, 0, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x00},
	dir:   DataIn, length: func(cdb *[16]byte) int { return be16(cdb[7:]) },
	class: classAlways, run: logSense,
}}

// Log pages (SPC-4 §7.3, SBC-3 §6.4).
const (
	logSupported    = 0x00
	logProvisioning = 0x0C
	allSubpages     = 0xFF
)

// logSense answers the cumulative and the threshold values alike: the parameters are states, not
// counters.
func logSense(c *Command) {
	page, sub := c.CDB[2]&0x3F, c.CDB[3]
	switch {
	case page == logSupported && sub == 0:
		c.reply(logPage(page, 0, c.logPages(false)))
	case page == logSupported && sub == allSubpages:
		c.reply(logPage(page, sub, c.logPages(true)))
	case page == logProvisioning && sub == 0 && c.lu.opts.Thin:
		c.reply(logPage(page, 0, c.lu.provisioningLog(be16(c.CDB[5:]))))
	case sub != 0 && sub != allSubpages:
		c.reject(senseInvalidField.at(3))
	default:
		c.reject(senseInvalidField.atBit(2, 5))
	}
}

// logPage puts the header before the parameters; sub is not 0 for a subpage (SPF).
func logPage(page, sub byte, body []byte) []byte {
	data := make([]byte, 4, 4+len(body))
	data[0], data[1] = page, sub
	if sub != 0 {
		data[0] |= 0x40
	}
	binary.BigEndian.PutUint16(data[2:], uint16(len(body)))
	return append(data, body...)
}

func (c *Command) logPages(subpages bool) []byte {
	list := []byte{logSupported}
	if subpages {
		list = []byte{logSupported, 0, logSupported, allSubpages}
	}
	if c.lu.opts.Thin {
		list = append(list, logProvisioning)
		if subpages {
			list = append(list, 0)
		}
	}
	return list
}

// Parameters of the Logical Block Provisioning log page (SBC-3 §6.4.5).
const (
	logAvailable = 0x0001
	logUsed      = 0x0002
)

// provisioningLog tells the space that the unit's volume has left and what the unit occupies, in
// threshold sets, from parameter first on.
func (lu *LogicalUnit) provisioningLog(first int) []byte {
	used, free := lu.backend.Space()
	var body []byte
	if first <= logAvailable {
		body = provisioningParameter(body, logAvailable, free, 2) // shared with other units
	}
	if first <= logUsed {
		body = provisioningParameter(body, logUsed, used, 1) // this unit's own
	}
	return body
}

func provisioningParameter(body []byte, code uint16, size int64, scope byte) []byte {
	var p [12]byte
	binary.BigEndian.PutUint16(p[0:], code)
	p[2], p[3] = 0x03, 8 // a binary list
	sets := max(size, 0) / (blockSize << thresholdExponent)
	binary.BigEndian.PutUint32(p[4:], uint32(min(sets, 0xFFFFFFFF)))
	p[8] = scope
	return append(body, p[:]...)
}
