package loopdev

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Options says how a file is attached.
type Options struct {
	BlockSize uint32 // logical block size, bytes; 0 is the kernel's choice, 512
	Buffered  bool   // go through the file's page cache, not by direct I/O
}

// Loop is a file attached to a loop device.
type Loop struct {
	Path   string // of the device
	device *os.File
	file   *os.File
}

// maxTries bounds the race for a free device against other processes.
const maxTries = 64

// Attach makes the file at path a block device.
func Attach(path string, o Options) (*Loop, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	for range maxTries {
		l, err := attach(file, o)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return nil, errors.Join(fmt.Errorf("loop device for %s: %w", path, err), file.Close())
		}
	}
	return nil, errors.Join(fmt.Errorf("loop device for %s: none is free: %w", path, unix.EBUSY), file.Close())
}

func attach(file *os.File, o Options) (*Loop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free device: %w", err)
	}
	name := fmt.Sprintf("/dev/loop%d", number)
	device, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: o.BlockSize}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if !o.Buffered {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", name, err), device.Close())
	}
	return &Loop{Path: name, device: device, file: file}, nil
}

// Limit lets the device end after n bytes of the file, 0 for all of it. I/O beyond gets errors, on
// this device alone: a path that is cut, where several devices have one file.
func (l *Loop) Limit(n uint64) error {
	info, err := unix.IoctlLoopGetStatus64(int(l.device.Fd()))
	if err != nil {
		return fmt.Errorf("limit %s: %w", l.Path, err)
	}
	info.Sizelimit = n
	if err := unix.IoctlLoopSetStatus64(int(l.device.Fd()), info); err != nil {
		return fmt.Errorf("limit %s: %w", l.Path, err)
	}
	return nil
}

// Grow lets the device have its file's present size.
func (l *Loop) Grow() error {
	if err := unix.IoctlSetInt(int(l.device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", l.Path, err)
	}
	return nil
}

// detachWait bounds how long Detach waits for other descriptors on the device to be closed.
const detachWait = 10 * time.Second

// Detach gives the device back, and waits until the kernel has: others may still have it open.
func (l *Loop) Detach() error {
	err := errors.Join(l.device.Close(), l.file.Close())
	backing := "/sys/block/" + l.Path[len("/dev/"):] + "/loop/backing_file"
	for until := time.Now().Add(detachWait); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		if _, gone := os.Stat(backing); gone != nil || !l.mine(backing) {
			return err
		}
	}
	return errors.Join(err, fmt.Errorf("detach %s: still in use: %w", l.Path, unix.EBUSY))
}

// mine tells whether the device is still this loop, and not attached anew by another process.
func (l *Loop) mine(backing string) bool {
	b, err := os.ReadFile(backing)
	return err == nil && string(b) == l.file.Name()+"\n"
}
