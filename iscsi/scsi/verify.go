package scsi

// verifyCommands are VERIFY (SBC-3 §5.29 to §5.31).
var verifyCommands = []row{
	{
		opcode: 0x2F, action: noServiceAction, name: "VERIFY(10)",
		usage: []byte{0x2F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return verifyBytes(cdb, range10(cdb)) },
		class: classRead, run: verify,
	},
	{
		opcode: 0xAF, action: noServiceAction, name: "VERIFY(12)",
		usage: []byte{0xAF, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return verifyBytes(cdb, range12(cdb)) },
		class: classRead, run: verify,
	},
	{
		opcode: 0x8F, action: noServiceAction, name: "VERIFY(16)",
		usage: []byte{
			0x8F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: func(cdb *[16]byte) int { return verifyBytes(cdb, range16(cdb)) },
		class: classRead, run: verify,
	},
}

// The values of BYTCHK (SBC-3 §5.29).
const (
	checkMedium  = 0 // read the blocks, compare nothing
	checkBlocks  = 1 // compare each block with the Data-Out
	checkPattern = 3 // compare every block with the one block of the Data-Out
)

func byteCheck(cdb *[16]byte) byte { return cdb[1] >> 1 & 3 }

func verifyBytes(cdb *[16]byte, r blockRange) int {
	switch byteCheck(cdb) {
	case checkBlocks:
		return transferBytes(r)
	case checkPattern:
		return blockSize * int(min(r.count, 1))
	}
	return 0
}

func verify(c *Command) {
	check := byteCheck(&c.CDB)
	if check == 2 {
		c.reject(senseInvalidField.atBit(1, 2))
		return
	}
	r, ok := c.media()
	if !ok || !c.wholeBlocks() {
		return
	}
	c.offset, c.left = r.offset(), r.bytes()
	switch check {
	case checkMedium:
		c.verify(0)
	case checkBlocks:
		c.left = int64(len(c.Data))
		c.verify(c.left)
	case checkPattern:
		c.left = min(c.left, c.left*int64(len(c.Data))) // nothing sent: nothing to compare
		c.verify(int64(len(c.Data)))
	}
}

// verify reads the range offset, left in bounded steps and compares it with the first compare
// bytes of Data, repeated; 0 compares nothing.
func (c *Command) verify(compare int64) {
	if c.left == 0 {
		c.good()
		return
	}
	if c.borrow(0, int(min(c.left, MaxData))) == nil {
		c.rejectStatus(Busy)
		return
	}
	c.Data = c.Data[:compare]
	c.runSteps(verifyStep)
}

func verifyStep(c *Command) bool {
	if c.chunk > 0 && !c.verifyChunk() {
		return false
	}
	if c.left == 0 {
		return false
	}
	c.chunk = int(min(c.left, int64(len(c.buffers[0]))))
	c.lu.backend.Read(c.Lane, c.buffers[0][:c.chunk], c.offset, c.ioDone)
	return true
}

// verifyChunk compares what the last step read and moves on.
func (c *Command) verifyChunk() bool {
	if i := c.firstDifference(c.buffers[0][:c.chunk]); i >= 0 {
		c.fail(senseMiscompare.with(uint64(c.offset+int64(i)) / blockSize))
		return false
	}
	c.offset += int64(c.chunk)
	c.left -= int64(c.chunk)
	c.chunk = 0
	return true
}

// firstDifference compares got with Data from cursor on, Data repeating; -1: equal.
func (c *Command) firstDifference(got []byte) int {
	if len(c.Data) == 0 {
		return -1
	}
	for done := 0; done < len(got); {
		want := c.Data[c.cursor:min(len(c.Data), c.cursor+len(got)-done)]
		if i := mismatch(got[done:done+len(want)], want); i >= 0 {
			return done + i
		}
		done += len(want)
		c.cursor = (c.cursor + len(want)) % len(c.Data)
	}
	return -1
}
