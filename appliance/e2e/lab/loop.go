package lab

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Loop is a block device over a sparse file in the lab's folder, with direct I/O below it.
type Loop struct {
	Path string // /dev/loopN
	File string

	dev *os.File // keeps the device from clearing itself
}

// configureTries bounds the race with others for a free device.
const configureTries = 32

// Loop makes a device of size bytes in sectors of 512; an existing file of that name keeps its content.
func (l *Lab) Loop(name string, size int64) (*Loop, error) {
	return l.LoopSectors(name, size, 512)
}

// LoopSectors is Loop with sectors of another length, 512 to 4096 bytes.
func (l *Lab) LoopSectors(name string, size int64, sector uint32) (*Loop, error) {
	path := l.Path(name)
	backing, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer backing.Close() //nolint:errcheck // the device has its own reference
	if err := backing.Truncate(size); err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	dev, err := attach(backing, sector)
	if err != nil {
		return nil, fmt.Errorf("loop device over %s: %w", path, err)
	}
	loop := &Loop{Path: dev.Name(), File: path, dev: dev}
	l.own(loop.Close)
	return loop, nil
}

// Limit lets the device end after n bytes of its file, 0 for all of it: with several devices on one
// file, a path that is cut. I/O beyond gets errors on this device alone.
func (d *Loop) Limit(n uint64) error {
	info, err := unix.IoctlLoopGetStatus64(int(d.dev.Fd()))
	if err == nil {
		info.Sizelimit = n
		err = unix.IoctlLoopSetStatus64(int(d.dev.Fd()), info)
	}
	if err != nil {
		return fmt.Errorf("limit %s: %w", d.Path, err)
	}
	return nil
}

// Close lets the device go: it clears itself when nobody has it open any more.
func (d *Loop) Close() error {
	if d.dev == nil {
		return nil
	}
	err := d.dev.Close()
	d.dev = nil
	return err
}

func attach(backing *os.File, sector uint32) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close() //nolint:errcheck // nothing was written
	for range configureTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		dev, err := configure(fmt.Sprintf("/dev/loop%d", n), backing, sector)
		if err == nil {
			return dev, nil
		}
		if err != unix.EBUSY { //nolint:errorlint // a bare errno from the ioctl
			return nil, fmt.Errorf("LOOP_CONFIGURE: %w", err)
		}
	}
	return nil, fmt.Errorf("LOOP_CONFIGURE: %w after %d tries", unix.EBUSY, configureTries)
}

func configure(path string, backing *os.File, sector uint32) (*os.File, error) {
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{
		Fd:   uint32(backing.Fd()),
		Size: sector,
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR},
	}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return dev, nil
}
