package scsi

import "bytes"

// writeSameCommands are WRITE SAME (SBC-3 §5.42, §5.43). ANCHOR is refused: there is no anchored
// state.
var writeSameCommands = []row{
	{
		opcode: 0x41, action: noServiceAction, name: "WRITE SAME(10)",
		usage: []byte{0x41, 0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: func(*[16]byte) int { return blockSize },
		class: classWrite, flags: writes, run: writeSame,
	},
	{
		opcode: 0x93, action: noServiceAction, name: "WRITE SAME(16)",
		usage: []byte{
			0x93, 0x09, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: func(cdb *[16]byte) int { return blockSize * int(1-cdb[1]&1) },
		class: classWrite, flags: writes, run: writeSame,
	},
}

// maxWriteSameBlocks is the MAXIMUM WRITE SAME LENGTH, 16 MiB: what a command may make a slow disk
// write before the initiator's patience ends. With such a bound a count of 0, which stands for all
// blocks up to the last one, is of no use: WSNZ is 1.
const maxWriteSameBlocks = 1 << 15

func writeSame(c *Command) {
	if c.CDB[1]&0x08 != 0 && !c.lu.opts.Thin {
		c.reject(senseInvalidField.atBit(1, 3))
		return
	}
	r := c.cdbRange()
	if !c.inside(r) {
		return
	}
	switch {
	case r.count == 0, r.count > maxWriteSameBlocks:
		c.reject(senseInvalidField.at(c.countField()))
	case c.Expected != c.Length || len(c.Data) != c.Length:
		c.reject(senseInformationUnit)
	case c.writable():
		c.writeSame(r)
	}
}

func (c *Command) writeSame(r blockRange) {
	c.offset, c.left = r.offset(), r.bytes()
	switch {
	case c.CDB[1]&0x08 != 0 && allZero(c.Data):
		c.then = ended
		c.lu.backend.Unmap(c.Lane, c.offset, c.left, c.ioDone)
	case c.fillPattern():
		c.runSteps(writeSameStep)
	default:
		c.rejectStatus(Busy)
	}
}

// fillPattern repeats the block in a pool buffer; no Data-Out stands for zeroes (NDOB).
func (c *Command) fillPattern() bool {
	buf := c.borrow(0, int(min(c.left, MaxData)))
	if buf == nil {
		return false
	}
	if len(c.Data) == 0 {
		clear(buf)
		return true
	}
	for n := copy(buf, c.Data); n < len(buf); {
		n += copy(buf[n:], buf[:n])
	}
	return true
}

func writeSameStep(c *Command) bool {
	if c.left == 0 {
		return false
	}
	n := min(c.left, int64(len(c.buffers[0])))
	off := c.offset
	c.offset += n
	c.left -= n
	c.lu.backend.Write(c.Lane, c.buffers[0][:n], off, c.fua(), c.ioDone)
	return true
}

// allZero compares the bytes with their neighbours, which is as fast as bytes.Equal is.
func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
