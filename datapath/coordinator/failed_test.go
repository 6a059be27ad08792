package coordinator_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// failures counts what Failed is told.
type failures struct {
	n    atomic.Int32
	last atomic.Value
}

func (f *failures) failed(err error) {
	f.last.Store(err)
	f.n.Add(1)
}

// twoPaths is one file behind two loop devices: two nodes' paths to one LUN.
func twoPaths(t testing.TB, fs coordinator.FSType) (a, b *loopdev.Loop) {
	t.Helper()
	a = loopdev.Scratch(t, 400*mib, loopdev.Options{})
	if err := coordinator.Format(ctx, openDevice(t, a.Path), coordinator.FormatOptions{FS: fs}); err != nil {
		t.Fatal(err)
	}
	b, err := loopdev.Attach(backingFile(t, a), loopdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Detach(); err != nil {
			t.Error(err)
		}
	})
	return a, b
}

func backingFile(t testing.TB, l *loopdev.Loop) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.Path), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(b))
}

// shutDown does what a guard process does with a descriptor of the mount.
func shutDown(t testing.TB, f *os.File) {
	t.Helper()
	flags := uint32(2) // no log flush
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Fatal(errno)
	}
}

// TestFailedTerm has the file system die under every kind of call: the term ends with it, once, and no
// caller takes that for an answer.
func TestFailedTerm(t *testing.T) {
	for _, fs := range fileSystems {
		for _, cut := range []string{"shutdown", "path"} {
			t.Run(string(fs)+"/"+cut, func(t *testing.T) { testFailedTerm(t, fs, cut) })
		}
	}
}

func testFailedTerm(t *testing.T, fs coordinator.FSType, cut string) {
	calls := map[string]func(v *volume, o *open) error{
		"read":      func(v *volume, o *open) error { return v.Read(ctx, o.call, make([]byte, 4096), 0) },
		"overwrite": func(v *volume, o *open) error { return v.Write(ctx, o.call, make([]byte, 4096), 0, false) },
		"allocate":  func(v *volume, o *open) error { return v.Write(ctx, o.call, make([]byte, 4096), 2*mib, false) },
		"unmap":     func(v *volume, o *open) error { return v.Unmap(ctx, o.call, []layout.Range{{Len: 4096}}) },
		"compare": func(v *volume, o *open) error {
			_, err := v.CompareAndWrite(ctx, o.call, pattern(4096, 1), make([]byte, 4096), 0, false)
			return err
		},
		"create": func(v *volume, _ *open) error {
			return v.Create(ctx, v.meta(), "c", protocol.CreateOptions{Size: mib})
		},
		"delete": func(v *volume, _ *open) error { return v.Delete(ctx, v.meta(), "b") },
		"resize": func(v *volume, _ *open) error { return v.Resize(ctx, v.meta(), "a", 8*mib, false) },
	}
	for name, call := range calls {
		if cut == "path" && (name == "delete" || name == "resize" || fs == coordinator.Ext4 && name != "overwrite" && name != "allocate") {
			continue // the same way
		}
		var f failures
		a, b := twoPaths(t, fs)
		v := mountWith(t, openDevice(t, a.Path), coordinator.Options{Epoch: 1, Members: []protocol.NodeID{"n1"}, Failed: f.failed})
		if err := v.Acknowledge(ctx, "n1", 1); err != nil {
			t.Fatal(err)
		}
		o := v.image(t, "a", 4*mib)
		o.write(t, pattern(4096, 1), 0)
		if err := v.Create(ctx, v.meta(), "b", protocol.CreateOptions{Size: mib}); err != nil {
			t.Fatal(err)
		}
		if cut == "path" {
			if err := a.Limit(4096); err != nil {
				t.Fatal(err)
			}
		} else {
			fd, err := v.MountFD()
			if err != nil {
				t.Fatal(err)
			}
			shutDown(t, fd)
			fd.Close()
		}
		err := call(v, o)
		bypasses := cut == "shutdown" && name == "overwrite" // it does not see the file system, unlike its guard
		if !bypasses && (!errors.Is(err, protocol.ErrStale) || errors.Is(err, unix.EIO) || f.n.Load() != 1) {
			t.Errorf("%s: %v; failed %d times: %v", name, err, f.n.Load(), f.last.Load())
		}
		for again, call := range calls {
			if err := call(v, o); !bypasses && !errors.Is(err, protocol.ErrStale) {
				t.Errorf("%s after %s: %v", again, name, err)
			}
		}
		if n := f.n.Load(); n != 1 {
			t.Errorf("%s: failed %d times", name, n)
		}
		next := mountWith(t, openDevice(t, b.Path), coordinator.Options{Epoch: 2, Twin: true}) // beside the dead mount
		if got := next.attach(t, "a").read(t, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) && !bypasses {
			t.Errorf("%s: the next term does not see what was written", name)
		}
		if err := next.Handover(ctx); err != nil {
			t.Error(err)
		}
		if err := v.Close(ctx); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}

// TestTwinsNeedLeave: the kernel itself refuses one XFS twice, also through another device, unless told.
func TestTwinsNeedLeave(t *testing.T) {
	a, b := twoPaths(t, coordinator.XFS)
	v := mountAt(t, openDevice(t, a.Path), 1)
	if err := v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	dev := openDevice(t, b.Path)
	if c, err := coordinator.Open(ctx, dev, coordinator.Options{Epoch: 2}); err == nil {
		t.Error("mounted twice", c.Close(ctx))
	}
	mountWith(t, dev, coordinator.Options{Epoch: 2, Twin: true}).image(t, "a", mib)
}

// TestFailureWakesWhoWaits has a change wait for a holder when the term fails.
func TestFailureWakesWhoWaits(t *testing.T) {
	var f failures
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, Failed: f.failed})
	o := v.image(t, "a", 4*mib)
	h := &silent{}
	if _, _, err := v.Attach(ctx, "n2", "a", h); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := v.Write(ctx, o.call, pattern(512, 1), 0, false); !errors.Is(err, protocol.ErrStale) {
				t.Error(err)
			}
		})
	}
	eventually(t, "the recall", func() bool { return h.asked.Load() > 0 })
	if err := v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Stat(ctx, "a"); !errors.Is(err, protocol.ErrStale) {
		t.Fatal(err)
	}
	all.Wait()
}

// TestHandover has the term end while images are open and calls come.
func TestHandover(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) { testHandover(t, fs) })
	}
}

func testHandover(t *testing.T, fs coordinator.FSType) {
	a, b := twoPaths(t, fs)
	v := mountWith(t, openDevice(t, a.Path), coordinator.Options{Epoch: 1, Failed: func(err error) { t.Error(err) }})
	o := v.image(t, "a", 160*mib)
	var all sync.WaitGroup
	var written [4]int64 // chunks that were acknowledged
	for i := range written {
		all.Go(func() {
			var err error
			for n := int64(0); n < 40 && err == nil; n++ {
				if err = v.Write(ctx, o.call, pattern(8192, byte(i)), (int64(i)*40+n)*mib, false); err == nil {
					written[i]++
				}
			}
			if err != nil && !errors.Is(err, protocol.ErrStale) {
				t.Error(err)
			}
		})
	}
	time.Sleep(30 * time.Millisecond)
	began := time.Now()
	if err := v.Handover(ctx); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	all.Wait()
	if len(o.recalls) > 0 && o.view.Recalls() > 0 {
		t.Errorf("a recall was left open: %v", o.recalls)
	}
	if err := v.Close(ctx); !errors.Is(err, coordinator.ErrClosed) {
		t.Error(err)
	}
	began = time.Now()
	next := mountWith(t, openDevice(t, b.Path), coordinator.Options{Epoch: 2})
	t.Logf("%s: handed over in %v, mounted in %v, %v chunks", fs, took, time.Since(began), written)
	n := next.attach(t, "a")
	for i, chunks := range written {
		for c := range chunks {
			if !bytes.Equal(n.read(t, (int64(i)*40+c)*mib, 8192), pattern(8192, byte(i))) {
				t.Errorf("writer %d: chunk %d is lost", i, c)
			}
		}
	}
	if got, want := n.layout().Extents(), o.layout().Extents(); len(got) == 0 || got[0] != want[0] {
		t.Errorf("the layout that the holder keeps: %v, the file system has %v", want[0], got[0])
	}
}

// TestHandoverIsBounded has a call that does not end.
func TestHandoverIsBounded(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	reached, stuck := make(chan struct{}, 8), make(chan struct{})
	v.OnStep(func(string) { reached <- struct{}{}; <-stuck })
	created := make(chan error, 1)
	go func() { created <- v.Create(ctx, v.meta(), "a", protocol.CreateOptions{Size: mib}) }()
	<-reached
	if err := v.Handover(within(t, 10*time.Millisecond)); !errors.Is(err, coordinator.ErrInUse) {
		t.Fatal(err)
	}
	close(stuck)
	if err := <-created; err == nil {
		t.Fatal("created after the file system was shut down")
	}
	if err := v.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.dev.InUse(); errors.Is(err, device.ErrInUse) {
		t.Fatal(err)
	}
}
