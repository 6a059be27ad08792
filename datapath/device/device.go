package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sentinels of this package; each wraps the errno that it stands for.
var (
	// ErrNotBlock: the path is no block device.
	ErrNotBlock = error(&sentinel{"not a block device", unix.ENOTBLK})
	// ErrInUse: something else on this node has the device.
	ErrInUse = error(&sentinel{"device is in use", unix.EBUSY})
	// ErrHolds: the device holds something that would be lost.
	ErrHolds = error(&sentinel{"device holds something", unix.EEXIST})
)

// Device is an open back-end LUN. Its exported fields do not change.
type Device struct {
	Path          string // as it was opened, symbolic links resolved
	Major, Minor  uint32
	LogicalBlock  int // the unit of direct I/O, bytes
	PhysicalBlock int // the unit that the device writes without reading, bytes
	Rotational    bool
	ReadOnly      bool
	WWID          string // the LUN's identity, the same on every node and path
	WWIDSource    string // where WWID was found, in words

	file *os.File
	sys  string // its folder in sysfs
}

// Open opens the block device at path for direct I/O. A device that only reads opens too.
func Open(path string) (*Device, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	f, err := openDirect(resolved)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	d := &Device{Path: resolved, file: f}
	if err := d.describe(); err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", path, err), f.Close())
	}
	return d, nil
}

// openDirect opens without O_NONBLOCK, which os.OpenFile would set, and refuses what is no device.
func openDirect(path string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, fmt.Errorf("%w: give a disk, a partition or a loop device", ErrNotBlock)
	}
	const flags = unix.O_DIRECT | unix.O_CLOEXEC
	fd, err := unix.Open(path, unix.O_RDWR|flags, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		fd, err = unix.Open(path, unix.O_RDONLY|flags, 0)
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (if the kernel forbids writes to mounted devices, boot it with bdev_allow_write_mounted=1)", err)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (d *Device) describe() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.Fd(), &st); err != nil {
		return err
	}
	d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	d.sys = fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor)
	if _, err := d.Size(); err != nil {
		return err
	}
	var err error
	if d.LogicalBlock, err = unix.IoctlGetInt(d.Fd(), unix.BLKSSZGET); err != nil {
		return fmt.Errorf("logical block size: %w", err)
	}
	physical, err := unix.IoctlGetUint32(d.Fd(), unix.BLKPBSZGET)
	if err != nil {
		return fmt.Errorf("physical block size: %w", err)
	}
	readOnly, err := unix.IoctlGetUint32(d.Fd(), unix.BLKROGET)
	if err != nil {
		return fmt.Errorf("read-only flag: %w", err)
	}
	d.PhysicalBlock, d.ReadOnly = int(physical), readOnly != 0
	d.Rotational = d.attribute("queue/rotational") == "1" || d.attribute("../queue/rotational") == "1"
	d.WWID, d.WWIDSource = identify(d.sys)
	return nil
}

// Fd is the descriptor, open for direct I/O until Close.
func (d *Device) Fd() int { return int(d.file.Fd()) }

// Size is the device's present size in bytes.
func (d *Device) Size() (int64, error) {
	var n uint64
	if err := ioctl(d.Fd(), unix.BLKGETSIZE64, unsafe.Pointer(&n)); err != nil {
		return 0, fmt.Errorf("size of %s: %w", d.Path, err)
	}
	return int64(n), nil
}

// ReadAt reads into p, which is aligned as direct I/O needs.
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// WriteAt stores p, which is aligned as direct I/O needs.
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.file.WriteAt(p, off) }

// Sync empties the device's write cache.
func (d *Device) Sync() error { return d.file.Sync() }

// Discard gives n bytes at off up; what they read as afterwards is the device's choice.
func (d *Device) Discard(off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if err := ioctl(d.Fd(), unix.BLKDISCARD, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("discard %d bytes at %d of %s: %w", n, off, d.Path, err)
	}
	return nil
}

// Close closes the descriptor.
func (d *Device) Close() error { return d.file.Close() }

// exclusivePoll is how often WaitUnused tries.
const exclusivePoll = 2 * time.Millisecond

// WaitUnused returns when nobody on this node has the device mounted or claimed, which a kernel's
// unmount may take seconds to reach after the call returned. ErrInUse when ctx ends first.
func (d *Device) WaitUnused(ctx context.Context) error {
	tick := time.NewTicker(exclusivePoll)
	defer tick.Stop()
	for {
		err := claim(d.Path)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("device %s: %w: %w", d.Path, ErrInUse, ctx.Err())
		}
	}
}

// claim opens path exclusively and lets it go again. Reading suffices: closing a device that was
// open for writing makes udev probe it.
func claim(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("claim %s: %w", path, err)
	}
	return unix.Close(fd)
}

func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
