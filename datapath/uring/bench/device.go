package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// device is what is measured on.
type device struct {
	path string
	what string
	size int64
	file *os.File // open with O_DIRECT
	back *os.File // of a loop device
}

func openDevice(o options) (*device, error) {
	if o.device == "" {
		return newLoop(o.size)
	}
	flags := os.O_RDONLY
	if o.overwrite {
		flags = os.O_RDWR | unix.O_EXCL // fails with EBUSY on a mounted device
	}
	d := &device{path: o.device, what: o.device}
	if err := d.open(flags); err != nil {
		return nil, err
	}
	end, err := d.file.Seek(0, 2)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of %s: %w", d.path, err), d.file.Close())
	}
	d.size = min(end, o.size) &^ (1<<20 - 1)
	return d, nil
}

func (d *device) open(flags int) (err error) {
	d.file, err = os.OpenFile(d.path, flags|unix.O_DIRECT, 0)
	return err
}

// memoryDir is a tmpfs on every Linux.
const memoryDir = "/dev/shm"

// newLoop makes a loop device over a file in memory without a name. LO_FLAGS_AUTOCLEAR takes the
// device away when its last descriptor is closed, however this process ends.
func newLoop(size int64) (*device, error) {
	back, err := memoryFile(size)
	if err != nil {
		return nil, err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, back.Close())
	}
	defer func() { _ = control.Close() }()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("LOOP_CTL_GET_FREE: %w", err), back.Close())
	}
	d := &device{path: fmt.Sprintf("/dev/loop%d", n), what: "loop device over memory", size: size, back: back}
	if err := d.open(os.O_RDWR); err != nil {
		return nil, errors.Join(err, back.Close())
	}
	config := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 512, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(d.file.Fd()), &config); err != nil {
		d.close()
		return nil, fmt.Errorf("LOOP_CONFIGURE of %s: %w", d.path, err)
	}
	return d, nil
}

// memoryFile is a file of size bytes in memory, all of them allocated.
func memoryFile(size int64) (*os.File, error) {
	f, err := os.CreateTemp(memoryDir, "uring-bench-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	for at := int64(0); at < size; at += int64(len(noise)) { // written, so no peer meets a first write
		if _, err := f.WriteAt(noise, at); err != nil {
			return nil, errors.Join(fmt.Errorf("%d bytes in %s: %w", size, memoryDir, err), f.Close())
		}
	}
	return f, nil
}

func (d *device) close() {
	_ = d.file.Close()
	if d.back != nil {
		_ = d.back.Close()
	}
}
