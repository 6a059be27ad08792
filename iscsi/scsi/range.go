package scsi

// blockRange is the LBA and the number of logical blocks of a media command.
type blockRange struct {
	lba   uint64
	count uint64
}

func (r blockRange) offset() int64 { return int64(r.lba) * blockSize }
func (r blockRange) bytes() int64  { return int64(r.count) * blockSize }

// range6 is that of the 6-byte CDBs: a count of 0 means 256 blocks (SBC-3 §5.10).
func range6(cdb *[16]byte) blockRange {
	count := uint64(cdb[4])
	if count == 0 {
		count = 256
	}
	return blockRange{uint64(be24(cdb[1:4]) & 0x1FFFFF), count}
}

func range10(cdb *[16]byte) blockRange {
	return blockRange{uint64(be32(cdb[2:])), uint64(be16(cdb[7:]))}
}

func range12(cdb *[16]byte) blockRange {
	return blockRange{uint64(be32(cdb[2:])), uint64(be32(cdb[6:]))}
}

func range16(cdb *[16]byte) blockRange {
	return blockRange{be64(cdb[2:]), uint64(be32(cdb[10:]))}
}

// rangeCompare is that of COMPARE AND WRITE.
func rangeCompare(cdb *[16]byte) blockRange {
	return blockRange{be64(cdb[2:]), uint64(cdb[13])}
}

// blocks6 and its like are the transfer lengths of media commands in bytes.
func blocks6(cdb *[16]byte) int  { return transferBytes(range6(cdb)) }
func blocks10(cdb *[16]byte) int { return transferBytes(range10(cdb)) }
func blocks12(cdb *[16]byte) int { return transferBytes(range12(cdb)) }
func blocks16(cdb *[16]byte) int { return transferBytes(range16(cdb)) }

func transferBytes(r blockRange) int {
	if r.count > MaxData/blockSize {
		return -1
	}
	return int(r.count) * blockSize
}

// cdbRange is the range of c's CDB by the length of its CDB.
func (c *Command) cdbRange() blockRange {
	switch cdbLength(c.CDB[0]) {
	case 6:
		return range6(&c.CDB)
	case 10:
		return range10(&c.CDB)
	case 12:
		return range12(&c.CDB)
	}
	return range16(&c.CDB)
}

// countField is where the transfer length stands in c's CDB, for the field pointer.
func (c *Command) countField() int {
	switch cdbLength(c.CDB[0]) {
	case 6:
		return 4
	case 10:
		return 7
	case 12:
		return 6
	}
	return 10
}

// inside checks that the range lies in the unit; it rejects the command if not.
func (c *Command) inside(r blockRange) bool {
	blocks := c.lu.blocks()
	if r.lba <= blocks && r.count <= blocks-r.lba {
		return true
	}
	s := senseLBAOutOfRange
	if r.lba >= blocks {
		s = s.with(r.lba)
	} else {
		s = s.with(blocks)
	}
	c.reject(s)
	return false
}

// media makes the checks that all media commands share, after the CDB's own bits: the transfer
// length, the range, the write protection. It rejects the command if one fails.
func (c *Command) media() (blockRange, bool) {
	r := c.cdbRange()
	if c.oversize {
		c.reject(senseInvalidField.at(c.countField()))
		return r, false
	}
	return r, c.inside(r) && c.writable()
}

// writable rejects a writing command on a write-protected unit.
func (c *Command) writable() bool {
	switch {
	case !c.row.has(writes):
		return true
	case c.lu.opts.ReadOnly:
		c.reject(senseWriteProtected)
		return false
	case c.lu.modes.Load().softwareProtect:
		c.reject(senseSoftwareProtected)
		return false
	}
	return true
}

// fua tells whether c's writes have to be durable before GOOD: the FUA bit, or no write cache.
func (c *Command) fua() bool {
	return c.CDB[1]&0x08 != 0 && c.CDB[0]&0xE0 != 0 || !c.lu.modes.Load().writeCache
}
