package namespace

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestExpress has reads and writes of sectors done on the lane, and all others as before.
func TestExpress(t *testing.T) {
	b := newBench(t, true)
	b.make("Volume1/x", pattern(1<<20, 1))
	b.make("Volume2/y", pattern(1<<20, 2))
	x, y := b.open("Volume1/x", unix.O_RDWR), b.open("Volume2/y", unix.O_RDWR|unix.O_DSYNC)
	posted := func() uint32 { return b.ns.bridge.next.Load() }
	before := posted()
	got := make([]byte, 8192)
	for off := int64(0); off < 1<<20; off += 64 << 10 {
		_, err := unix.Pwrite(x, pattern(4096, 9), off)
		b.must(err)
		_, err = unix.Pread(x, got, off)
		b.must(err)
		if !bytes.Equal(got[:4096], pattern(4096, 9)) || !bytes.Equal(got[4096:], pattern(1<<20, 1)[off+4096:][:4096]) {
			t.Fatalf("wrong bytes at %d", off)
		}
		_, err = unix.Pread(y, got, off)
		b.must(err)
		if !bytes.Equal(got, pattern(1<<20, 2)[off:][:8192]) {
			t.Fatalf("wrong bytes of the other image at %d", off)
		}
	}
	if n := posted() - before; n != 0 {
		t.Errorf("%d I/Os went round about", n)
	}
	for name, round := range map[string]func() (int, error){
		"no sectors":     func() (int, error) { return unix.Pread(x, got[:100], 7) },
		"beyond the end": func() (int, error) { return unix.Pwrite(x, got[:512], 1<<20) },
		"O_DSYNC":        func() (int, error) { return unix.Pwrite(y, got[:512], 0) },
	} {
		before := posted()
		_, err := round()
		b.must(err)
		if posted() == before {
			t.Errorf("%s went by the lane alone", name)
		}
	}
	b.closeFD(x)
	b.closeFD(y)
	b.forgets()
}

// TestNoWatch has a lane that cannot wait for the device: go-fuse serves.
func TestNoWatch(t *testing.T) {
	b := newBench(t, false)
	b.close()
	ns, err := Mount(Options{
		Mount: b.dir, Tree: b.tree, Lanes: b.tree.lanes, Post: b.post, Buffers: b.pool,
		Watch: func(int, int, func()) (func(func()), error) { return nil, errors.New("no room") },
	})
	b.must(err)
	b.ns = ns
	b.make("Volume1/x", pattern(4096, 1))
	if got := b.size("Volume1/x"); got != 4096 || b.ns.express != nil {
		t.Errorf("size %d, express %v", got, b.ns.express)
	}
	b.close()
}

// forgets wants no handle to be left, soon: the kernel tells of a close(2) after it has returned.
func (b *bench) forgets() {
	b.t.Helper()
	x := b.ns.express
	left := func() int {
		x.mu.RLock()
		defer x.mu.RUnlock()
		return len(x.handles) + len(x.opening)
	}
	for until := time.Now().Add(10 * time.Second); left() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			b.t.Fatalf("%d handles are left", left())
		}
	}
}

// slow has I/O of an image end later, when the test lets it.
func (b *bench) slow(p place) *holder {
	h := &holder{post: b.post}
	b.tree.mu.Lock()
	b.tree.images[p].later = h.add
	b.tree.mu.Unlock()
	return h
}

// holder keeps the ends of I/Os.
type holder struct {
	post func(int, func()) error

	mu    sync.Mutex // guards what follows
	fns   []func()
	count int
	open  bool
}

func (h *holder) add(lane int, fn func()) {
	h.mu.Lock()
	h.count++
	if open := h.open; !open {
		h.fns = append(h.fns, func() { _ = h.post(lane, fn) })
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	fn()
}

func (h *holder) begun() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// release lets all end, in the order opposite to their begin, and what comes later at once.
func (h *holder) release() {
	h.mu.Lock()
	h.open = true
	fns := h.fns
	h.fns = nil
	h.mu.Unlock()
	for i := range fns {
		fns[len(fns)-1-i]()
	}
}

// TestMoreThanTheLaneTakes has more I/O at once than there is room for on the lane, and then than is read from the
// kernel; a name is looked up meanwhile. All of it ends, and the bytes are where they belong.
func TestMoreThanTheLaneTakes(t *testing.T) { byEachWay(t, testMoreThanTheLaneTakes) }

func testMoreThanTheLaneTakes(t *testing.T, b *bench) {
	const jobs = MaxInFlight + MaxRequestBytes/MaxIO + 40
	b.make("Volume1/x", make([]byte, jobs*4096))
	b.make("Volume2/y", pattern(512, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer b.closeFD(fd)
	held := b.slow(place{"v1", "x"})
	var all sync.WaitGroup
	var failed atomic.Int32
	for i := range jobs {
		all.Go(func() {
			if n, err := unix.Pwrite(fd, pattern(4096, byte(i)), int64(i)*4096); n != 4096 || err != nil {
				failed.Add(1)
			}
		})
	}
	for until := time.Now().Add(10 * time.Second); held.begun() < MaxInFlight; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d I/Os have begun", held.begun())
		}
	}
	held.release()
	all.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d writes failed", n)
	}
	got := make([]byte, jobs*4096)
	for off := 0; off < len(got); {
		n, err := unix.Pread(fd, got[off:], int64(off))
		b.must(err)
		off += n
	}
	for i := range jobs {
		if !bytes.Equal(got[i*4096:][:4096], pattern(4096, byte(i))) {
			t.Errorf("write %d is not where it belongs", i)
		}
	}
	if got := b.size("Volume2/y"); got != 512 {
		t.Errorf("size %d", got)
	}
}

// TestCloseUnderIO unmounts while programs read and write, one I/O being slow: what was begun ends, all calls
// return, and nothing is left.
func TestCloseUnderIO(t *testing.T) { byEachWay(t, testCloseUnderIO) }

func testCloseUnderIO(t *testing.T, b *bench) {
	b.make("Volume1/x", make([]byte, 1<<20))
	b.make("Volume1/slow", make([]byte, 4096))
	held := b.slow(place{"v1", "slow"})
	var all sync.WaitGroup
	var served atomic.Int32
	program := func(fd int, off int64) {
		defer func() { _ = unix.Close(fd) }() // its connection goes
		for data := pattern(4096, byte(off>>12)); ; served.Add(1) {
			if _, err := unix.Pwrite(fd, data, off); err != nil {
				return
			}
			got := make([]byte, 4096)
			if _, err := unix.Pread(fd, got, off); err != nil {
				return
			}
			if !bytes.Equal(got, data) {
				t.Errorf("other bytes at %d", off)
				return
			}
		}
	}
	slow := b.open("Volume1/slow", unix.O_RDWR)
	all.Go(func() { program(slow, 0) })
	for i := range 8 {
		fd := b.open("Volume1/x", unix.O_RDWR)
		all.Go(func() { program(fd, int64(i)*4096) })
	}
	for until := time.Now().Add(10 * time.Second); served.Load() < 100 || held.begun() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d rounds, %d slow", served.Load(), held.begun())
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- b.ns.Close(t.Context()) }()
	all.Wait() // their calls fail although one I/O still runs
	select {
	case err := <-ended:
		t.Errorf("closed below an I/O: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	held.release()
	select {
	case err := <-ended:
		b.must(err)
	case <-time.After(10 * time.Second):
		t.Fatal("it does not close")
	}
	b.tree.mu.Lock()
	opens := b.tree.images[place{"v1", "x"}].opens + b.tree.images[place{"v1", "slow"}].opens
	b.tree.mu.Unlock()
	if opens != 0 {
		t.Errorf("images are open %d times", opens)
	}
}

// TestErrorsOnLane has every other I/O fail, many at once: each program gets its own answer.
func TestErrorsOnLane(t *testing.T) {
	b := newBench(t, true)
	b.make("Volume1/good", pattern(4096, 1))
	b.make("Volume1/bad", pattern(4096, 2))
	b.tree.mu.Lock()
	b.tree.images[place{"v1", "bad"}].fail = errors.New("medium")
	b.tree.mu.Unlock()
	good, bad := b.open("Volume1/good", unix.O_RDWR), b.open("Volume1/bad", unix.O_RDWR)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			got := make([]byte, 4096)
			for range 20 {
				if _, err := unix.Pread(bad, got, 0); !errors.Is(err, unix.EIO) {
					t.Errorf("bad: %v", err)
				}
				if n, err := unix.Pread(good, got, 0); err != nil || !bytes.Equal(got[:n], pattern(4096, 1)) {
					t.Errorf("good: %d bytes, %v", n, err)
				}
			}
		})
	}
	all.Wait()
	b.closeFD(good)
	b.closeFD(bad)
	b.forgets()
}
