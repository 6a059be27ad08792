package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

const mib = 1 << 20

func TestMountIsOutOfReach(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		for _, file := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
			mounts, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(mounts), v.path+" ") {
				t.Fatalf("%s shows the mount", file)
			}
		}
		if err := v.dev.InUse(); !errors.Is(err, device.ErrInUse) {
			t.Fatalf("the device counts as free: %v", err)
		}
		if _, err := coordinator.Open(ctx, v.dev, coordinator.Options{Epoch: 2}); !errors.Is(err, device.ErrInUse) {
			t.Fatalf("mounted twice: %v", err)
		}
		if err := v.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if err := v.dev.InUse(); err != nil {
			t.Fatalf("after unmount: %v", err)
		}
		if _, err := v.List(ctx); !errors.Is(err, coordinator.ErrClosed) {
			t.Fatalf("closed: %v", err)
		}
	})
}

func TestFormatRefusesWhatWouldBeLost(t *testing.T) {
	d := format(t, coordinator.Ext4, 400*mib, loopdev.Options{})
	err := coordinator.Format(ctx, d, coordinator.FormatOptions{})
	if !errors.Is(err, device.ErrHolds) || !strings.Contains(err.Error(), "ext4") {
		t.Fatalf("it must say what is there: %v", err)
	}
	v := mountAt(t, d, 1)
	if err := coordinator.Format(ctx, d, coordinator.FormatOptions{Force: true}); !errors.Is(err, device.ErrInUse) {
		t.Fatalf("formatted a mounted device: %v", err)
	}
	v.Close(ctx)
	if err := coordinator.Format(ctx, d, coordinator.FormatOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if v = mountAt(t, d, 2); v.FS() != coordinator.XFS {
		t.Fatal(v.FS())
	}
}

func TestOpenRefusesWhatIsNoVolume(t *testing.T) {
	d := openDevice(t, loopdev.Scratch(t, 64*mib, loopdev.Options{}).Path)
	if _, err := coordinator.Open(ctx, d, coordinator.Options{Epoch: 1}); !errors.Is(err, coordinator.ErrNoVolume) {
		t.Fatal(err)
	}
}

func TestFirstWriteAllocatesAheadAndGrants(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		o := v.image(t, "vm/disk.raw", 64*mib)
		if l := o.layout(); l.Len() != 1 || l.Bytes(layout.Hole) != 64*mib {
			t.Fatalf("a thin image is a hole: %v", l.Extents())
		}
		data := pattern(4096, 1)
		o.write(t, data, 5*mib+8192)
		l := o.layout()
		if !l.Is(layout.Range{Off: 5 * mib, Len: mib}, layout.State.Writable) || l.Allocated() != mib {
			t.Fatalf("layout after the first write: %v", l.Extents())
		}
		raw := alignedRead(t, v.dev, l, 5*mib+8192, 4096)
		if !bytes.Equal(raw, data) {
			t.Fatal("the granted blocks do not hold what was written")
		}
		if got := o.read(t, 5*mib, 8192); !bytes.Equal(got, make([]byte, 8192)) {
			t.Fatal("what was allocated ahead does not read as zeroes")
		}
		if len(o.recalls) != 1 || o.view.Recalls() != 0 {
			t.Fatalf("recalls %v, open %d", o.recalls, o.view.Recalls())
		}
	})
}

// alignedRead reads what a layout says from the device, past the file system.
func alignedRead(t *testing.T, d *device.Device, l *layout.Layout, off, n int64) []byte {
	t.Helper()
	e, ok := l.At(off)
	if !ok || !e.State.Readable() {
		t.Fatalf("no blocks at %d: %v", off, e)
	}
	p, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(p)
	if _, err := d.ReadAt(p, e.DevOff+off-e.FileOff); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(p)
}

func TestWindowGrowsWithSequentialWrites(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 256*mib)
	for range 5 {
		at := o.layout().Allocated()
		o.write(t, pattern(4096, 1), at)
	}
	if got := o.layout().Allocated(); got <= 5*mib {
		t.Skipf("only %d MiB: the device is slow here", got/mib)
	}
}

func TestUnmapPunchesBlocksAndZeroesEdges(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		for _, r := range []layout.Range{{Off: 512, Len: 20480}, {Off: 4096, Len: 8192}, {Off: 512, Len: 1024},
			{Off: 3584, Len: 1024}, {Off: 0, Len: 512}, {Off: 7680, Len: 512}, {Off: 4096, Len: 4608}, {Off: mib - 1536, Len: 1536}} {
			o := v.image(t, "u", mib)
			want := pattern(mib, 9)
			o.write(t, want, 0)
			if err := v.Unmap(ctx, o.call, []layout.Range{r}); err != nil {
				t.Fatal(err)
			}
			clear(want[r.Off:r.End()])
			if got := o.read(t, 0, mib); !bytes.Equal(got, want) {
				t.Fatalf("%v: wrong content", r)
			}
			for e := range o.layout().All() {
				whole := e.FileOff%4096 == 0 && e.Len%4096 == 0
				if !whole || e.State == layout.Hole && !r.Contains(layout.Range{Off: e.FileOff, Len: e.Len}) {
					t.Fatalf("%v: %v", r, o.layout().Extents())
				}
			}
			v.Detach(ctx, o.call, o.id)
			if err := v.Delete(ctx, v.meta(), "u"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCompareAndWrite(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		o := v.image(t, "c", 8*mib)
		zero, one, two := make([]byte, 512), pattern(512, 1), pattern(512, 2)
		for i, c := range []struct {
			expect, data []byte
			miscompare   int
		}{{zero, one, -1}, {zero, two, 0}, {one, two, -1}, {two, one, -1}} {
			if i == 1 {
				for c.miscompare < 512 && one[c.miscompare] == 0 {
					c.miscompare++
				}
			}
			at, err := v.CompareAndWrite(ctx, o.call, c.expect, c.data, 1536, true)
			if err != nil || at != c.miscompare {
				t.Fatalf("step %d: %d, %v; want %d", i, at, err, c.miscompare)
			}
		}
		if !bytes.Equal(o.read(t, 1536, 512), one) {
			t.Fatal("wrong content")
		}
	})
}

func TestSharedExtentsAreUnsharedBeforeTheyAreWritten(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "base", 16*mib)
	before := pattern(2*mib, 3)
	o.write(t, before, 0)
	if err := v.Clone(ctx, v.meta(), "base", "snap"); err != nil {
		t.Fatal(err)
	}
	if !o.layout().Is(layout.Range{Len: 2 * mib}, func(s layout.State) bool { return s == layout.Shared }) {
		t.Fatalf("after the clone: %v", o.layout().Extents())
	}
	o.write(t, pattern(8192, 4), 4096)
	if e, _ := o.layout().At(4096); e.State != layout.Written {
		t.Fatalf("after the write: %v", o.layout().Extents())
	}
	snap := v.attach(t, "snap")
	if !bytes.Equal(snap.read(t, 0, 2*mib), before) {
		t.Fatal("SnapshotFixed: the clone changed")
	}
}

func TestExt4CannotClone(t *testing.T) {
	v := scratch(t, coordinator.Ext4)
	v.image(t, "a", mib)
	if err := v.Clone(ctx, v.meta(), "a", "b"); !errors.Is(err, coordinator.ErrUnsupported) {
		t.Fatal(err)
	}
	if _, err := v.Stat(ctx, "b"); !errors.Is(err, coordinator.ErrNotFound) {
		t.Fatalf("a failed clone is left: %v", err)
	}
}

func TestFullVolumeIsACleanError(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		o := v.image(t, "big", 1<<30)
		buf := pattern(mib, 5)
		var err error
		n := int64(0)
		for ; n < 1<<30 && err == nil; n += mib {
			err = v.Write(ctx, o.call, buf, n, false)
		}
		if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, coordinator.ErrNoSpace) {
			t.Fatalf("after %d MiB: %v", n/mib, err)
		}
		o.write(t, buf, 0) // what is allocated stays writable
		if err := v.Unmap(ctx, o.call, []layout.Range{{Off: 0, Len: 64 * mib}}); err != nil {
			t.Fatal(err)
		}
		o.write(t, buf, 8*mib)
	})
}

func TestBadPaths(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		v.image(t, "dir/a", mib)
		for _, p := range []string{"", "/etc/x", "../x", "dir/../../x", "dir//a", "./a", "a\x00b", "lost+found/x", "dir/", strings.Repeat("x", 300)} {
			if err := v.Create(ctx, v.meta(), p, protocol.CreateOptions{Size: mib}); !errors.Is(err, coordinator.ErrPath) {
				t.Errorf("create %q: %v", p, err)
			}
			if _, _, err := v.Attach(ctx, "n1", p, &holder{}); !errors.Is(err, coordinator.ErrPath) {
				t.Errorf("open %q: %v", p, err)
			}
		}
		if err := v.Create(ctx, v.meta(), "dir/a/b", protocol.CreateOptions{Size: mib}); err == nil {
			t.Error("an image became a folder")
		}
		if _, _, err := v.Attach(ctx, "n1", "dir", &holder{}); !errors.Is(err, coordinator.ErrPath) {
			t.Errorf("a folder: %v", err)
		}
		if err := v.Create(ctx, v.meta(), "dir/a", protocol.CreateOptions{Size: mib}); !errors.Is(err, coordinator.ErrExists) {
			t.Errorf("twice: %v", err)
		}
		if err := v.Create(ctx, v.meta(), "b", protocol.CreateOptions{Size: 1000}); !errors.Is(err, coordinator.ErrSize) {
			t.Errorf("size 1000: %v", err)
		}
	})
}

func TestNamespace(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		o := v.image(t, "a", 4*mib)
		o.write(t, pattern(4096, 1), 2*mib)
		if err := v.Delete(ctx, v.meta(), "a"); !errors.Is(err, coordinator.ErrInUse) {
			t.Fatalf("deleted in use: %v", err)
		}
		if err := v.Rename(ctx, v.meta(), "a", "b"); !errors.Is(err, coordinator.ErrInUse) {
			t.Fatalf("renamed in use: %v", err)
		}
		if err := v.Resize(ctx, v.meta(), "a", mib, true); !errors.Is(err, coordinator.ErrInUse) {
			t.Fatalf("shrunk in use: %v", err)
		}
		if err := v.Resize(ctx, v.meta(), "a", 8*mib, false); err != nil || o.layout().Size() != 8*mib {
			t.Fatalf("grow: %v, %d", err, o.layout().Size())
		}
		v.Detach(ctx, o.call, o.id)
		if err := v.Resize(ctx, v.meta(), "a", mib, false); !errors.Is(err, coordinator.ErrHoldsData) {
			t.Fatalf("shrunk below its data: %v", err)
		}
		if err := v.Resize(ctx, v.meta(), "a", 4*mib, false); err != nil {
			t.Fatal(err)
		}
		if err := v.Create(ctx, v.meta(), "c", protocol.CreateOptions{Size: mib, Eager: true}); err != nil {
			t.Fatal(err)
		}
		if err := v.Rename(ctx, v.meta(), "a", "c"); !errors.Is(err, coordinator.ErrExists) {
			t.Fatalf("renamed over another: %v", err)
		}
		if err := v.Rename(ctx, v.meta(), "a", "d/e/f"); err != nil {
			t.Fatal(err)
		}
		list, err := v.List(ctx)
		if err != nil || len(list) != 2 || list[0].Path != "c" || list[1].Path != "d/e/f" || list[1].Size != 4*mib || list[0].Used < mib {
			t.Fatalf("%+v, %v", list, err)
		}
		if eager := v.attach(t, "c"); eager.layout().Bytes(layout.Written) != mib {
			t.Fatalf("eager: %v", eager.layout().Extents())
		}
		if err := v.Delete(ctx, v.meta(), "d/e/f"); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Stat(ctx, "d/e/f"); !errors.Is(err, coordinator.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

func TestEpochOrder(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", mib)
	for _, epoch := range []uint64{0, 2} {
		call := protocol.Call{Image: o.call.Image, Epoch: epoch}
		if err := v.Write(ctx, call, make([]byte, 512), 0, false); !errors.Is(err, protocol.ErrStale) || !errors.Is(err, unix.ESTALE) {
			t.Fatalf("epoch %d: %v", epoch, err)
		}
	}
}

func TestRecallBeforeChange(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	o.write(t, pattern(4096, 1), 0)
	o.refuse = errors.New("still writing")
	for name, change := range map[string]func() error{
		"unmap":    func() error { return v.Unmap(ctx, o.call, []layout.Range{{Off: 0, Len: 4096}}) },
		"allocate": func() error { return v.Write(ctx, o.call, pattern(512, 2), 2*mib, false) },
		"compare and write": func() error {
			_, err := v.CompareAndWrite(ctx, o.call, pattern(4096, 1), pattern(4096, 2), 0, false)
			return err
		},
		"clone": func() error { return v.Clone(ctx, v.meta(), "a", "b") },
		"grow":  func() error { return v.Resize(ctx, v.meta(), "a", 8*mib, false) },
	} {
		if err := change(); !errors.Is(err, coordinator.ErrRecall) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.refuse = nil
	if l := o.layout(); l.Size() != 4*mib || l.Allocated() != mib {
		t.Fatalf("changed without the recall: %v", l.Extents())
	}
	if !bytes.Equal(o.read(t, 0, 4096), pattern(4096, 1)) {
		t.Fatal("changed without the recall")
	}
}

func TestCanceledWaitLeavesNothingBehind(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_ = v.Write(gone, o.call, make([]byte, 4096), 0, false)
	o.write(t, pattern(4096, 2), 0)
}

func TestLargeSectors(t *testing.T) {
	for _, fs := range fileSystems {
		v := mountAt(t, format(t, fs, 400*mib, loopdev.Options{BlockSize: 4096}), 1)
		o := v.image(t, "a", 4*mib)
		want := pattern(16384, 6)
		o.write(t, want[:8192], 0)
		o.write(t, want[8192:], 8192)
		copy(want[512:], pattern(1024, 7))
		o.write(t, want[512:1536], 512)
		if got := o.read(t, 0, 16384); !bytes.Equal(got, want) {
			t.Fatal("read, change, write of a sector went wrong")
		}
		if got := o.read(t, 1024, 512); !bytes.Equal(got, want[1024:1536]) {
			t.Fatal("read inside a sector went wrong")
		}
	}
}
