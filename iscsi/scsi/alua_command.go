package scsi

import (
	"encoding/binary"
	"slices"
)

const (
	opMaintenanceIn                   = 0xA3
	actionReportTargetPortGroups      = 0x0A
	opMaintenanceOut                  = 0xA4
	actionSetTargetPortGroups         = 0x0A
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
}, {
	opcode: opMaintenanceOut, action: actionSetTargetPortGroups, name: "SET TARGET PORT GROUPS",
	usage: []byte{opMaintenanceOut, actionSetTargetPortGroups, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
	dir:   DataOut, length: func(cdb *[16]byte) int { return int(min(be32(cdb[6:]), MaxData)) },
	class: classWrite, flags: passALUA | passUnready,
	run: setTargetPortGroups,
}}

// The parameter list of SET TARGET PORT GROUPS.
const (
	setGroupsHeader     = 4
	setGroupsDescriptor = 4
)

// setTargetPortGroups is SPC-4 §6.45. A group's state follows from whether its node reaches the disk, so
// the only explicit transition is to active/optimized: it asks for what each node tries all the time, and
// REPORT TARGET PORT GROUPS tells whether it is so. The state that a group has may be set, too.
func setTargetPortGroups(c *Command) {
	length := int(be32(c.CDB[6:]))
	switch {
	case length == 0:
		c.good()
		return
	case length > len(c.Data) || length < setGroupsHeader || (length-setGroupsHeader)%setGroupsDescriptor != 0:
		c.reject(senseParameterLength)
		return
	}
	groups := c.portGroups()
	for at := setGroupsHeader; at < length; at += setGroupsDescriptor {
		if s, ok := settable(groups, c.Data[at:], at); !ok {
			c.reject(s)
			return
		}
	}
	c.good()
}

// settable checks the descriptor that begins at the offset at of the parameter list.
func settable(groups []PortGroup, descriptor []byte, at int) (sense, bool) {
	id, state := binary.BigEndian.Uint16(descriptor[2:]), AccessState(descriptor[0]&0x0F)
	i := slices.IndexFunc(groups, func(g PortGroup) bool { return g.ID == id })
	switch {
	case i < 0:
		return senseInvalidParameter.inList(at + 2), false
	case state != ActiveOptimized && state != groups[i].State:
		return senseInvalidParameter.inListBit(at, 3), false
	}
	return senseNone, true
}

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
