package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// device is what is measured on.
type device struct {
	path string
	what string
	size int64
	file *os.File // open with O_DIRECT
	undo func()   // takes the device away
	// reads says that writes are not measured.
	reads bool
}

// devices are what is measured on, one after the other: -device, or a loop device and a zram device.
func devices(o options) []func() (*device, error) {
	if o.device != "" {
		return []func() (*device, error){func() (*device, error) { return openDevice(o) }}
	}
	return []func() (*device, error){
		func() (*device, error) { return newLoop(o.size) },
		func() (*device, error) { return newZram(min(o.size, maxZram)) },
	}
}

func openDevice(o options) (*device, error) {
	flags := os.O_RDONLY
	if o.overwrite {
		flags = os.O_RDWR | unix.O_EXCL // fails with EBUSY on a mounted device
	}
	d := &device{path: o.device, what: o.device, reads: !o.overwrite}
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
	d := &device{path: fmt.Sprintf("/dev/loop%d", n), what: "loop device over memory", size: size, undo: func() { _ = back.Close() }}
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
	if err := fill(f, size); err != nil {
		return nil, errors.Join(fmt.Errorf("%d bytes in %s: %w", size, memoryDir, err), f.Close())
	}
	return f, nil
}

// fill writes all of f, so that no peer meets a first write, with what does not compress.
func fill(f io.WriterAt, size int64) error {
	noise, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(noise) }()
	_, _ = rand.Read(noise)
	for at := int64(0); at < size; at += int64(len(noise)) {
		if _, err := f.WriteAt(noise, at); err != nil {
			return err
		}
	}
	return nil
}

func (d *device) close() {
	_ = d.file.Close()
	if d.undo != nil {
		d.undo()
	}
}
