package scsi

import "encoding/binary"

// capacityCommands are READ CAPACITY (SBC-3 §5.15, §5.16) and READ DEFECT DATA (§5.17, §5.18).
var capacityCommands = []row{
	{
		opcode: 0x25, action: noServiceAction, name: "READ CAPACITY(10)",
		usage: []byte{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0x00},
		dir:   DataIn, length: func(*[16]byte) int { return 8 },
		class: classAlways, run: readCapacity10,
	},
	{
		opcode: 0x9E, action: 0x10, name: "READ CAPACITY(16)",
		usage: []byte{0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[10:])) },
		class: classAlways, run: readCapacity16,
	},
	{
		opcode: 0x37, action: noServiceAction, name: "READ DEFECT DATA(10)",
		usage: []byte{0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return be16(cdb[7:]) },
		class: classRead, run: readDefectData10,
	},
	{
		opcode: 0xB7, action: noServiceAction, name: "READ DEFECT DATA(12)",
		usage: []byte{0xB7, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[6:])) },
		class: classRead, run: readDefectData12,
	},
}

func readCapacity10(c *Command) {
	var data [8]byte
	last := c.lu.blocks() - 1
	binary.BigEndian.PutUint32(data[0:], uint32(min(last, 0xFFFFFFFF)))
	binary.BigEndian.PutUint32(data[4:], blockSize)
	c.reply(data[:])
}

func readCapacity16(c *Command) {
	var data [32]byte
	binary.BigEndian.PutUint64(data[0:], c.lu.blocks()-1)
	binary.BigEndian.PutUint32(data[8:], blockSize)
	data[13] = c.lu.opts.physicalExponent()
	if c.lu.opts.Thin {
		data[14] = 0xC0 // LBPME, LBPRZ
	}
	c.reply(data[:])
}

// The defect lists are empty: a virtual disk has no defects of its own. The format asked for is
// answered.
func readDefectData10(c *Command) {
	c.reply([]byte{0, c.CDB[2] & 0x1F, 0, 0})
}

func readDefectData12(c *Command) {
	c.reply([]byte{0, c.CDB[1] & 0x1F, 0, 0, 0, 0, 0, 0})
}
