package coordinator

import (
	"encoding/binary"
	"fmt"

	"lunar/datapath/device"
)

// checkFits tells where the file system ends on the device. It refuses a device that is smaller than the file system on it: someone shrank the LUN. The
// kernel's own words for that are "input/output error".
func checkFits(dev *device.Device, fs FSType) (end int64, err error) {
	p := alignedBuffer(4096)
	if _, err := dev.ReadAt(p, 0); err != nil {
		return 0, fmt.Errorf("read the superblock of %s: %w", dev.Path, err)
	}
	has, err := dev.Size()
	if err != nil {
		return 0, err
	}
	wants := fileSystemSize[fs](p)
	if wants > has {
		return 0, fmt.Errorf("device %s: %w: %s of %d bytes on %d", dev.Path, ErrShrunk, fs, wants, has)
	}
	return wants, nil
}

// fileSystemSize reads from the first 4 KiB of a device how many bytes of it the file system takes.
var fileSystemSize = map[FSType]func(p []byte) int64{XFS: xfsSize, Ext4: ext4Size}

// xfsSize is sb_blocksize times sb_dblocks, big endian, of the superblock at 0.
func xfsSize(p []byte) int64 {
	return int64(binary.BigEndian.Uint32(p[4:])) * int64(binary.BigEndian.Uint64(p[8:]))
}

// ext4Size is s_blocks_count in units of s_log_block_size, little endian, of the superblock at 1024.
func ext4Size(p []byte) int64 {
	const incompat64 = 0x80
	sb := p[1024:]
	blocks := int64(binary.LittleEndian.Uint32(sb[0x4:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&incompat64 != 0 {
		blocks |= int64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	return blocks << (10 + min(binary.LittleEndian.Uint32(sb[0x18:]), 6))
}
