package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// TestOverwriteOfOnceSharedBlocksStays: XFS reserves blocks around each unshared one, and moves a
// later write there even if nothing shares its old block any more. A layout that says otherwise
// sends direct I/O to blocks of others (ExclusiveWrite).
func TestOverwriteOfOnceSharedBlocksStays(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	o.write(t, pattern(mib, 1), 0)
	if err := v.Clone(ctx, v.meta(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	o.write(t, pattern(4096, 2), 0)
	if err := v.Delete(ctx, v.meta(), "b"); err != nil {
		t.Fatal(err)
	}
	v.settle(t)
	v.Detach(ctx, o.call, o.id)
	o = v.attach(t, "a")
	if !o.layout().Is(layout.Range{Len: mib}, layout.State.Writable) {
		t.Fatalf("not alone: %v", o.layout().Extents())
	}
	granted := o.layout()
	for name, write := range map[int64]func(off int64) error{
		64 << 10: func(off int64) error { return v.Write(ctx, o.call, pattern(4096, 3), off, false) },
		32 << 10: func(off int64) error {
			_, err := v.CompareAndWrite(ctx, o.call, pattern(mib, 1)[off:off+4096], pattern(4096, 3), off, false)
			return err
		},
	} {
		if err := write(name); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(alignedRead(t, v.dev, granted, name, 4096), pattern(4096, 3)) {
			t.Errorf("ReadAfterWrite: the layout of %d names blocks that are not the image's any more", name)
		}
		if !bytes.Equal(o.read(t, name, 4096), pattern(4096, 3)) {
			t.Errorf("the file system does not know of the write at %d", name)
		}
	}
}

// settle waits for what the file system does in the background after a delete.
func (v *volume) settle(t *testing.T) {
	t.Helper()
	if _, err := v.Space(ctx); err != nil { // XFS: statfs waits for the inactivation of deleted files
		t.Fatal(err)
	}
}

// growHolder writes behind the old end, directly, as soon as it is granted.
type growHolder struct {
	*holder
	granted func(protocol.Grant)
	recall  func()
}

func (h *growHolder) Recall(ctx context.Context, r protocol.Recall) error {
	h.recall()
	return h.holder.Recall(ctx, r)
}

func (h *growHolder) Publish(g protocol.Grant) {
	h.holder.Publish(g)
	h.granted(g)
}

// TestUnmapBesideGrow has an unmap of the image's ragged end wait for a grow: what is written behind
// the old end by then is not its to free.
func TestUnmapBesideGrow(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		const old = mib + 512
		mine := bytes.Repeat([]byte{0x77}, 512)
		if err := v.Create(ctx, v.meta(), "a", protocol.CreateOptions{Size: old}); err != nil {
			t.Fatal(err)
		}
		h := &growHolder{holder: &holder{}, granted: func(protocol.Grant) {}, recall: func() {}}
		g, id, err := v.Attach(ctx, "n1", "a", h)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { v.Detach(ctx, g.Call, id) }()
		if h.view, err = protocol.NewView(g); err != nil {
			t.Fatal(err)
		}
		o := &open{holder: h.holder, v: v, call: g.Call, id: id}
		o.write(t, pattern(512, 1), mib)
		unmapped := make(chan error, 1)
		h.recall = func() { // the grow's: the unmap comes now
			h.recall = func() {}
			started := make(chan struct{})
			go func() {
				close(started)
				unmapped <- v.Unmap(ctx, o.call, []layout.Range{{Off: mib - 4096, Len: 4096 + 512}})
			}()
			<-started
			unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
		}
		h.granted = func(g protocol.Grant) {
			if e, ok := o.layout().At(old); ok && e.State.Writable() && g.Size == 4*mib {
				h.granted = func(protocol.Grant) {}
				rawWrite(t, v, e.DevOff+old-e.FileOff, mine)
			}
		}
		if err := v.Resize(ctx, v.meta(), "a", 4*mib, false); err != nil {
			t.Fatal(err)
		}
		if err := <-unmapped; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(o.read(t, old, 512), mine) {
			t.Fatal("an unmap took away what lies behind its range")
		}
		if !bytes.Equal(o.read(t, mib, 512), make([]byte, 512)) {
			t.Fatal("the unmapped range does not read as zeroes")
		}
	})
}

func rawWrite(t *testing.T, v *volume, off int64, p []byte) {
	t.Helper()
	q, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(q)
	copy(q, p)
	if _, err := v.dev.WriteAt(q[:len(p)], off); err != nil {
		t.Error(err)
	}
}

// prepared is a volume whose files were made by the plain kernel.
func prepared(t *testing.T, mkfs []string, populate func(dir string) error) (*loopdev.Loop, error) {
	t.Helper()
	l := loopdev.Scratch(t, 400*mib, loopdev.Options{})
	if out, err := exec.Command(mkfs[0], append(mkfs[1:len(mkfs):len(mkfs)], l.Path)...).CombinedOutput(); err != nil {
		t.Skipf("%v: %v: %s", mkfs, err, out)
	}
	dir := t.TempDir()
	fs := strings.TrimPrefix(mkfs[0], "mkfs.")
	if out, err := exec.Command("mount", "-t", fs, l.Path, dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out)
	}
	err := populate(dir)
	if uerr := unix.Unmount(dir, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if err := openDevice(t, l.Path).WaitUnused(ctx); err != nil {
		t.Fatal(err)
	}
	return l, err
}

func runAll(commands ...[]string) error {
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", c, err, out)
		}
	}
	return nil
}

func filled(dir, name string) (string, error) {
	p := filepath.Join(dir, name)
	return p, os.WriteFile(p, pattern(mib, 1), 0o644)
}

// TestFilesThatCannotBeImages makes files whose blocks do not simply hold their content: such a file
// must be refused with a word on what to do, or none of it be granted for writing.
func TestFilesThatCannotBeImages(t *testing.T) {
	chattr := func(flag string) func(string) error {
		return func(dir string) error {
			p := filepath.Join(dir, "f")
			if err := os.WriteFile(p, nil, 0o644); err != nil {
				return err
			}
			if flag != "+i" && flag != "+a" {
				if err := runAll([]string{"chattr", flag, p}); err != nil {
					return err
				}
			}
			if err := os.WriteFile(p, pattern(mib, 1), 0o644); err != nil {
				return err
			}
			if flag == "+i" || flag == "+a" {
				return runAll([]string{"chattr", flag, p})
			}
			return nil
		}
	}
	ext4 := func(features ...string) []string { return append([]string{"mkfs.ext4", "-q", "-F"}, features...) }
	for name, c := range map[string]struct {
		mkfs []string
		make func(dir string) error
		want string // in the error; "" if the file is usable
	}{
		"immutable":     {ext4(), chattr("+i"), "chattr -i"},
		"append only":   {ext4(), chattr("+a"), "chattr -a"},
		"xfs immutable": {[]string{"mkfs.xfs", "-q", "-f"}, chattr("+i"), "chattr -i"},
		"inline data": {ext4("-O", "inline_data", "-I", "256"), func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "f"), nil, 0o644), os.Truncate(filepath.Join(dir, "f"), 512))
		}, ""},
		"verity": {ext4("-O", "verity"), func(dir string) error {
			p, err := filled(dir, "f")
			return errors.Join(err, enableVerity(p))
		}, "verity"},
		"bigalloc":     {ext4("-O", "bigalloc", "-C", "65536"), func(dir string) error { _, err := filled(dir, "f"); return err }, ""},
		"block mapped": {ext4("-O", "^extent,^64bit,^flex_bg"), func(dir string) error { _, err := filled(dir, "f"); return err }, ""},
		"small blocks": {ext4("-b", "1024"), func(dir string) error { _, err := filled(dir, "f"); return err }, ""},
		"small xfs":    {[]string{"mkfs.xfs", "-q", "-f", "-b", "size=1024"}, func(dir string) error { _, err := filled(dir, "f"); return err }, ""},
		"beyond end":   {[]string{"mkfs.xfs", "-q", "-f"}, beyondEnd, ""},
		"beyond end 4": {ext4(), beyondEnd, ""},
		"extent size": {[]string{"mkfs.xfs", "-q", "-f"}, func(dir string) error {
			return errors.Join(runAll([]string{"xfs_io", "-c", "extsize 4m", dir}), beyondEnd(dir))
		}, ""},
		"cow ext. size": {[]string{"mkfs.xfs", "-q", "-f"}, func(dir string) error {
			return errors.Join(runAll([]string{"xfs_io", "-c", "cowextsize 1m", dir}), beyondEnd(dir))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := prepared(t, c.mkfs, c.make)
			if err != nil {
				t.Skip(err)
			}
			v := mountAt(t, openDevice(t, l.Path), 1)
			if c.want != "" {
				if _, _, err := v.Attach(ctx, "n1", "f", &holder{}); !errors.Is(err, coordinator.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("it must be refused with %q: %v", c.want, err)
				}
				return
			}
			exercise(t, v)
		})
	}
}

func beyondEnd(dir string) error {
	p, err := filled(dir, "f")
	return errors.Join(err, runAll([]string{"fallocate", "--keep-size", "-o", "1048576", "-l", "8388608", p}))
}

// enableVerity is FS_IOC_ENABLE_VERITY with SHA-256 and blocks of 4 KiB.
func enableVerity(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	arg := [128]byte{0: 1, 4: 1, 9: 0x10}
	return ioctlBytes(f, 0x40806685, arg[:])
}

// exercise writes an image in every way, also behind its old end, and compares the layout's blocks
// with the file after each.
func exercise(t *testing.T, v *volume) {
	t.Helper()
	o := v.attach(t, "f")
	size := o.layout().Size()
	want := o.read(t, 0, int(size))
	if err := v.Resize(ctx, v.meta(), "f", 6*mib+512, false); err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 6*mib+512-size)...)
	for i, r := range []layout.Range{{Off: 512, Len: 1024}, {Off: size - 512, Len: 1024}, {Off: 3*mib + 1536, Len: 512},
		{Off: 6 * mib, Len: 512}, {Off: 2 * mib, Len: 2 * mib}, {Off: 5*mib + 512, Len: 4096}} {
		p := pattern(int(r.Len), byte(i))
		copy(want[r.Off:], p)
		o.write(t, p, r.Off)
		if i%2 == 0 {
			hole := layout.Range{Off: r.Off + 512, Len: r.Len/2&^511 + 66048}
			hole = hole.Intersect(layout.Range{Len: o.layout().Size()})
			clear(want[hole.Off:hole.End()])
			if err := v.Unmap(ctx, o.call, []layout.Range{hole}); err != nil {
				t.Fatal(err)
			}
		}
		if got := o.read(t, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatalf("after step %d the file is wrong", i)
		}
		compareBlocks(t, v, o.layout(), want)
	}
}

// compareBlocks reads all of an image by its layout.
func compareBlocks(t *testing.T, v *volume, l *layout.Layout, want []byte) {
	t.Helper()
	for e := range l.All() {
		switch {
		case e.State.Zero():
			if !bytes.Equal(want[e.FileOff:e.End()], make([]byte, e.Len)) {
				t.Fatalf("%v is not zero", e)
			}
		case e.State.Readable():
			if !bytes.Equal(alignedRead(t, v.dev, l, e.FileOff, e.Len), want[e.FileOff:e.End()]) {
				t.Fatalf("%v: the blocks hold something else", e)
			}
		}
	}
}

// TestJournalledFileIsRefused sets the flag on the device: chattr +j needs a capability.
func TestJournalledFileIsRefused(t *testing.T) {
	l, err := prepared(t, []string{"mkfs.ext4", "-q", "-F"}, func(dir string) error { _, err := filled(dir, "f"); return err })
	if err == nil {
		err = runAll([]string{"debugfs", "-w", "-R", "set_inode_field f flags 0x84000", l.Path})
	}
	if err != nil {
		t.Skip(err)
	}
	v := mountAt(t, openDevice(t, l.Path), 1)
	if _, _, err := v.Attach(ctx, "n1", "f", &holder{}); !errors.Is(err, coordinator.ErrUnsupported) || !strings.Contains(err.Error(), "chattr -j") {
		t.Fatal(err)
	}
}

// TestOddNames opens and lists what people keep on a volume.
func TestOddNames(t *testing.T) {
	for _, fs := range []string{"mkfs.xfs", "mkfs.ext4"} {
		odd := []string{"new\nline", "ünïcödé", ".hidden", "-dash", "a b", "\xff\xfe", strings.Repeat("x", 255), "d/e/f"}
		l, err := prepared(t, []string{fs, map[string]string{"mkfs.xfs": "-f", "mkfs.ext4": "-F"}[fs]}, func(dir string) error {
			err := os.MkdirAll(filepath.Join(dir, "d/e"), 0o755)
			for _, name := range odd {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), pattern(4096, 1), 0o644))
			}
			return errors.Join(err, deeperThanAPath(dir), os.Link(filepath.Join(dir, "a b"), filepath.Join(dir, "link")),
				unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Symlink("a b", filepath.Join(dir, "symlink")))
		})
		if err != nil {
			t.Fatal(err)
		}
		v := mountAt(t, openDevice(t, l.Path), 1)
		list, err := v.List(ctx)
		if err != nil || len(list) != len(odd)+1 {
			t.Errorf("%s: %v, %+v", fs, err, list)
		}
		for _, name := range odd {
			o := v.attach(t, name)
			o.write(t, pattern(512, 2), 512)
		}
		for _, name := range []string{"fifo", "symlink", "d"} {
			if _, _, err := v.Attach(ctx, "n1", name, &holder{}); !errors.Is(err, coordinator.ErrPath) {
				t.Errorf("%s %s: %v", fs, name, err)
			}
		}
		one, two := v.attach(t, "a b"), v.attach(t, "link")
		two.write(t, pattern(512, 3), 0)
		if one.call != two.call || !bytes.Equal(one.read(t, 0, 512), pattern(512, 3)) || len(one.recalls) != len(two.recalls) {
			t.Errorf("%s: two names of one file are two images", fs)
		}
		if err := v.Delete(ctx, v.meta(), "link"); !errors.Is(err, coordinator.ErrInUse) {
			t.Errorf("%s: deleted by its other name: %v", fs, err)
		}
	}
}

// deeperThanAPath makes folders whose path is longer than the kernel takes in one piece.
func deeperThanAPath(dir string) error {
	name := strings.Repeat("y", 200)
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	for i := 0; i < 25 && err == nil; i++ {
		if err = unix.Mkdirat(fd, name, 0o755); err == nil {
			next, nerr := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
			err = errors.Join(nerr, unix.Close(fd))
			fd = next
		}
	}
	return errors.Join(err, unix.Close(fd))
}

// TestMountOptionsOfTheVolume: what an ext4 superblock sets as default must not weaken the volume.
func TestMountOptionsOfTheVolume(t *testing.T) {
	for _, option := range []string{"journal_data", "nobarrier"} {
		l := loopdev.Scratch(t, 400*mib, loopdev.Options{})
		if err := runAll([]string{"mkfs.ext4", "-q", "-F", l.Path}, []string{"tune2fs", "-o", option, l.Path}); err != nil {
			t.Skip(err)
		}
		v := mountAt(t, openDevice(t, l.Path), 1)
		got, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(l.Path) + "/options")
		if err != nil {
			t.Skip(err)
		}
		for _, want := range []string{"data=ordered", "barrier"} {
			if !strings.Contains("\n"+string(got), "\n"+want+"\n") {
				t.Errorf("with the default %s the volume lacks %s:\n%s", option, want, got)
			}
		}
		v.image(t, "a", 4*mib)
	}
}

// TestVolumesThatACrashWouldRuin are refused.
func TestVolumesThatACrashWouldRuin(t *testing.T) {
	for name, c := range map[string]struct {
		make [][]string
		want string
	}{
		"no journal": {[][]string{{"mkfs.ext4", "-q", "-F", "-O", "^has_journal"}}, "tune2fs -O has_journal"},
		"read only":  {[][]string{{"mkfs.ext4", "-q", "-F"}, {"tune2fs", "-O", "read-only"}}, "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			l := loopdev.Scratch(t, 400*mib, loopdev.Options{})
			for _, m := range c.make {
				if err := runAll(append(m[:len(m):len(m)], l.Path)); err != nil {
					t.Skip(err)
				}
			}
			d := openDevice(t, l.Path)
			v, err := coordinator.Open(ctx, d, coordinator.Options{Epoch: 1})
			if err == nil {
				v.Close(ctx)
			}
			if !errors.Is(err, coordinator.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v", err)
			}
			if err := d.InUse(); err != nil {
				t.Fatalf("still mounted: %v", err)
			}
		})
	}
}

// TestMountErrorsAreTheKernels opens an XFS whose log is elsewhere.
func TestMountErrorsAreTheKernels(t *testing.T) {
	l, log := loopdev.Scratch(t, 400*mib, loopdev.Options{}), loopdev.Scratch(t, 100*mib, loopdev.Options{})
	if err := runAll([]string{"mkfs.xfs", "-q", "-f", "-l", "logdev=" + log.Path, l.Path}); err != nil {
		t.Skip(err)
	}
	_, err := coordinator.Open(ctx, openDevice(t, l.Path), coordinator.Options{Epoch: 1})
	if !errors.Is(err, unix.EINVAL) {
		t.Fatalf("%v", err)
	}
	t.Log(err)
}

func ioctlBytes(f *os.File, request uintptr, arg []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(unsafe.SliceData(arg)))); errno != 0 {
		return errno
	}
	return nil
}
