package scsi

import "encoding/binary"

// REPORTING OPTIONS of REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
const (
	reportAll        = 0
	reportOpcode     = 1 // an opcode without service actions
	reportAction     = 2 // an opcode with a service action
	reportEither     = 3
	opcodeSupported  = 3 // SUPPORT: as a standard says
	opcodeNone       = 1
	timeoutsLength   = 12
	timeoutsContents = 0x0A
)

func reportOpcodes(c *Command) {
	timeouts := c.CDB[2]&0x80 != 0
	switch c.CDB[2] & 7 {
	case reportAll:
		c.reply(c.allOpcodes(timeouts))
	case reportOpcode, reportAction, reportEither:
		c.oneOpcode(timeouts)
	default:
		c.reject(senseInvalidField.atBit(2, 2))
	}
}

// supports tells whether the unit has the command: UNMAP is there on thin units only, RESERVE(6) and
// RELEASE(6) on those of one server.
func (lu *LogicalUnit) supports(r *row) bool {
	switch {
	case r == nil:
		return false
	case r.opcode == 0x42:
		return lu.opts.Thin
	case r.opcode == opReserve6 || r.opcode == opRelease6:
		return !lu.opts.Shared
	}
	return true
}

func (c *Command) allOpcodes(timeouts bool) []byte {
	data := []byte{0, 0, 0, 0}
	for _, r := range commands.rows {
		if !c.lu.supports(r) {
			continue
		}
		data = r.appendDescriptor(data, timeouts)
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-4))
	return data
}

// appendDescriptor adds the row's command descriptor of the all-commands format.
func (r *row) appendDescriptor(data []byte, timeouts bool) []byte {
	var d [8]byte
	d[0], d[7] = r.opcode, byte(cdbLength(r.opcode))
	if r.action != noServiceAction {
		d[3] = byte(r.action)
		d[5] |= 0x01 // SERVACTV
	}
	if !timeouts {
		return append(data, d[:]...)
	}
	d[5] |= 0x02 // CTDP
	return appendTimeouts(append(data, d[:]...))
}

// appendTimeouts adds a command timeouts descriptor that names no timeout.
func appendTimeouts(p []byte) []byte {
	var d [timeoutsLength]byte
	d[1] = timeoutsContents
	return append(p, d[:]...)
}

func (c *Command) oneOpcode(timeouts bool) {
	option, opcode, action := c.CDB[2]&7, c.CDB[3], be16(c.CDB[4:])
	hasActions := commands.actions[opcode] != nil
	if option == reportOpcode && hasActions || option == reportAction && !hasActions && commands.plain[opcode] != nil {
		c.reject(senseInvalidField.atBit(2, 2))
		return
	}
	r := commands.lookup(opcode, action)
	if option == reportEither && !hasActions && action != 0 {
		r = nil
	}
	if !c.lu.supports(r) {
		c.reply([]byte{0, opcodeNone, 0, 0})
		return
	}
	data := append([]byte{0, opcodeSupported, 0, byte(len(r.usage))}, r.usage...)
	if timeouts {
		data[1] |= 0x80 // CTDP
		data = appendTimeouts(data)
	}
	c.reply(data)
}
