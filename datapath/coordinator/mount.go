package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

// FSType is a file system that a volume can have.
type FSType string

// File systems of volumes.
const (
	XFS  FSType = "xfs"
	Ext4 FSType = "ext4"
)

// mount is a detached mount: reachable by its descriptors alone.
type mount struct {
	fs    FSType
	tree  *os.File // the mount; O_PATH
	root  *os.File // its root folder
	block int64    // the file system's block size
	id    uint64   // of the mount, for the kernel

	ending sync.Mutex // guards the descriptors' end against shutdown
	closed bool
}

// fsconfigCreateExcl is FSCONFIG_CMD_CREATE_EXCL (kernel 6.6): fails when the file system is
// mounted already instead of sharing it.
const fsconfigCreateExcl = 8

// attach mounts the device's file system so that no path leads to it.
func attach(dev *device.Device, fs FSType, twin bool) (*mount, error) {
	if err := forgetPages(dev); err != nil {
		return nil, err
	}
	ctxFd, err := unix.Fsopen(string(fs), unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount %s: kernel has no %s: %w", dev.Path, fs, err)
	}
	defer func() { _ = unix.Close(ctxFd) }()
	err = unix.FsconfigSetString(ctxFd, "source", dev.Path)
	if err == nil {
		err = setOptions(ctxFd, fs, twin)
	}
	if err == nil {
		err = create(ctxFd)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s as %s: %w%s", dev.Path, fs, err, kernelWords(ctxFd))
	}
	const attrs = unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOATIME
	fd, err := unix.Fsmount(ctxFd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mount %s as %s: %w", dev.Path, fs, err)
	}
	return newMount(fs, os.NewFile(uintptr(fd), dev.Path))
}

func create(ctxFd int) error {
	_, _, errno := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(ctxFd), fsconfigCreateExcl, 0, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.EOPNOTSUPP: // an older kernel; a try that failed would spoil ctxFd for another
		return unix.FsconfigCreate(ctxFd)
	}
	return errno
}

// kernelWords is what the file system says about a failed mount: its messages follow "e ".
func kernelWords(ctxFd int) string {
	buf := make([]byte, 4096)
	var words strings.Builder
	for range 16 {
		n, err := unix.Read(ctxFd, buf)
		if err != nil || n <= 2 {
			break
		}
		words.WriteString("; " + strings.TrimSpace(string(buf[2:n])))
	}
	return words.String()
}

func newMount(fs FSType, tree *os.File) (*mount, error) {
	m := &mount{fs: fs, tree: tree}
	id, err := mountOf(int(tree.Fd()))
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	m.id = id
	root, err := m.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	m.root = root
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return nil, errors.Join(fmt.Errorf("the file system is marked read-only: %w: make it writable first", ErrUnsupported), m.close())
	}
	m.block = st.Bsize
	return m, nil
}

// space tells the size and what is left.
func (m *mount) space() (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(m.root.Fd()), &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// goingDown is XFS_IOC_GOINGDOWN, which is EXT4_IOC_SHUTDOWN too; noLogFlush lets nothing more reach
// the device.
const (
	goingDown  = 0x8004587d
	noLogFlush = 2
)

// shutdown ends the file system at once: nothing more is written, not even the log. It does nothing after close, when the
// descriptor's number may be another file's.
func (m *mount) shutdown() error {
	m.ending.Lock()
	defer m.ending.Unlock()
	if m.closed {
		return nil
	}
	flags := uint32(noLogFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.root.Fd(), goingDown, uintptr(unsafe.Pointer(&flags)))
	if errno != 0 {
		return fmt.Errorf("shut the file system down: %w", errno)
	}
	return nil
}

func (m *mount) close() error {
	m.ending.Lock()
	defer m.ending.Unlock()
	m.closed = true
	var err error
	if m.root != nil {
		err = m.root.Close()
	}
	return errors.Join(err, m.tree.Close())
}

// unmountWait bounds how long close waits for the kernel to let the device go.
const unmountWait = 30 * time.Second

// sync writes back what the file system has not written yet.
func (m *mount) sync() error { return unix.Syncfs(int(m.root.Fd())) }

// durable makes what was done to f durable. XFS ends an fsync with success when a shutdown has taken
// the log away beneath it; a look at the inode tells.
func durable(f *os.File) error {
	var st unix.Stat_t
	return errors.Join(f.Sync(), unix.Fstat(int(f.Fd()), &st))
}

// durableData is durable for content and what is needed to find it.
func durableData(f *os.File) error {
	var st unix.Stat_t
	return errors.Join(unix.Fdatasync(int(f.Fd())), unix.Fstat(int(f.Fd()), &st))
}

// alive asks the file system itself, not its caches, whether it was shut down.
func (m *mount) alive() error {
	if err := m.root.Sync(); err != nil {
		return fmt.Errorf("file system: %w", err)
	}
	f, err := m.open(".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("file system: %w", err)
	}
	return f.Close()
}

// unmount closes the mount and waits until the kernel has let the device go; what was shut down is
// not written back.
func (m *mount) unmount(ctx context.Context, dev *device.Device, failed bool) error {
	var err error
	if !failed {
		err = m.sync()
	}
	err = errors.Join(err, m.close())
	ctx, cancel := context.WithTimeout(ctx, unmountWait)
	defer cancel()
	return errors.Join(err, dev.WaitUnused(ctx))
}
