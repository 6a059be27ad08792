package scsi

import (
	"bytes"
	"encoding/binary"
)

// compareCommands are the read-modify-write commands: COMPARE AND WRITE (SBC-3 §5.3) and ORWRITE
// (§5.9). Both are atomic against every other command by Backend.CompareAndWrite.
var compareCommands = []row{
	{
		opcode: 0x89, action: noServiceAction, name: "COMPARE AND WRITE",
		usage: []byte{
			0x89, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0, 0, 0, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: func(cdb *[16]byte) int { return 2 * int(rangeCompare(cdb).bytes()) },
		class: classWrite, flags: writes, run: compareAndWrite,
	},
	{
		opcode: 0x8B, action: noServiceAction, name: "ORWRITE(16)",
		usage: []byte{
			0x8B, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x00,
		},
		dir: DataOut, length: blocks16, class: classWrite, flags: writes, run: orWrite,
	},
}

// maxCompareBlocks is the MAXIMUM COMPARE AND WRITE LENGTH: all that the CDB can say.
const maxCompareBlocks = 255

// mismatch is the index of the first byte in which a and b, of one length, differ; -1: equal.
func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func compareAndWrite(c *Command) {
	r := rangeCompare(&c.CDB)
	if !c.inside(r) || !c.writable() {
		return
	}
	if c.Expected != c.Length || len(c.Data) != c.Length {
		c.reject(senseInvalidField.at(13)) // not the data of so many blocks
		return
	}
	if r.count == 0 {
		c.good()
		return
	}
	n := int(r.bytes())
	c.then = compared
	c.lu.backend.CompareAndWrite(c.Lane, c.Data[:n], c.Data[n:], r.offset(), c.fua(), c.comparedDone)
}

// compared reports a difference by its byte offset in the Data-Out.
func compared(c *Command, err error) {
	if err == nil && c.mismatch >= 0 {
		c.reject(senseMiscompare.with(uint64(c.mismatch)))
		return
	}
	ended(c, err)
}

// maxORWriteTries bounds how often ORWRITE starts anew because another command wrote in between;
// then the initiator is told BUSY.
const maxORWriteTries = 64

// orWrite reads the blocks, ORs the Data-Out in, and stores the result if the blocks are still what
// was read.
func orWrite(c *Command) {
	r, ok := c.media()
	if !ok || !c.wholeBlocks() {
		return
	}
	n := len(c.Data)
	if n == 0 {
		c.good()
		return
	}
	if c.borrow(0, n) == nil || c.borrow(1, n) == nil {
		c.rejectStatus(Busy)
		return
	}
	c.offset = r.offset()
	c.mismatch = 0
	c.runSteps(orReadStep)
}

func orReadStep(c *Command) bool {
	if c.mismatch < 0 {
		return false
	}
	if c.retries++; c.retries > maxORWriteTries {
		c.Status = Busy
		return false
	}
	c.step = orWriteStep
	c.lu.backend.Read(c.Lane, c.buffers[0][:len(c.Data)], c.offset, c.ioDone)
	return true
}

func orWriteStep(c *Command) bool {
	old, merged := c.buffers[0][:len(c.Data)], c.buffers[1][:len(c.Data)]
	or(merged, old, c.Data)
	c.step = orReadStep
	c.lu.backend.CompareAndWrite(c.Lane, old, merged, c.offset, c.fua(), c.comparedDone)
	return true
}

// or sets dst to a|b, eight bytes at a time; the lengths are equal and multiples of eight.
func or(dst, a, b []byte) {
	for i := 0; i+8 <= len(dst); i += 8 {
		word := binary.NativeEndian.Uint64(a[i:]) | binary.NativeEndian.Uint64(b[i:])
		binary.NativeEndian.PutUint64(dst[i:], word)
	}
}
