package heartbeat

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestOptions(t *testing.T) {
	good := Options{Number: 1, Incarnation: 1, Keys: make([][KeySize]byte, 1)}
	bad := map[string]func(*Options){
		"number":      func(o *Options) { o.Number = 0 },
		"incarnation": func(o *Options) { o.Incarnation = 0 },
		"no key":      func(o *Options) { o.Keys = nil },
		"keys":        func(o *Options) { o.Keys = make([][KeySize]byte, MaxKeys+1) },
		"short tick":  func(o *Options) { o.Tick = time.Microsecond },
		"long tick":   func(o *Options) { o.Tick = time.Minute },
		"silent":      func(o *Options) { o.Silent = -1 },
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range bad {
		o := good
		change(&o)
		if _, err := Load(o); err == nil || errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// withoutCapability runs f on a thread that lacks one, and ends the thread.
func withoutCapability(t *testing.T, c uint, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var data [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		err := unix.Capget(&header, &data[0])
		if err != nil {
			done <- err
			return
		}
		for _, drop := range []uint{c, unix.CAP_SYS_ADMIN} {
			data[drop/32].Effective &^= 1 << (drop % 32)
			data[drop/32].Permitted &^= 1 << (drop % 32)
		}
		if err := unix.Capset(&header, &data[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// TestRights: each capability is missed by its name, and what the kernel itself refuses is said the same way.
func TestRights(t *testing.T) {
	o := Options{Number: 1, Incarnation: 1, Keys: make([][KeySize]byte, 1)}
	for _, n := range needed {
		err := withoutCapability(t, n.number, func() error { return closeIfLoaded(Load(o)) })
		if !errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), n.name) {
			t.Errorf("without %s: %v", n.name, err)
		}
		err = withoutCapability(t, n.number, func() error {
			o.fill()
			h := &Heartbeat{options: o, attached: map[int]attachment{}, slotOf: map[Path]uint32{}}
			err := h.load()
			return errors.Join(err, h.abandon())
		})
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("the kernel, without %s: %v", n.name, err)
		}
	}
	enough := func() error { return closeIfLoaded(Load(o)) }
	if err := withoutCapability(t, unix.CAP_SYS_ADMIN, enough); err != nil {
		t.Errorf("with the three capabilities alone: %v", err)
	}
}

func closeIfLoaded(h *Heartbeat, err error) error {
	if err != nil {
		return err
	}
	return h.Close()
}

func TestNoBTF(t *testing.T) {
	_, err := Load(Options{Number: 1, Incarnation: 1, Keys: make([][KeySize]byte, 1), BTF: "/nonexistent/vmlinux"})
	if !errors.Is(err, ErrUnsupported) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF") {
		t.Errorf("got %v", err)
	}
}

// TestRefused: the kernel's answers that are final are ErrUnsupported, others are not.
func TestRefused(t *testing.T) {
	for err, final := range map[error]bool{
		unix.EPERM: true, unix.EACCES: true, unix.ENOSYS: true, ebpf.ErrNotSupported: true, unix.ENOMEM: false, unix.ENODEV: false,
	} {
		if got := refused("try", err); errors.Is(got, ErrUnsupported) != final || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestPaths: 64 peers on 3 networks by both families fit; what is too much, or wrong, is refused whole.
func TestPaths(t *testing.T) {
	h := loopback(t, Options{Number: 1}, 1)
	var paths []Path
	for peer := range uint16(64) {
		for network := range uint16(3) {
			paths = append(paths, Path{peer + 2, network, IPv4}, Path{peer + 2, network, IPv6})
		}
	}
	if err := h.SetPaths(paths); err != nil {
		t.Fatal(err)
	}
	if got := len(h.Stamps(nil)); got != 384 {
		t.Errorf("%d stamps", got)
	}
	f := frame{kind: 1, from: paths[0].Peer, to: 1, network: 0, family: IPv4, inc: 1, seq: 1}
	if err := h.name(1, 0); err != nil {
		t.Fatal(err)
	}
	run(t, h.objects.HbIngress, packet(IPv4, f.bytes(testKey())))
	for name, bad := range map[string][]Path{
		"too many":   make([]Path, MaxPaths+1),
		"ourselves":  {{1, 1, IPv4}},
		"nobody":     {{0, 1, IPv4}},
		"family":     {{2, 1, 5}},
		"two alike":  {{2, 1, IPv4}, {2, 1, IPv4}},
		"one is bad": append([]Path{{0, 0, 0}}, paths...),
	} {
		if err := h.SetPaths(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var s Stamp
	if !h.Stamp(paths[0], &s) || s.Beats != 1 {
		t.Errorf("a refused call changed the stamps: %+v", s)
	}
	full := make([]Path, 0, MaxPaths)
	for i := range uint16(MaxPaths) {
		full = append(full, Path{1000 + i, 9, IPv6})
	}
	for _, next := range [][]Path{full, paths, full[:1], nil} {
		if err := h.SetPaths(next); err != nil {
			t.Fatal(err)
		}
		if got := len(h.Stamps(nil)); got != len(next) {
			t.Errorf("%d stamps, want %d", got, len(next))
		}
		for _, s := range h.Stamps(nil) {
			if s.Beats != 0 || s.LastBeat != 0 || s.Sequence != 0 {
				t.Errorf("a path has the stamp of one before it: %+v", s)
			}
		}
	}
}

// expectGone proves that close takes all programs, maps and links of h out of the kernel.
func expectGone(t *testing.T, h *Heartbeat, end func() error) {
	t.Helper()
	programs, maps, links := identities(t, h)
	if err := end(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no program, map or link is left", func() bool {
		left := 0
		for _, id := range programs {
			left += still(ebpf.NewProgramFromID(id))
		}
		for _, id := range maps {
			left += still(ebpf.NewMapFromID(id))
		}
		for _, id := range links {
			left += still(link.NewFromID(id))
		}
		return left == 0
	})
}

func still[T interface{ Close() error }](found T, err error) int {
	if err != nil {
		return 0
	}
	_ = found.Close()
	return 1
}

func identities(t *testing.T, h *Heartbeat) (programs []ebpf.ProgramID, maps []ebpf.MapID, links []link.ID) {
	t.Helper()
	o := &h.objects
	for _, p := range []*ebpf.Program{o.HbIngress, o.HbEgress, o.HbStart, o.HbStop} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		programs = append(programs, id)
	}
	for _, m := range []*ebpf.Map{o.HbEvents, o.HbHidden, o.HbInterfaces, o.HbNode, o.HbPaths, o.HbSettings, o.HbSlots, o.HbTimers} {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		maps = append(maps, id)
	}
	for _, a := range h.attached {
		for _, l := range []link.Link{a.ingress, a.egress} {
			info, err := l.Info()
			if err != nil {
				t.Fatal(err)
			}
			links = append(links, info.ID)
		}
	}
	return programs, maps, links
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestNothingLeft: after Close no program, map, link, mapping or descriptor is left, and every call says so.
func TestNothingLeft(t *testing.T) {
	one, two := newHost(t, 1), newHost(t, 2)
	join(t, 1, one, two)
	newNode(t, one, Options{}).Close() // what the library opens once and keeps is open now
	before := descriptors(t)
	n := newNode(t, one, Options{})
	n.watch([]uint16{1}, 2)
	events, err := n.Events()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Close(); err != nil {
		t.Fatal(err)
	}
	expectGone(t, n.Heartbeat, n.Close)
	eventually(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
	var s Stamp
	if n.Stamp(Path{2, 1, IPv4}, &s) || n.Stamps(nil) != nil || n.Node() != (Node{}) || n.Close() != nil {
		t.Error("a closed one gives stamps")
	}
	_, err = n.Events()
	for _, err := range []error{err, n.Attach(1, 1), n.Detach(1), n.SetPaths(nil), n.SetKeys(make([][KeySize]byte, 1))} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
	}
}

// TestReadWhileWritten: a reader never sees half of a change, though the kernel writes all the time.
func TestReadWhileWritten(t *testing.T) {
	path := Path{7, 2, IPv4}
	h := loopback(t, Options{Number: 3}, 2, path)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for seq := uint64(1); ; seq++ {
			select {
			case <-stop:
				return
			default:
			}
			f := frame{kind: 1, from: 7, to: 3, network: 2, family: IPv4, inc: 1, seq: seq}
			_, _, _ = h.objects.HbIngress.Test(packet(IPv4, f.bytes(testKey())))
		}
	})
	reads := 0
	for since := Now(); Now()-since < 300*time.Millisecond; reads++ {
		var s Stamp
		if !h.Stamp(path, &s) {
			t.Fatal("no stamp")
		}
		if s.Sequence != s.Beats || (s.Beats > 0 && s.Daemon != s.LastBeat) {
			t.Fatalf("half of a change: %+v", s)
		}
	}
	close(stop)
	wait.Wait()
	var s Stamp
	if h.Stamp(path, &s); s.Beats < 10 || reads < 10 {
		t.Errorf("%d beats, %d reads", s.Beats, reads)
	}
}

// withoutBPF runs f on a thread of its own on which bpf(2) fails, as in a kernel without it or under a filter.
func withoutBPF(t *testing.T, errno syscall.Errno, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and ends with the filter
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // seccomp_data.nr
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// TestNoBPF: a kernel that has no bpf(2), or does not let us.
func TestNoBPF(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o := Options{Number: 1, Incarnation: 1, Keys: make([][KeySize]byte, 1)}
	for errno, told := range map[syscall.Errno]string{unix.ENOSYS: "CONFIG_BPF_SYSCALL", unix.EPERM: "bpf(2) is refused"} {
		err := withoutBPF(t, errno, func() error { return closeIfLoaded(Load(o)) })
		if !errors.Is(err, ErrUnsupported) || !errors.Is(err, errno) || !strings.Contains(err.Error(), told) {
			t.Errorf("bpf(2) fails with %v: %v", errno, err)
		}
	}
}
