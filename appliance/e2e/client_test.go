package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/e2e/lab"
)

// TestFileSystemThereAndBack writes a real ext4 with real files to the LUN by qemu-img convert, reads
// it back, compares, and has e2fsck look at what came.
func TestFileSystemThereAndBack(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 256*mib)
	source, back := s.lab.Path("source.raw"), s.lab.Path("back.raw")
	check(t, os.WriteFile(source, nil, 0o600))
	check(t, os.Truncate(source, 256*mib))
	goRoot, err := lab.Run(ctx, "go", "env", "GOROOT")
	check(t, err)
	_, err = lab.Run(ctx, "mkfs.ext4", "-q", "-d", filepath.Join(strings.TrimSpace(goRoot), "src", "net"), source)
	check(t, err)

	check(t, lab.Upload(ctx, source, s.url))
	check(t, lab.Download(ctx, s.url, back))
	if want, got := checksum(t, source), checksum(t, back); got != want {
		t.Errorf("read back %s, wrote %s", got, want)
	}
	_, err = lab.Run(ctx, "e2fsck", "-fn", back)
	check(t, err)
}

// TestImageAfterEject mounts the ejected volume with the plain kernel: the image's file holds what the
// initiator wrote.
func TestImageAfterEject(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 512*mib)
	source := random(t, s.lab, "source.raw", 512*mib, 8)
	check(t, lab.Upload(ctx, source, s.url))
	ctl(ctx, t, s.node, "target unmap "+iqn+" 0")
	ctl(ctx, t, s.node, "volume eject Volume1")

	mount, err := s.lab.Mount(s.device.Path, "mnt", "xfs", unix.MS_RDONLY)
	check(t, err)
	if want, got := checksum(t, source), checksum(t, filepath.Join(mount.Path, "disk.img")); got != want {
		t.Errorf("the file has %s, the initiator wrote %s", got, want)
	}
}

// TestQemuBench loads the LUN by qemu-img bench, reads and writes.
func TestQemuBench(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 256*mib)
	for _, direction := range [][]string{{"-w"}, {"-w", "--flush-interval=64"}, {}} {
		argv := append([]string{"qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "4000", "-d", "32", "-s", "4096"}, direction...)
		out, err := lab.Run(ctx, append(argv, s.url)...)
		check(t, err)
		t.Logf("%v: %s", direction, out)
	}
}

// TestFioVerify runs fio with verification on a FUSE export of the LUN by qemu-storage-daemon.
func TestFioVerify(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 128*mib)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	file := s.lab.Path("export")
	check(t, os.WriteFile(file, nil, 0o600))
	_, err := s.lab.Start("qemu-storage-daemon",
		"--blockdev", "driver=raw,node-name=lun,file.driver=iscsi,file.transport=tcp,file.lun=0,file.target="+iqn+
			fmt.Sprintf(",file.portal=127.0.0.1:%d", s.node.Ports[0]),
		"--export", "type=fuse,id=fuse,node-name=lun,writable=on,mountpoint="+file)
	check(t, err)
	check(t, lab.Poll(10*time.Second, func() error { return hasSize(file, 128*mib) }))

	out, err := lab.Run(ctx, "fio", "--name=verify", "--filename="+file, "--rw=randrw", "--bsrange=4k-64k", "--size=128m",
		"--ioengine=psync", "--numjobs=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--end_fsync=1",
		"--randseed=1", "--verify_state_save=0", "--output-format=terse")
	check(t, err)
	t.Log(out)
}

func hasSize(path string, size int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("%s has %d bytes", path, info.Size())
	}
	return nil
}

// TestDiscard gives blocks back: they read as zeroes, and the volume has the space again.
func TestDiscard(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 256*mib)
	commands := []string{"write -P 0x5a 0 64M", "discard 0 64M", "read -P 0 0 64M", "write -z -u 64M 16M", "read -P 0 64M 16M"}
	_, err := lab.QemuIO(ctx, s.url, commands...)
	check(t, err)
}

// upload is the write half of many tests.
func upload(ctx context.Context, t *testing.T, s *served, size int64) (source string) {
	t.Helper()
	source = random(t, s.lab, "source.raw", size, 4)
	check(t, lab.Upload(ctx, source, s.url))
	return source
}
