package scsi

import "encoding/binary"

// provisioningCommands are UNMAP (SBC-3 §5.28) and GET LBA STATUS (§5.6).
var provisioningCommands = []row{
	{
		opcode: 0x42, action: noServiceAction, name: "UNMAP",
		usage: []byte{0x42, 0, 0, 0, 0, 0, 0x1F, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return be16(cdb[7:]) },
		class: classWrite, flags: writes, run: unmap,
	},
	{
		opcode: 0x9E, action: 0x12, name: "GET LBA STATUS",
		usage: []byte{
			0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
			0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00,
		},
		dir: DataIn, length: func(cdb *[16]byte) int { return int(be32(cdb[10:])) },
		class: classRead, run: getLBAStatus,
	},
}

// Limits of UNMAP, told in the Block Limits VPD page.
const (
	maxUnmapBlocks      = 1 << 20 // of all descriptors together: 512 MiB
	maxUnmapDescriptors = 256
	unmapHeader         = 8
	unmapDescriptor     = 16
)

// unmap checks the whole parameter list before the first range is unmapped.
func unmap(c *Command) {
	if !c.lu.opts.Thin {
		c.reject(senseInvalidOpcode)
		return
	}
	n, ok := c.unmapList()
	if !ok || !c.writable() {
		return
	}
	c.Data = c.Data[:n]
	c.cursor = unmapHeader
	c.runSteps(unmapStep)
}

// unmapList checks the parameter list and gives the length up to the last descriptor. It rejects
// the command if the list is bad.
func (c *Command) unmapList() (n int, ok bool) {
	if len(c.Data) == 0 {
		return 0, true
	}
	if len(c.Data) < unmapHeader {
		c.reject(senseParameterLength)
		return 0, false
	}
	size := be16(c.Data[2:]) / unmapDescriptor * unmapDescriptor
	switch {
	case unmapHeader+size > len(c.Data):
		c.reject(senseParameterLength)
		return 0, false
	case size/unmapDescriptor > maxUnmapDescriptors:
		c.reject(senseInvalidParameter.inList(2))
		return 0, false
	}
	return unmapHeader + size, c.unmapRanges(unmapHeader + size)
}

func (c *Command) unmapRanges(end int) bool {
	total := uint64(0)
	for at := unmapHeader; at < end; at += unmapDescriptor {
		r := unmapRange(c.Data[at:])
		if total += r.count; total > maxUnmapBlocks {
			c.reject(senseInvalidParameter.inList(at + 8))
			return false
		}
		if !c.inside(r) {
			return false
		}
	}
	return true
}

func unmapRange(p []byte) blockRange { return blockRange{be64(p), uint64(be32(p[8:]))} }

func unmapStep(c *Command) bool {
	r := c.nextUnmap()
	if r.count == 0 {
		return false
	}
	c.lu.backend.Unmap(c.Lane, r.offset(), r.bytes(), c.ioDone)
	return true
}

// nextUnmap joins the descriptors that continue each other, since a volume gives one large range
// back in one change of its file system. A count of 0 ends the list.
func (c *Command) nextUnmap() (r blockRange) {
	for c.cursor < len(c.Data) {
		next := unmapRange(c.Data[c.cursor:])
		switch {
		case r.count == 0:
			r = next
		case next.count == 0:
		case next.lba == r.lba+r.count:
			r.count += next.count
		default:
			return r
		}
		c.cursor += unmapDescriptor
	}
	return r
}

// maxStatusDescriptors bounds the work of one GET LBA STATUS; the initiator asks again from where
// the last descriptor ends.
const maxStatusDescriptors = 256

// Provisioning status of an LBA status descriptor.
const (
	lbaMapped      = 0
	lbaDeallocated = 1
)

func getLBAStatus(c *Command) {
	r := blockRange{be64(c.CDB[2:]), 1}
	if !c.inside(r) {
		return
	}
	room := min((c.Length-8)/16, maxStatusDescriptors)
	data := make([]byte, 8, 8+16*max(room, 1))
	next, blocks := r.lba, c.lu.blocks()
	for n := 0; n < max(room, 1) && next < blocks; n++ {
		var d [16]byte
		mapped, count := c.lu.mappedBlocks(next)
		binary.BigEndian.PutUint64(d[0:], next)
		binary.BigEndian.PutUint32(d[8:], uint32(count))
		d[12] = lbaMapped
		if !mapped {
			d[12] = lbaDeallocated
		}
		data = append(data, d[:]...)
		next += count
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-4))
	c.reply(data)
}

// mappedBlocks tells for how many blocks from lba on the provisioning status is that of lba.
func (lu *LogicalUnit) mappedBlocks(lba uint64) (mapped bool, count uint64) {
	rest := lu.blocks() - lba
	if !lu.opts.Thin {
		return true, min(rest, 0xFFFFFFFF)
	}
	mapped, n := lu.backend.Mapped(int64(lba) * blockSize)
	count = uint64(n) / blockSize
	return mapped, min(max(count, 1), rest, 0xFFFFFFFF)
}
