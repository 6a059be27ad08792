package sys

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newRing makes a ring on this thread; the test stays on it.
func newRing(t *testing.T, c Config) *Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// one submits what was built and returns the next completion.
func one(t *testing.T, r *Ring) CQE {
	t.Helper()
	for range 100 {
		if e := r.Wait(time.Second, true); e != 0 && e != unix.EINTR {
			t.Fatalf("wait: %v", e)
		}
		if c := r.Reap(nil); len(c) == 1 {
			return c[0]
		} else if len(c) > 1 {
			t.Fatalf("%d completions", len(c))
		}
	}
	t.Fatal("no completion")
	return CQE{}
}

func build(t *testing.T, r *Ring) *SQE {
	t.Helper()
	e := r.Next()
	if e == nil {
		t.Fatal("submission queue full")
	}
	return e
}

// TestSizes holds the Go structs to the kernel's.
func TestSizes(t *testing.T) {
	for name, s := range map[string][2]uintptr{
		"io_uring_sqe":           {unsafe.Sizeof(SQE{}), 64},
		"io_uring_cqe":           {unsafe.Sizeof(CQE{}), 16},
		"io_uring_params":        {unsafe.Sizeof(params{}), 120},
		"io_uring_rsrc_register": {unsafe.Sizeof(rsrcRegister{}), 32},
		"io_uring_rsrc_update":   {unsafe.Sizeof(rsrcUpdate{}), 16},
		"getevents_arg":          {unsafe.Offsetof(extArg{}.spec), sizeofExtArg},
		"sqe.user_data":          {unsafe.Offsetof(SQE{}.userData), 32},
		"sqe.buf_index":          {unsafe.Offsetof(SQE{}.bufIndex), 40},
		"sqe.addr3":              {unsafe.Offsetof(SQE{}.addr3), 48},
	} {
		if s[0] != s[1] {
			t.Errorf("%s: %d, the kernel's is %d", name, s[0], s[1])
		}
	}
}

func TestSetupRefusesBadSizes(t *testing.T) {
	if r, err := Setup(Config{Entries: 0, CQEntries: 8}); err == nil {
		_ = r.Close()
		t.Fatal("a ring of no entries was made")
	}
}

func TestNopEveryFlagSet(t *testing.T) {
	const best = SetupSubmitAll | SetupSingleIssuer | SetupDeferTaskrun | SetupTaskrunFlag
	for _, flags := range []uint32{0, SetupCoopTaskrun | SetupTaskrunFlag, best, best | SetupNoSQArray} {
		r := newRing(t, Config{Entries: 8, CQEntries: 16, Flags: flags})
		if err := r.RegisterRingFD(); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(40) { // round the ring several times
			e := build(t, r)
			e.Nop()
			e.Tag(i)
			if c := one(t, r); c.UserData != i || c.Res != 0 {
				t.Fatalf("flags %#x: completion %+v of %d", flags, c, i)
			}
		}
	}
}

// TestBuildersClear proves that nothing of an SQE's previous user is left.
func TestBuildersClear(t *testing.T) {
	var dirty SQE
	for i := range unsafe.Slice((*byte)(unsafe.Pointer(&dirty)), 64) {
		unsafe.Slice((*byte)(unsafe.Pointer(&dirty)), 64)[i] = 0xff
	}
	buf, ts, msg := make([]byte, 16), &Timespec{}, &unix.Msghdr{}
	for name, fill := range map[string]func(e *SQE){
		"nop":       func(e *SQE) { e.Nop() },
		"read":      func(e *SQE) { e.Read(1, buf, 2) },
		"readfixed": func(e *SQE) { e.ReadFixed(1, buf, 2, 3) },
		"write":     func(e *SQE) { e.Write(1, buf, 2, 3) },
		"fixed":     func(e *SQE) { e.WriteFixed(1, buf, 2, 3, 4) },
		"fsync":     func(e *SQE) { e.Fdatasync(1) },
		"fallocate": func(e *SQE) { e.Fallocate(1, 2, 3, 4) },
		"discard":   func(e *SQE) { e.Discard(1, 2, 3) },
		"poll":      func(e *SQE) { e.Poll(1) },
		"multishot": func(e *SQE) { e.PollMultishot(1) },
		"timeout":   func(e *SQE) { e.Timeout(ts) },
		"cancel":    func(e *SQE) { e.Cancel(1) },
		"recv":      func(e *SQE) { e.Recv(1, buf, true) },
		"send":      func(e *SQE) { e.Send(1, buf) },
		"sendmsg":   func(e *SQE) { e.Sendmsg(1, msg) },
	} {
		var clean SQE
		used := dirty
		fill(&clean)
		fill(&used)
		if clean != used {
			t.Errorf("%s leaves %+v, on a clean entry %+v", name, used, clean)
		}
	}
}

func TestFixedFilesAndBuffers(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 16})
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := r.RegisterBuffers([][]byte{mem[:4096], mem[4096:]}); err != nil {
		t.Fatal(err)
	}
	if err := r.RegisterFiles(4); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdateFile(3, int32(f.Fd())); err != nil {
		t.Fatal(err)
	}
	copy(mem[4096:], "lunar")
	for _, step := range []struct {
		fill func(e *SQE)
		want int32
	}{
		{func(e *SQE) { e.WriteFixed(3, mem[4096:4101], 10, unix.RWF_DSYNC, 1) }, 5},
		{func(e *SQE) { e.Fdatasync(3) }, 0},
		{func(e *SQE) { e.ReadFixed(3, mem[:5], 10, 0) }, 5},
		{func(e *SQE) { e.ReadFixed(3, mem[:5], 10, 1) }, -int32(unix.EFAULT)}, // not in that buffer
		{func(e *SQE) { e.Read(2, mem[:5], 10) }, -int32(unix.EBADF)},          // an empty place
	} {
		step.fill(build(t, r))
		if c := one(t, r); c.Res != step.want {
			t.Fatalf("result %d, want %d", c.Res, step.want)
		}
	}
	if !bytes.Equal(mem[:5], []byte("lunar")) {
		t.Fatalf("read %q", mem[:5])
	}
	if err := r.UpdateFile(3, -1); err != nil {
		t.Fatal(err)
	}
	build(t, r).Fdatasync(3)
	if c := one(t, r); c.Res != -int32(unix.EBADF) {
		t.Fatalf("fdatasync of a removed file: %d", c.Res)
	}
}

func TestWaitLimit(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 16})
	start := time.Now()
	if e := r.Wait(30*time.Millisecond, true); e != unix.ETIME && e != unix.EINTR {
		t.Fatalf("wait without I/O: %v", e)
	} else if e == unix.ETIME && time.Since(start) < 25*time.Millisecond {
		t.Fatalf("woke after %v", time.Since(start))
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 16})
	ts := NewTimespec(time.Hour)
	e := build(t, r)
	e.Timeout(&ts)
	e.Tag(7)
	e = build(t, r)
	e.Cancel(7)
	e.Tag(8)
	got := map[uint64]int32{}
	for len(got) < 2 {
		if e := r.Wait(time.Second, true); e != 0 && e != unix.EINTR {
			t.Fatal(e)
		}
		for _, c := range r.Reap(nil) {
			got[c.UserData] = c.Res
		}
	}
	if got[7] != -int32(unix.ECANCELED) || got[8] != 0 {
		t.Fatalf("results %v", got)
	}
}

// TestOverflow posts more completions than the queue holds: none is lost.
func TestOverflow(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 8})
	const total = 64
	for i := range uint64(total) {
		e := r.Next()
		if e == nil {
			if errno := r.Submit(false); errno != 0 && errno != unix.EBUSY {
				t.Fatal(errno)
			}
			if e = r.Next(); e == nil {
				t.Fatalf("no entry after a submit; %d pending", r.Pending())
			}
		}
		e.Nop()
		e.Tag(i)
	}
	seen := map[uint64]bool{}
	for rounds := 0; len(seen) < total && rounds < 100; rounds++ {
		if errno := r.Submit(true); errno != 0 && errno != unix.EBUSY {
			t.Fatal(errno)
		}
		for _, c := range r.Reap(nil) {
			seen[c.UserData] = true
		}
	}
	if len(seen) != total {
		t.Fatalf("%d of %d completions", len(seen), total)
	}
	if r.Ready() != 0 || r.NeedsEnter() {
		t.Fatal("something is left")
	}
}

func TestNextWhenFull(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 16})
	for range 8 {
		build(t, r).Nop()
	}
	if r.Next() != nil {
		t.Fatal("a ninth entry of eight")
	}
	if r.Pending() != 8 {
		t.Fatalf("%d pending", r.Pending())
	}
}

func TestReapDoesNotAllocate(t *testing.T) {
	r := newRing(t, Config{Entries: 8, CQEntries: 16})
	dst := make([]CQE, 0, 16)
	if n := testing.AllocsPerRun(100, func() {
		e := r.Next()
		e.Nop()
		e.Tag(1)
		_ = r.Wait(time.Second, true)
		dst = r.Reap(dst[:0])
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
