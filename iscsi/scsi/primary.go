package scsi

// primaryCommands are the small commands of SPC-4 that every logical unit answers.
var primaryCommands = []row{
	{
		opcode: 0x00, action: noServiceAction, name: "TEST UNIT READY",
		usage: []byte{0x00, 0, 0, 0, 0, 0x00},
		class: classAlways, run: testUnitReady,
	},
	{
		opcode: 0x03, action: noServiceAction, name: "REQUEST SENSE",
		usage: []byte{0x03, 0x01, 0, 0, 0xFF, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(cdb[4]) },
		class: classAlways, flags: passAttention | passUnready | passALUA | passReserve6 | anyLUN,
		run: requestSense,
	},
}

// testUnitReady has nothing left to do: the checks before the handler are the answer.
func testUnitReady(c *Command) { c.good() }

// requestSense reports a pending unit attention, or why the unit is not ready, as data
// (SPC-4 §6.39); for a LUN without a unit it says so, and always with GOOD.
func requestSense(c *Command) {
	s := senseNone
	switch {
	case c.lu == nil:
		s = senseUnitNotSupported
	case c.it.attentions.any():
		if a, ok := c.it.attentions.take(); ok {
			s = a.sense()
		}
	default:
		s, _ = c.lu.ready()
	}
	c.reply(s.encode(c.senseBytes[:], c.CDB[1]&1 != 0))
}
