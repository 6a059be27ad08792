package scsi

import "encoding/binary"

const (
	opMaintenanceIn                   = 0xA3
	actionReportTargetPortGroups      = 0x0A
	implicitTransitionSeconds         = 60
	supportedAccessStates             = 0x80 | 0x0F // T_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP
	statusImplicit                    = 0x02        // the state was changed by the target
	extendedHeader               byte = 1
)

var aluaCommands = []row{{
	opcode: opMaintenanceIn, action: actionReportTargetPortGroups, name: "REPORT TARGET PORT GROUPS",
	usage: []byte{opMaintenanceIn, 0xE0 | actionReportTargetPortGroups, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
	dir:   DataIn, length: func(cdb *[16]byte) int { return int(min(be32(cdb[6:]), MaxData)) },
	class: classAlways, flags: passALUA | passUnready | passReserve6,
	run: reportTargetPortGroups,
}}

// reportTargetPortGroups is SPC-4 §6.36, with either header.
func reportTargetPortGroups(c *Command) {
	format := c.CDB[1] >> 5
	if format > extendedHeader {
		c.reject(senseInvalidField.atBit(1, 7))
		return
	}
	c.reply(encodePortGroups(c.portGroups(), format == extendedHeader))
}

func encodePortGroups(groups []PortGroup, extended bool) []byte {
	p := make([]byte, 4, 64)
	if extended {
		p = append(p, extendedHeader<<4, implicitTransitionSeconds, 0, 0)
	}
	for _, g := range groups {
		p = g.encode(p)
	}
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return p
}

func (g PortGroup) encode(p []byte) []byte {
	state := byte(g.State)
	if g.Preferred {
		state |= 0x80
	}
	p = append(p, state, supportedAccessStates, byte(g.ID>>8), byte(g.ID), 0, statusImplicit, 0, byte(len(g.Ports)))
	for _, port := range g.Ports {
		p = append(p, 0, 0, byte(port>>8), byte(port))
	}
	return p
}
