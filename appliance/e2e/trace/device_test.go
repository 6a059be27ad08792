package trace

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

// slowDisk is a file that takes its time to be read.
type slowDisk struct {
	fs.Inode
	file  *os.File
	size  int64
	delay atomic.Int64
}

func (d *slowDisk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(d.size)
	return 0
}

func (*slowDisk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (d *slowDisk) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	time.Sleep(time.Duration(d.delay.Load()))
	n, err := d.file.ReadAt(p, off)
	if n == 0 && err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

func (d *slowDisk) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := d.file.WriteAt(p, off)
	if err != nil {
		return 0, syscall.EIO
	}
	return uint32(n), 0
}

func (*slowDisk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// newSlowDisk is a block device of size bytes over a slowDisk.
func newSlowDisk(ctx context.Context, t *testing.T, l *lab.Lab, size int64) (*slowDisk, string) {
	t.Helper()
	file, err := os.Create(l.Path("disk"))
	check(t, err)
	t.Cleanup(func() { file.Close() })
	check(t, file.Truncate(size))
	d := &slowDisk{file: file, size: size}
	mount := t.TempDir()
	root := &fs.Inode{}
	server, err := fs.Mount(mount, root, &fs.Options{
		MountOptions: fuse.MountOptions{FsName: "lunar-slow", DirectMount: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: fuse.S_IFREG}), false)
		},
	})
	check(t, err)
	t.Cleanup(func() { check(t, server.Unmount()) })
	out, err := lab.Run(ctx, "losetup", "--find", "--show", filepath.Join(mount, "disk"))
	check(t, err)
	device := strings.TrimSpace(out)
	t.Cleanup(func() {
		d.delay.Store(0)
		check(t, exec.Command("losetup", "--detach", device).Run()) //nolint:noctx // the test's context has ended
	})
	return d, device
}

// TestDeviceDelay: reads of a disk that takes 10 ms show it where the device is, by lunard and by the kernel.
func TestDeviceDelay(t *testing.T) {
	timed(t)
	ctx, l := labtest.Open(t, limit, "qemu-io", "mkfs.xfs", "losetup")
	disk, device := newSlowDisk(ctx, t, l, 512*mib)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	t.Cleanup(func() { check(t, n.Stop()) }) // before its disk goes
	e, err := n.ServeImage(ctx, device, "64MiB", target)
	check(t, err)
	repeat(ctx, t, e, 1, "write -P 7 0 1M")
	client := api.NewClient(n.Socket)
	t.Cleanup(client.Close)

	const reads = 40
	disk.delay.Store(int64(delay))
	hold(t, expected{
		slow: []string{"device", "block read", "io_uring read"}, command: "READ", most: "device",
		fast: []string{"decode", "data", "layout", "queue", "redirect", "execute", "answer", "network"},
	}, func() *seen {
		return follow(ctx, t, client, api.TraceQuery{Volume: "Volume1", Slowest: 5}, func() { repeat(ctx, t, e, reads, "read -P 7 64k 4k") },
			func(s *seen) bool { return s.count("device") >= reads && s.count("network") > 0 })
	})
}
