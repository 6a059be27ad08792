package datapath

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

func TestHolesAreReadWithoutIO(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 400*mib)
		n := start(t, loop.Path, 1)
		im := n.create("thin", 256*mib)
		before, _ := sectors(t, loop.Path)
		if got := read(t, im, 0, 8*mib); !bytes.Equal(got, make([]byte, 8*mib)) {
			t.Fatal("a hole reads as zeroes")
		}
		after, _ := sectors(t, loop.Path)
		if s := n.vol.Status(); after != before || s.DirectRead.IOs+s.RedirectedRead.IOs != 0 {
			t.Fatalf("%d sectors were read, status %+v", after-before, s)
		}
	})
}

func TestFirstWriteIsRedirectedTheNextOnesAreDirect(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		n := start(t, scratchDevice(t, fs, 400*mib).Path, 1)
		im := n.create("vm/a.raw", 64*mib)
		for i := range 16 {
			write(t, im, pattern(4096, byte(i)), int64(i)*4096)
		}
		for i := range 16 {
			if !bytes.Equal(read(t, im, int64(i)*4096, 4096), pattern(4096, byte(i))) {
				t.Fatal("wrong content", i)
			}
		}
		s := n.vol.Status()
		if s.State != volume.Direct || s.RedirectedWrite.IOs != 1 || s.DirectWrite.IOs != 15 || s.DirectRead.IOs != 16 {
			t.Fatalf("%+v", s)
		}
		if used, free := im.Space(); used != mib || free <= 0 {
			t.Fatalf("used %d, free %d", used, free)
		}
		if mapped, n := im.Mapped(4096); !mapped || n != mib-4096 {
			t.Fatalf("mapped %v for %d", mapped, n)
		}
		if mapped, n := im.Mapped(mib); mapped || n != 63*mib {
			t.Fatalf("mapped %v for %d", mapped, n)
		}
	})
}

func TestIOSpansExtents(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", 16*mib)
	write(t, im, pattern(8192, 1), 2*mib) // Written, in the middle of a hole
	if err := im.Discard(2*mib+256<<10, 4096); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*mib)
	copy(want[mib:], pattern(8192, 1))
	if !bytes.Equal(read(t, im, mib, 4*mib), want) {
		t.Fatal("read over hole, written, hole")
	}
	want = pattern(3*mib, 9)
	write(t, im, want, mib+512)
	if !bytes.Equal(read(t, im, mib+512, 3*mib), want) {
		t.Fatal("write over hole, written, hole")
	}
}

func TestBadCalls(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", mib)
	for _, c := range []struct {
		off int64
		n   int
	}{{-512, 512}, {mib, 512}, {mib - 512, 1024}, {100, 512}, {0, 100}, {1 << 62, 512}} {
		if _, err := im.WriteAt(make([]byte, c.n), c.off); !errors.Is(err, volume.ErrRange) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := n.vol.Close(); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("closed with an image open: %v", err)
	}
	if err := n.vol.Delete(ctx, "a"); !errors.Is(err, coordinator.ErrInUse) {
		t.Errorf("deleted in use: %v", err)
	}
	again := n.open("a")
	if again != im {
		t.Error("two opens share an image")
	}
	if err := again.Close(ctx); err != nil {
		t.Fatal(err)
	}
	write(t, im, pattern(512, 1), 0)
	if err := im.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := im.ReadAt(make([]byte, 512), 0); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := im.Close(ctx); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if err := n.vol.Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
}

func TestResizeWhileOpen(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		n := start(t, scratchDevice(t, fs, 400*mib).Path, 1)
		im := n.create("a", mib+512)
		write(t, im, pattern(1024, 1), mib-512)
		if err := n.vol.Resize(ctx, "a", 4*mib, false); err != nil || im.Size() != 4*mib {
			t.Fatal(err, im.Size())
		}
		write(t, im, pattern(512, 2), mib+1024)
		want := append(append(pattern(1024, 1), make([]byte, 512)...), pattern(512, 2)...)
		if !bytes.Equal(read(t, im, mib-512, 2048), want) {
			t.Fatal("wrong content at the old end")
		}
	})
}

func TestSnapshotStaysWhenItsOriginIsWritten(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", 16*mib)
	before := pattern(4*mib, 1)
	write(t, im, before, 0)
	if err := n.vol.Clone(ctx, "a", "snap"); err != nil {
		t.Fatal(err)
	}
	s := n.vol.Status()
	write(t, im, pattern(mib, 2), mib)
	if now := n.vol.Status(); now.DirectWrite != s.DirectWrite {
		t.Fatal("a shared extent was written directly")
	}
	write(t, im, pattern(mib, 3), mib) // its own blocks now
	if now := n.vol.Status(); now.DirectWrite == s.DirectWrite {
		t.Fatal("an unshared extent is not written directly")
	}
	if !bytes.Equal(read(t, n.open("snap"), 0, 4*mib), before) {
		t.Fatal("SnapshotFixed: the snapshot changed")
	}
	if !bytes.Equal(read(t, im, mib, mib), pattern(mib, 3)) || !bytes.Equal(read(t, im, 0, mib), before[:mib]) {
		t.Fatal("the origin is wrong")
	}
}

func TestFullVolume(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		n := start(t, scratchDevice(t, fs, 400*mib).Path, 1)
		im := n.create("a", 1<<30)
		buf := pattern(mib, 1)
		var err error
		for off := int64(0); off < 1<<30 && err == nil; off += mib {
			_, err = im.WriteAt(buf, off)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		write(t, im, buf, 0)
		if !bytes.Equal(read(t, im, 0, mib), buf) {
			t.Fatal("what was written is lost")
		}
	})
}

// TestNoLeak fills the device with a pattern before it is formatted: none of it may ever be read.
func TestNoLeak(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 400*mib)
		fill(t, loop.Path, 0xEE)
		formatDevice(t, loop.Path, fs)
		n := start(t, loop.Path, 1)
		im := n.create("a", 64*mib)
		mark := bytes.Repeat([]byte{0x11}, 512)
		for i := range 40 {
			write(t, im, mark, int64(i)*1_500_160+int64(i%8)*512)
			if i%7 == 3 {
				if err := im.Discard(int64(i-1)*1_500_160, 300<<10); err != nil {
					t.Fatal(err)
				}
			}
		}
		if at := bytes.IndexByte(read(t, im, 0, 64*mib), 0xEE); at >= 0 {
			t.Fatalf("NoLeak: old content of the device at %d", at)
		}
	})
}

func fill(t *testing.T, path string, b byte) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := bytes.Repeat([]byte{b}, 4*mib)
	for off := int64(0); ; off += int64(len(buf)) {
		if _, err := unix.Pwrite(fd, buf, off); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Fsync(fd); err != nil {
		t.Fatal(err)
	}
}

// TestCompareAndWriteCounts lets many lanes count by compare and write, beside direct writes around:
// no step may be lost.
func TestCompareAndWriteCounts(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", 16*mib)
	const workers, steps = 6, 20
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for range steps {
				countUp(t, n, im, w%2)
				write(t, im, pattern(4096, byte(w)), 4096+int64(w)*4096)
			}
		})
	}
	all.Wait()
	if got := number(read(t, im, 1024, 512)); got != workers*steps {
		t.Fatalf("Atomic: counted %d of %d", got, workers*steps)
	}
}

func number(p []byte) int { return int(p[0]) | int(p[1])<<8 }

func sector(v int) []byte {
	p := make([]byte, 512)
	p[0], p[1] = byte(v), byte(v>>8)
	return p
}

// countUp raises the number at 1024 by one.
func countUp(t *testing.T, n *node, im *volume.Image, lane int) {
	for {
		was := number(read(t, im, 1024, 512))
		type answer struct {
			at  int
			err error
		}
		result := make(chan answer, 1)
		err := n.engine.Ring(lane).Post(func() {
			im.CompareAndWrite(lane, sector(was), sector(was+1), 1024, false, func(at int, err error) { result <- answer{at, err} })
		})
		if err != nil {
			t.Error(err)
			return
		}
		switch a := <-result; {
		case a.err != nil:
			t.Error(a.err)
			return
		case a.at < 0:
			return
		}
	}
}

func TestRedirectByRequest(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	if err := n.vol.Redirect(ctx, volume.UserRequest, true); err != nil {
		t.Fatal(err)
	}
	s := n.vol.Status()
	if s.State != volume.Redirected || s.Reason.String() != "UserRequest" {
		t.Fatalf("%+v", s)
	}
	write(t, im, pattern(mib, 2), 0)
	if !bytes.Equal(read(t, im, 0, mib), pattern(mib, 2)) || im.Sync() != nil {
		t.Fatal("wrong content")
	}
	now := n.vol.Status()
	if now.DirectRead != s.DirectRead || now.DirectWrite != s.DirectWrite || now.RedirectedRead.Bytes != mib {
		t.Fatalf("%+v", now)
	}
	if err := n.vol.Redirect(ctx, volume.UserRequest, false); err != nil {
		t.Fatal(err)
	}
	write(t, im, pattern(4096, 3), 0)
	if now = n.vol.Status(); now.State != volume.Direct || now.DirectWrite == s.DirectWrite {
		t.Fatalf("%+v", now)
	}
}

func TestThickAndEager(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		n := start(t, scratchDevice(t, fs, 400*mib).Path, 1)
		for path, o := range map[string]protocol.CreateOptions{
			"thick": {Size: 8 * mib, Thick: true}, "eager": {Size: 8 * mib, Eager: true}} {
			if err := n.vol.Create(ctx, path, o); err != nil {
				t.Fatal(err)
			}
			im := n.open(path)
			if used, _ := im.Space(); used != 8*mib {
				t.Fatalf("%s uses %d", path, used)
			}
			write(t, im, pattern(4096, 1), mib)
			if !bytes.Equal(read(t, im, 0, mib), make([]byte, mib)) {
				t.Fatal(path, "does not read as zeroes")
			}
			if s := n.vol.Status(); (s.DirectWrite.IOs > 0) != (path == "eager") && path == "eager" {
				t.Fatalf("%s: %+v", path, s)
			}
		}
	})
}
