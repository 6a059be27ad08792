package datapath

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
)

// withPlainMount mounts the device with the plain kernel, in a mount namespace of its own, on a
// thread that ends with it.
func withPlainMount(t *testing.T, path string, fsType coordinator.FSType, fn func(dir string) error) {
	t.Helper()
	dir := t.TempDir()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread with its namespace ends here
		result <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount(path, dir, string(fsType), 0, ""); err != nil {
				return fmt.Errorf("plain mount: %w", err)
			}
			defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
			return fn(dir)
		}()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	waitUnused(t, path)
}

// sums is the checksum of every regular file below dir.
func sums(dir string) (map[string][32]byte, error) {
	out := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, dir+"/")] = sha256.Sum256(b)
		return err
	})
	return out, err
}

// TestEjectedVolumeIsAnOrdinaryFileSystem compares what the plain kernel reads after an eject with
// what was written through the image, and lets the file system's own checker look.
func TestEjectedVolumeIsAnOrdinaryFileSystem(t *testing.T) {
	each(t, func(t *testing.T, fsType coordinator.FSType) {
		loop := scratchDevice(t, fsType, 400*mib)
		n := start(t, loop.Path, 1)
		im := n.create("vm/a.raw", 48*mib)
		want := make([]byte, 48*mib)
		for i := range 60 {
			off, p := int64(i*i%90)*512*1001, pattern(512*(1+i*5), byte(i))
			copy(want[off:], p)
			write(t, im, p, off)
		}
		if err := im.Discard(512*1001+512, 3*mib); err != nil {
			t.Fatal(err)
		}
		clear(want[512*1001+512:][:3*mib])
		if err := im.Close(ctx); err != nil {
			t.Fatal(err)
		}
		n.stop()
		withPlainMount(t, loop.Path, fsType, func(dir string) error {
			got, err := sums(dir)
			if got["vm/a.raw"] != sha256.Sum256(want) {
				err = errors.Join(err, errors.New("the file differs from the image"))
			}
			return err
		})
		checkFileSystem(t, loop.Path, fsType)
	})
}

func checkFileSystem(t *testing.T, path string, fsType coordinator.FSType) {
	t.Helper()
	args := map[coordinator.FSType][]string{
		coordinator.XFS: {"xfs_repair", "-n", path}, coordinator.Ext4: {"e2fsck", "-f", "-n", path}}[fsType]
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// TestExistingVolumeKeepsItsFiles makes files with the plain kernel; a node that opens the volume
// finds them, reads what they have, and changes none.
func TestExistingVolumeKeepsItsFiles(t *testing.T) {
	each(t, func(t *testing.T, fsType coordinator.FSType) {
		loop := scratchDevice(t, fsType, 400*mib)
		content := pattern(5*mib, 3)
		copy(content[2*mib:4*mib], make([]byte, 2*mib))
		var before map[string][32]byte
		withPlainMount(t, loop.Path, fsType, func(dir string) (err error) {
			sparse, err := os.Create(filepath.Join(dir, "disk.raw"))
			if err != nil {
				return err
			}
			_, err = sparse.WriteAt(content[:2*mib], 0)
			_, err2 := sparse.WriteAt(content[4*mib:], 4*mib)
			err = errors.Join(err, err2, sparse.Close(), os.Mkdir(filepath.Join(dir, "d"), 0o755),
				os.WriteFile(filepath.Join(dir, "d", "notes.txt"), []byte("mine"), 0o644),
				os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Symlink("d", filepath.Join(dir, "dl")))
			before, _ = sums(dir)
			return err
		})
		n := start(t, loop.Path, 1)
		im := n.open("disk.raw")
		if !bytes.Equal(read(t, im, 0, 5*mib), content) {
			t.Fatal("wrong content")
		}
		for _, p := range []string{"link", "dl/notes.txt"} {
			if _, err := n.vol.OpenImage(ctx, p); !errors.Is(err, coordinator.ErrPath) {
				t.Errorf("%s: %v", p, err)
			}
		}
		if _, err := n.vol.OpenImage(ctx, "d/notes.txt"); !errors.Is(err, coordinator.ErrSize) {
			t.Errorf("a file of 4 bytes: %v", err)
		}
		if err := im.Close(ctx); err != nil {
			t.Fatal(err)
		}
		n.stop()
		withPlainMount(t, loop.Path, fsType, func(dir string) error {
			after, err := sums(dir)
			if len(after) != len(before) || after["disk.raw"] != before["disk.raw"] || after["d/notes.txt"] != before["d/notes.txt"] {
				err = errors.Join(err, fmt.Errorf("files changed: %v, were %v", after, before))
			}
			return err
		})
	})
}
