package coordinator

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

// safeOptions override what a superblock may set as default: a volume's flushes reach the device, and
// its data does not go through the journal, which would write it a second time, later, over what
// holders wrote.
var safeOptions = map[FSType][][2]string{
	Ext4: {{"barrier", ""}, {"data", "ordered"}},
}

// twinOptions let a file system be mounted while this kernel has one with the same UUID. ext4 never asks.
var twinOptions = map[FSType][][2]string{
	XFS: {{"nouuid", ""}},
}

// setOptions gives safeOptions to a file system context, and twinOptions when asked for.
func setOptions(ctxFd int, fs FSType, twin bool) error {
	options := safeOptions[fs]
	if twin {
		options = append(slices.Clip(options), twinOptions[fs]...)
	}
	for _, o := range options {
		err := unix.FsconfigSetString(ctxFd, o[0], o[1])
		if o[1] == "" {
			err = unix.FsconfigSetFlag(ctxFd, o[0])
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", o[0], err)
		}
	}
	return nil
}

// checkSuperblock refuses file systems that a crash would leave inconsistent, and those whose journal
// other nodes would not find.
func checkSuperblock(dev *device.Device, fs FSType) error {
	if fs != Ext4 {
		return nil // XFS always has a log, and does not mount without it
	}
	p := alignedBuffer(4096)
	if _, err := dev.ReadAt(p, 0); err != nil {
		return fmt.Errorf("read the superblock of %s: %w", dev.Path, err)
	}
	const super, compat, journalInode, hasJournal = 1024, 0x5c, 0xe0, 4
	switch sb := p[super:]; {
	case binary.LittleEndian.Uint32(sb[compat:])&hasJournal == 0:
		return fmt.Errorf("ext4 on %s has no journal, a crash would ruin it: %w: add one with tune2fs -O has_journal", dev.Path, ErrUnsupported)
	case binary.LittleEndian.Uint32(sb[journalInode:]) == 0:
		return fmt.Errorf("ext4 on %s has its journal on another device: %w: make it internal with tune2fs", dev.Path, ErrUnsupported)
	}
	return nil
}
