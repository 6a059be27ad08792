package iotrace

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func load(t *testing.T, o Options) *Trace {
	t.Helper()
	tr := Load(o)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	if len(tr.Missing()) > 0 {
		t.Fatal(tr.Missing())
	}
	return tr
}

// disk is a loop device of 1 MiB, open for direct I/O.
func disk(t *testing.T) (*os.File, uint64) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lunar-iotrace")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", path).Run(); err != nil { //nolint:noctx // the test's context has ended
			t.Error(err)
		}
	})
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, st.Rdev
}

func readDirect(t *testing.T, f *os.File, times int) {
	t.Helper()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	for i := range times {
		if _, err := f.ReadAt(page, int64(i%16)*4096); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *Histogram) count() (n uint64) {
	for _, c := range h.Buckets {
		n += c
	}
	return n
}

// TestDevices: reads of a device that is watched are counted, of another one not, and of one that is watched again from
// zero.
func TestDevices(t *testing.T) {
	tr := load(t, Options{})
	f, dev := disk(t)
	other, otherDev := disk(t)
	if err := tr.SetDevices([]uint64{dev}); err != nil {
		t.Fatal(err)
	}
	readDirect(t, f, 100)
	readDirect(t, other, 100)
	all, err := tr.Devices()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Device != dev {
		t.Fatalf("devices %+v, want %d", all, dev)
	}
	if n := all[0].Times[Read].count(); n != 100 || all[0].Times[Read].Sum == 0 || all[0].Times[Write].count() != 0 {
		t.Errorf("%d reads in %d ns", n, all[0].Times[Read].Sum)
	}
	if err := tr.SetDevices([]uint64{otherDev}); err != nil {
		t.Fatal(err)
	}
	readDirect(t, f, 10)
	if all, err = tr.Devices(); err != nil || len(all) != 1 || all[0].Device != otherDev || all[0].Times[Read].count() != 0 {
		t.Errorf("devices %+v, error %v", all, err)
	}
}

func TestManyDevices(t *testing.T) {
	tr := load(t, Options{})
	var all []uint64
	for i := range MaxDevices + 1 {
		all = append(all, unix.Mkdev(500, uint32(i)))
	}
	if err := tr.SetDevices(all[:MaxDevices]); err != nil {
		t.Fatal(err)
	}
	if err := tr.SetDevices(all); err == nil || !strings.Contains(err.Error(), "500:256") {
		t.Errorf("error %v", err)
	}
}

// TestPeers: a connection to a port that is watched has round trips, another one has none.
func TestPeers(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		watched, other := listen(t, address), listen(t, address)
		tr := load(t, Options{Ports: []uint16{port(watched)}})
		mine, others := talk(t, watched), talk(t, other)
		all, err := tr.Peers()
		if err != nil {
			t.Fatal(err)
		}
		var found bool
		for _, p := range all {
			found = found || p.Peer == mine && p.Times.count() >= 10 && p.Times.Sum > 0
			if p.Peer == others {
				t.Errorf("%s: a connection to another port has round trips", address)
			}
		}
		if !found {
			t.Errorf("%s: %v has no round trips: %+v", address, mine, all)
		}
	}
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// talk exchanges some bytes, and says from which address.
func talk(t *testing.T, l net.Listener) netip.AddrPort {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	host := "127.0.0.1"
	if strings.HasPrefix(l.Addr().String(), "[::1]") {
		host = "::1"
	}
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr(host), port(l)).String())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		b := make([]byte, 100)
		if _, err = c.Write(b); err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	c.Close()
	<-done
	return netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
}

// TestRing: the process's own reads by io_uring are counted.
func TestRing(t *testing.T) {
	tr := load(t, Options{})
	f, _ := disk(t)
	r, err := tr.Ring()
	if err != nil {
		t.Fatal(err)
	}
	readByRing(t, f, 50)
	times, err := r.Times()
	if err != nil {
		t.Fatal(err)
	}
	if n := times[Read].count(); n != 50 || times[Read].Sum == 0 || times[Write].count() != 0 {
		t.Errorf("%d reads in %d ns", n, times[Read].Sum)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqCPU, sqIdle, features, wq uint32
	_                                                        [3]uint32
	sq, cq                                                   struct {
		head, tail, mask, entries, flags, x, array, y uint32
		_                                             uint64
	}
}

// readByRing does reads of a page one by one, as plainly as io_uring allows.
func readByRing(t *testing.T, f *os.File, times int) {
	t.Helper()
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer unix.Close(int(fd))
	region := func(offset int64, size int) []byte {
		b, err := unix.Mmap(int(fd), offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rings, entries := region(0, 1<<16), region(0x10000000, 4*64)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _, _ = unix.Munmap(page), unix.Munmap(entries), unix.Munmap(rings) }()
	word := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[offset])) }
	for i := range times {
		clear(entries[:64])
		entries[0] = 22 // IORING_OP_READ
		*(*int32)(unsafe.Pointer(&entries[4])) = int32(f.Fd())
		*(*uint64)(unsafe.Pointer(&entries[8])) = uint64(i%16) * 4096
		*(*uint64)(unsafe.Pointer(&entries[16])) = uint64(uintptr(unsafe.Pointer(&page[0])))
		*(*uint32)(unsafe.Pointer(&entries[24])) = 4096
		*word(p.sq.array + 4*(uint32(i)&3)) = 0
		*word(p.sq.tail)++
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 1, 1, 1, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		*word(p.cq.head) = *word(p.cq.tail)
	}
}

// TestMissing: what cannot be is said, and nothing else fails.
func TestMissing(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"off", Options{Off: "trace.bpf is off"}, "trace.bpf is off"},
		{"no BTF", Options{BTF: filepath.Join(t.TempDir(), "vmlinux")}, "CONFIG_DEBUG_INFO_BTF"},
		{"ports", Options{Ports: make([]uint16, MaxPorts+1)}, "17 ports"},
	} {
		tr := Load(c.o)
		if len(tr.Missing()) != 1 || !strings.Contains(tr.Missing()[0], c.want) {
			t.Errorf("%s: missing is %q", c.name, tr.Missing())
		}
		if err := tr.SetDevices([]uint64{1}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if peers, err := tr.Peers(); err != nil || len(peers) != 0 {
			t.Errorf("%s: peers %v, error %v", c.name, peers, err)
		}
		if err := tr.Close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := tr.Devices(); err == nil {
			t.Errorf("%s: a closed one tells times", c.name)
		}
	}
}

// TestRights: without rights it says which are missing.
func TestRights(t *testing.T) {
	said := make(chan []string)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			said <- []string{err.Error()}
			return
		}
		tr := Load(Options{})
		_, err := tr.Ring()
		said <- append(tr.Missing(), err.Error())
	}()
	select {
	case missing := <-said:
		for _, m := range missing {
			if !strings.Contains(m, "CAP_BPF and CAP_PERFMON") {
				t.Errorf("missing is %q", m)
			}
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
	}
}
