package scsi

import "encoding/binary"

var inquiryCommands = []row{{
	opcode: 0x12, action: noServiceAction, name: "INQUIRY",
	usage: []byte{0x12, 0x01, 0xFF, 0xFF, 0xFF, 0x00},
	dir:   DataIn, length: func(cdb *[16]byte) int { return be16(cdb[3:]) },
	class: classAlways, flags: passAttention | passUnready | passALUA | passReserve6 | anyLUN,
	run: inquiry,
}}

// Peripheral qualifier and device type (SPC-4 §6.6.2).
const (
	deviceDisk      = 0x00
	deviceWellKnown = 0x1E
	deviceNone      = 0x7F // qualifier 3: the LUN has no logical unit
)

// versionDescriptors are what the unit claims to conform to: SAM-5, SPC-4, SBC-3, iSCSI.
var versionDescriptors = [...]uint16{0x00A0, 0x0460, 0x04C0, 0x0960}

func inquiry(c *Command) {
	switch {
	case c.CDB[1]&1 != 0:
		inquiryPage(c)
	case c.CDB[2] != 0:
		c.reject(senseInvalidField.at(2))
	default:
		c.reply(c.standardInquiry())
	}
}

// peripheral is the first byte of all INQUIRY data.
func (c *Command) peripheral() byte {
	switch {
	case c.lu != nil:
		return deviceDisk
	case c.LUN == reportLUNsWellKnown:
		return deviceWellKnown
	}
	return deviceNone
}

// standardInquiry is the standard INQUIRY data of SPC-4 §6.6.2.
func (c *Command) standardInquiry() []byte {
	data := make([]byte, 74)
	data[0] = c.peripheral()
	data[2] = 6           // SPC-4
	data[3] = 0x10 | 0x02 // HISUP, response data format
	data[4] = byte(len(data) - 5)
	data[7] = 0x02 // CMDQUE
	o := UnitOptions{}
	if c.lu != nil {
		o = c.lu.opts
		data[5] = c.supportFlags()
		data[6] = 0x10 // MULTIP
		if o.Removable {
			data[1] = 0x80
		}
	}
	o.setDefaults()
	pad(data[8:16], o.Vendor)
	pad(data[16:32], o.Product)
	pad(data[32:36], o.Revision)
	for i, v := range versionDescriptors {
		binary.BigEndian.PutUint16(data[58+2*i:], v)
	}
	return data
}

// pad fills a left-aligned ASCII field.
func pad(field []byte, s string) {
	for i := copy(field, s); i < len(field); i++ {
		field[i] = ' '
	}
}

// supportFlags are TPGS and 3PC, from what the opcode table has.
func (c *Command) supportFlags() (flags byte) {
	if c.inPortGroup() {
		flags |= 0x30 // implicit and explicit asymmetric access
	}
	if commands.actions[0x83] != nil {
		flags |= 0x08 // EXTENDED COPY
	}
	return flags
}

// inPortGroup tells whether the command's port is in a target port group, as it is by default.
func (c *Command) inPortGroup() bool {
	if c.lu == nil {
		return true
	}
	_, ok := c.lu.targetPortGroup(c.Nexus.port)
	return ok
}
