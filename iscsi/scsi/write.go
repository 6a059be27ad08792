package scsi

// writeCommands are WRITE and WRITE AND VERIFY (SBC-3 §5.32 to §5.41).
var writeCommands = []row{
	{
		opcode: 0x0A, action: noServiceAction, name: "WRITE(6)",
		usage: []byte{0x0A, 0x1F, 0xFF, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: blocks6, class: classWrite, flags: writes, run: write,
	},
	{
		opcode: 0x2A, action: noServiceAction, name: "WRITE(10)",
		usage: []byte{0x2A, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: blocks10, class: classWrite, flags: writes, run: write,
	},
	{
		opcode: 0xAA, action: noServiceAction, name: "WRITE(12)",
		usage: []byte{0xAA, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00},
		dir:   DataOut, length: blocks12, class: classWrite, flags: writes, run: write,
	},
	{
		opcode: 0x8A, action: noServiceAction, name: "WRITE(16)",
		usage: []byte{
			0x8A, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: blocks16, class: classWrite, flags: writes, run: write,
	},
	{
		opcode: 0x2E, action: noServiceAction, name: "WRITE AND VERIFY(10)",
		usage: []byte{0x2E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: blocks10, class: classWrite, flags: writes, run: writeVerify,
	},
	{
		opcode: 0xAE, action: noServiceAction, name: "WRITE AND VERIFY(12)",
		usage: []byte{0xAE, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00},
		dir:   DataOut, length: blocks12, class: classWrite, flags: writes, run: writeVerify,
	},
	{
		opcode: 0x8E, action: noServiceAction, name: "WRITE AND VERIFY(16)",
		usage: []byte{
			0x8E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: blocks16, class: classWrite, flags: writes, run: writeVerify,
	},
}

// write is WRITE: one backend call from the transport's buffer.
func write(c *Command) {
	r, ok := c.media()
	if !ok || !c.wholeBlocks() {
		return
	}
	if len(c.Data) == 0 {
		c.good()
		return
	}
	c.then = ended
	c.lu.backend.Write(c.Lane, c.Data, r.offset(), c.fua(), c.ioDone)
}

// wholeBlocks checks that the initiator sent whole blocks; it rejects the command if not. Fewer
// than the CDB says are written as far as they go, as FCP-4 §9.4.2 and RFC 7143 §11.4.5.1 allow.
func (c *Command) wholeBlocks() bool {
	if len(c.Data)%blockSize == 0 {
		return true
	}
	c.reject(senseInformationUnit)
	return false
}

// ended completes a command whose only backend call is done.
func ended(c *Command, err error) {
	if err != nil {
		c.rejectError(err)
		return
	}
	c.complete()
}

// writeVerify writes durably, then reads the blocks back and, with BYTCHK 1, compares them.
func writeVerify(c *Command) {
	r, ok := c.media()
	if !ok || !c.wholeBlocks() {
		return
	}
	if len(c.Data) == 0 {
		c.good()
		return
	}
	c.offset, c.left = r.offset(), int64(len(c.Data))
	c.then = writtenVerify
	c.lu.backend.Write(c.Lane, c.Data, r.offset(), true, c.ioDone)
}

func writtenVerify(c *Command, err error) {
	if err != nil {
		c.rejectError(err)
		return
	}
	c.verify(int64(len(c.Data)) * int64(c.CDB[1]>>1&1))
}
