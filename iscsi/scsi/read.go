package scsi

// readCommands are READ and PRE-FETCH (SBC-3 §5.10 to §5.18). DPO is a hint that is not needed;
// FUA is met because no volatile cache stands between the unit and its volume. RDPROTECT is
// refused: there is no protection information.
var readCommands = []row{
	{
		opcode: 0x08, action: noServiceAction, name: "READ(6)",
		usage: []byte{0x08, 0x1F, 0xFF, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: blocks6, class: classRead, run: read,
	},
	{
		opcode: 0x28, action: noServiceAction, name: "READ(10)",
		usage: []byte{0x28, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: blocks10, class: classRead, run: read,
	},
	{
		opcode: 0xA8, action: noServiceAction, name: "READ(12)",
		usage: []byte{0xA8, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00},
		dir:   DataIn, length: blocks12, class: classRead, run: read,
	},
	{
		opcode: 0x88, action: noServiceAction, name: "READ(16)",
		usage: []byte{
			0x88, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataIn, length: blocks16, class: classRead, run: read,
	},
	{
		opcode: 0x34, action: noServiceAction, name: "PRE-FETCH(10)",
		usage: []byte{0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		class: classRead, run: prefetch,
	},
	{
		opcode: 0x90, action: noServiceAction, name: "PRE-FETCH(16)",
		usage: []byte{
			0x90, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		class: classRead, run: prefetch,
	},
}

// read is READ: one backend call into the transport's buffer. An initiator that expects less than
// the CDB says gets the leading bytes; what is not a whole block goes through a pool buffer.
func read(c *Command) {
	r, ok := c.media()
	if !ok {
		return
	}
	whole := len(c.Data) &^ (blockSize - 1)
	switch {
	case len(c.Data) == 0:
		c.good()
	case whole != len(c.Data):
		readPart(c, r)
	default:
		c.then = readDone
		c.lu.backend.Read(c.Lane, c.Data, r.offset(), c.ioDone)
	}
}

func readDone(c *Command, err error) {
	if err != nil {
		c.rejectError(err)
		return
	}
	c.Count = len(c.Data)
	c.complete()
}

// readPart reads whole blocks aside and hands out their beginning.
func readPart(c *Command, r blockRange) {
	n := (len(c.Data) + blockSize - 1) &^ (blockSize - 1)
	buf := c.borrow(0, n)
	if buf == nil {
		c.rejectStatus(Busy)
		return
	}
	c.then = readPartDone
	c.lu.backend.Read(c.Lane, buf, r.offset(), c.ioDone)
}

func readPartDone(c *Command, err error) {
	if err == nil {
		copy(c.Data, c.buffers[0])
	}
	readDone(c, err)
}

// prefetch checks the range and says GOOD: nothing here caches more than the volume does. CONDITION
// MET would claim that the blocks are cached.
func prefetch(c *Command) {
	r := c.cdbRange()
	if c.inside(r) {
		c.good()
	}
}
