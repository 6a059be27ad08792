package heartbeat

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// pair is two nodes, 1 and 2, on the given networks.
func pair(t testing.TB, o Options, networks ...uint16) (a, b *node) {
	t.Helper()
	one, two := newHost(t, 1), newHost(t, 2)
	for _, n := range networks {
		join(t, n, one, two)
	}
	a, b = newNode(t, one, o), newNode(t, two, o)
	a.watch(networks, 2)
	b.watch(networks, 1)
	return a, b
}

// TestExchange: two nodes beat by each network and family, to link-local addresses too.
func TestExchange(t *testing.T) {
	a, b := pair(t, Options{}, 1, 2)
	const beats = 20
	for range beats {
		for _, p := range []struct{ from, to *node }{{a, b}, {b, a}} {
			for _, network := range []uint16{1, 2} {
				p.from.beat(p.to.host, Path{p.to.number, network, IPv4}, false)
				p.from.beat(p.to.host, Path{p.to.number, network, IPv6}, false)
				p.from.beat(p.to.host, Path{p.to.number, network, IPv6}, true)
			}
		}
	}
	for _, n := range []*node{a, b} {
		for _, s := range n.Stamps(nil) {
			want := uint64(beats)
			if s.Family == IPv6 {
				want *= 2
			}
			eventually(t, "all beats and answers have come", func() bool {
				s = n.stamp(s.Path)
				return s.Beats == want && s.Answers == want && s.Sent == want
			})
			checkStamp(t, s)
		}
		if node := n.Node(); node.Answered != 6*beats || node.Forged+node.Foreign+node.Malformed+node.Misplaced+node.Unknown != 0 {
			t.Errorf("node %d: %+v", n.number, node)
		}
	}
	if got := len(a.Stamps(nil)); got != 4 {
		t.Errorf("%d stamps, want 4", got)
	}
}

func checkStamp(t *testing.T, s Stamp) {
	t.Helper()
	now, trips := Now(), uint64(0)
	for _, n := range s.RTT {
		trips += uint64(n)
	}
	switch {
	case s.Gaps+s.Reordered+s.Duplicates+s.Replayed+s.Unsolicited+s.Forged+s.Restarts != 0:
		t.Errorf("something went wrong: %+v", s)
	case !s.Confirmed || s.Silent || s.Incarnation != 100 || s.Sequence != s.Beats:
		t.Errorf("state: %+v", s)
	case s.FirstSeen == 0 || s.LastBeat <= s.FirstSeen || s.LastBeat > now || s.LastAnswer == 0 || s.LastAnswer > now || s.LastSent > now:
		t.Errorf("times, at %v: %+v", now, s)
	case s.Daemon < s.LastBeat || s.Daemon > now:
		t.Errorf("the daemon's time: %+v", s)
	case trips != s.Answers || s.MinRTT <= 0 || s.LastRTT < s.MinRTT || s.LastRTT > time.Second:
		t.Errorf("round trips: %+v", s)
	}
}

// TestPlainPeer: a peer without programs gets the kernel's answer by its socket. Neither interface computes
// checksums, so its kernel drops the answer if the checksum is wrong.
func TestPlainPeer(t *testing.T) {
	one, two := newHost(t, 1), newHost(t, 2)
	join(t, 1, one, two)
	for _, h := range []*host{one, two} {
		h.do(func() error { return noChecksumOffload(device(1)) })
	}
	a := newNode(t, one, Options{})
	a.watch([]uint16{1}, 2)
	for _, family := range []Family{IPv4, IPv6} {
		for _, local := range []bool{false, true}[:min(int(family)-3, 2)] {
			exchangePlain(t, a, two, family, local)
		}
	}
}

func exchangePlain(t *testing.T, a *node, peer *host, family Family, local bool) {
	t.Helper()
	c := peer.conn(peer.addr(1, family, local))
	seq := uint64(1)
	if local {
		seq = 2
	}
	asked := frame{kind: 1, from: 2, to: 1, network: 1, family: family, inc: 8, seq: seq, sent: 1234}
	write(t, c, a.addr(1, family, local), asked.bytes(testKey()))
	b := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("IPv%d, link-local %v: no answer: %v", family, local, err)
	}
	got := parseFrame(b[:n])
	if from.Port() != port || from.Addr().Unmap() != a.addr(1, family, local) || !bytes.Equal(got.bytes(testKey()), b[:n]) {
		t.Errorf("from %v: %x", from, b[:n])
	}
	if got.kind != 2 || got.seq != seq || got.echo != 1234 || got.inc != 100 || got.flags != 1 {
		t.Errorf("got %+v", got)
	}
}

// noChecksumOffload sets ETHTOOL_STXCSUM to 0.
func noChecksumOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := [2]uint32{unix.ETHTOOL_STXCSUM, 0}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], name)
	request.data = unsafe.Pointer(&value)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
		return e
	}
	return nil
}

// TestHostile: what an attacker on the network can send does nothing, and gets no answer.
func TestHostile(t *testing.T) {
	one, two := newHost(t, 1), newHost(t, 2)
	join(t, 1, one, two)
	a := newNode(t, one, Options{})
	a.watch([]uint16{1}, 2)
	path := Path{2, 1, IPv4}
	c := two.conn(two.addr(1, IPv4, false))
	to := a.addr(1, IPv4, false)
	first := frame{kind: 1, from: 2, to: 1, network: 1, family: IPv4, inc: 8, seq: 1}
	write(t, c, to, first.bytes(testKey()))
	eventually(t, "the true beat is stamped", func() bool { return a.stamp(path).Beats == 1 })
	seen := a.stamp(path)

	second := first
	second.seq = 2
	forged := second.bytes(testKey())
	forged[71] ^= 1
	answer := first
	answer.kind, answer.flags = 2, 1
	const times = 30
	for range times {
		write(t, c, to, first.bytes(testKey()))  // recorded and sent again
		write(t, c, to, forged)                  // made up
		write(t, c, to, answer.bytes(testKey())) // answers nothing that was asked
	}
	eventually(t, "all were counted", func() bool {
		s := a.stamp(path)
		return s.Duplicates == times && s.Forged == times && s.Unsolicited == times
	})
	got := a.stamp(path)
	got.Duplicates, got.Forged, got.Unsolicited = 0, 0, 0
	if got != seen {
		t.Errorf("the stamp changed from\n%+v to\n%+v", seen, got)
	}
	if n := a.Node(); n.Answered != 1 || n.Forged != times {
		t.Errorf("node: %+v", n)
	}
	b := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(b); err != nil {
		t.Errorf("the true beat got no answer: %v", err)
	}
	c.SetReadDeadline(time.Now())
	if n, err := c.Read(b); err == nil {
		t.Errorf("one more answer: %x", b[:n])
	}
}

// TestAnswerOnce: a recorded answer is good once, and not with another echo.
func TestAnswerOnce(t *testing.T) {
	one, two := newHost(t, 1), newHost(t, 2)
	join(t, 1, one, two)
	a := newNode(t, one, Options{})
	a.watch([]uint16{1}, 2)
	path := Path{2, 1, IPv4}
	c := two.conn(two.addr(1, IPv4, false))
	a.beat(two, path, false)
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	beat := parseFrame(b[:n])
	answer := frame{kind: 2, from: 2, to: 1, network: 1, family: IPv4, inc: 8, seq: beat.seq, echo: beat.sent + 1, age: 3_000_000}
	send := func() { write(t, c, a.addr(1, IPv4, false), answer.bytes(testKey())) }
	send()
	eventually(t, "the wrong echo is refused", func() bool { return a.stamp(path).Unsolicited == 1 })
	answer.echo = beat.sent
	send()
	eventually(t, "the answer is taken", func() bool { return a.stamp(path).Answers == 1 })
	send()
	eventually(t, "its copy is refused", func() bool { return a.stamp(path).Unsolicited == 2 })
	s := a.stamp(path)
	if s.Answers != 1 || !s.Confirmed || s.Incarnation != 8 || s.LastBeat != 0 {
		t.Errorf("stamp %+v", s)
	}
	if age := s.LastAnswer - s.Daemon; age != 3*time.Second {
		t.Errorf("the daemon's age is %v, want 3s", age)
	}
}

// TestDaemonStalled: node 2's daemon stops beating; its kernel goes on answering, and tells.
func TestDaemonStalled(t *testing.T) {
	a, b := pair(t, Options{}, 1)
	path := Path{2, 1, IPv6}
	a.beat(b.host, path, false)
	b.beat(a.host, Path{1, 1, IPv6}, false)
	eventually(t, "both are seen", func() bool { s := a.stamp(path); return s.Beats == 1 && s.Answers == 1 })
	stalled := a.stamp(path).LastBeat
	eventually(t, "the node answers for 100 ms without its daemon", func() bool {
		a.beat(b.host, path, false)
		s := a.stamp(path)
		return s.LastAnswer-s.Daemon > 100*time.Millisecond
	})
	s := a.stamp(path)
	if s.LastBeat != stalled || s.Beats != 1 {
		t.Errorf("stamp: %+v", s)
	}
	b.beat(a.host, Path{1, 1, IPv6}, false)
	eventually(t, "the daemon is back", func() bool { return a.stamp(path).Daemon > stalled+100*time.Millisecond })
}

// drop makes a host lose all that it sends on a network; the hook stands after ours.
func drop(t testing.TB, h *host, network uint16) (restore func()) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXEgress, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, dropped), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	index := h.index(network)
	var l link.Link
	h.do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXEgress, Anchor: link.Tail()})
		return err
	})
	return func() { l.Close(); p.Close() }
}

// TestOneWayLoss: what node 1 sends on network 1 is lost; node 2 sees it, and nobody doubts network 2.
func TestOneWayLoss(t *testing.T) {
	a, b := pair(t, Options{Tick: 5 * time.Millisecond, Silent: 20}, 1, 2)
	exchange := func() {
		for _, network := range []uint16{1, 2} {
			a.beat(b.host, Path{2, network, IPv4}, false)
			b.beat(a.host, Path{1, network, IPv4}, false)
		}
	}
	exchange()
	eventually(t, "all see each other", func() bool {
		return a.stamp(Path{2, 1, IPv4}).Answers == 1 && b.stamp(Path{1, 1, IPv4}).Answers == 1 && b.stamp(Path{1, 2, IPv4}).Beats == 1
	})
	restore := drop(t, a.host, 1)
	eventually(t, "node 2 finds network 1 silent, and nothing else is", func() bool {
		exchange()
		return b.stamp(Path{1, 1, IPv4}).Silent && !a.stamp(Path{2, 1, IPv4}).Silent &&
			!a.stamp(Path{2, 2, IPv4}).Silent && !b.stamp(Path{1, 2, IPv4}).Silent
	})
	ab, ba := a.stamp(Path{2, 1, IPv4}), b.stamp(Path{1, 1, IPv4})
	if ab.Beats < 2 || ab.Answers != 1 || ba.Beats != 1 || ba.Answers != 1 {
		t.Errorf("node 1 sees %+v\nnode 2 sees %+v", ab, ba)
	}
	restore()
	eventually(t, "network 1 is back", func() bool { exchange(); return !b.stamp(Path{1, 1, IPv4}).Silent })
	if ba := b.stamp(Path{1, 1, IPv4}); ba.Gaps == 0 {
		t.Errorf("no beat is missing: %+v", ba)
	}
}

// TestEvents follows a path through its life, and a kernel that stood still.
func TestEvents(t *testing.T) {
	a, b := pair(t, Options{Tick: 5 * time.Millisecond, Silent: 10}, 1)
	events, err := a.Events()
	if err != nil {
		t.Fatal(err)
	}
	path := Path{2, 1, IPv4}
	expect := func(kind EventKind, holds func(Event) bool) {
		t.Helper()
		for {
			e := nextEvent(t, events)
			if e.Kind == kind && (e.Path == path || kind == LateTick) && holds(e) {
				return
			}
		}
	}
	back := Path{1, 1, IPv4}
	expect(Silent, func(e Event) bool { return e.Value > uint64(50*time.Millisecond) })
	b.beat(a.host, back, false)
	expect(FirstSeen, func(e Event) bool { return e.Value == 100 && e.At == a.stamp(path).FirstSeen })
	expect(Silent, func(e Event) bool { return e.Value > uint64(50*time.Millisecond) })
	b.beat(a.host, back, false)
	expect(Returned, func(e Event) bool { return e.Value > uint64(50*time.Millisecond) })
	f := b.next(back)
	f.inc = 101
	b.send(a.host, back, false, f.bytes(testKey()))
	expect(Restarted, func(e Event) bool { return e.Value == 101 })
	wrong := b.next(back).bytes(testKey())
	wrong[71] ^= 1
	b.send(a.host, back, false, wrong)
	expect(Forged, func(e Event) bool { return e.Value == 1 })

	if err := a.runTimer(a.objects.HbStop); err != nil {
		t.Fatal(err)
	}
	since := Now()
	eventually(t, "20 ms pass", func() bool { return Now()-since > 20*time.Millisecond })
	if err := a.runTimer(a.objects.HbStart); err != nil {
		t.Fatal(err)
	}
	expect(LateTick, func(e Event) bool { return e.Value > uint64(10*time.Millisecond) })
	if n := a.Node(); n.LateTick < since || n.LateTicks == 0 || n.MaxLate < 10*time.Millisecond {
		t.Errorf("node %+v", n)
	}
	closeWhileWaiting(t, events)
}

func nextEvent(t *testing.T, events *Events) Event {
	t.Helper()
	events.reader.SetDeadline(time.Now().Add(10 * time.Second))
	e, err := events.Next()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func closeWhileWaiting(t *testing.T, events *Events) {
	t.Helper()
	events.reader.SetDeadline(time.Time{})
	ended := make(chan error)
	go func() {
		for {
			if _, err := events.Next(); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := events.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
}

// TestDeliver: with Deliver the socket gets the beats, stamped, and the kernel answers none.
func TestDeliver(t *testing.T) {
	a, b := pair(t, Options{Deliver: true}, 1)
	c := b.conn(b.addr(1, IPv4, false))
	a.beat(b.host, Path{2, 1, IPv4}, false)
	buffer := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(buffer); err != nil || n != beatSize {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if s := b.stamp(Path{1, 1, IPv4}); s.Beats != 1 || b.Node().Answered != 0 {
		t.Errorf("stamp %+v", s)
	}
}

// TestInterfaceGone: an interface disappears and comes back under the same index or another.
func TestInterfaceGone(t *testing.T) {
	a, b := pair(t, Options{}, 1)
	old := a.index(1)
	a.run("ip", "link", "del", device(1))
	join(t, 1, a.host, b.host)
	for _, n := range []*node{a, b} {
		if err := n.Detach(old); err != nil {
			t.Error(err)
		}
		n.forget()
	}
	a.watch([]uint16{1}, 2)
	b.watch([]uint16{1}, 1)
	a.beat(b.host, Path{2, 1, IPv6}, false)
	eventually(t, "beats pass again", func() bool { return a.stamp(Path{2, 1, IPv6}).Answers == 1 })
	a.do(func() error {
		if err := a.Attach(99999, 1); err == nil {
			return errors.New("an interface that is not there was accepted")
		}
		return nil
	})
	a.run("ip", "tuntap", "add", "tun9", "mode", "tun")
	a.do(func() error {
		i, err := net.InterfaceByName("tun9")
		if err != nil {
			return err
		}
		if err := a.Attach(i.Index, 1); !errors.Is(err, ErrInterface) {
			t.Errorf("a tunnel: %v", err)
		}
		return nil
	})
}

// TestVLAN: a beat with a VLAN tag belongs to the VLAN's interface, not to the one below.
func TestVLAN(t *testing.T) {
	a, b := pair(t, Options{}, 1)
	beat := packet(IPv4, a.next(Path{2, 1, IPv4}).bytes(testKey()))
	send := func(tag ...byte) {
		a.do(func() error { return raw(device(1), b.mac(1), slices.Concat(beat[:12], tag, beat[12:])) })
	}
	send(0x81, 0, 0, 7)
	send()
	eventually(t, "the beat without a tag is answered", func() bool { return b.Node().Answered == 1 })
	if s := b.stamp(Path{1, 1, IPv4}); s.Beats != 1 || s.Duplicates != 0 {
		t.Errorf("the one with a tag counted: %+v", s)
	}
}

func (h *host) mac(network uint16) (mac net.HardwareAddr) {
	h.t.Helper()
	h.do(func() error {
		i, err := net.InterfaceByName(device(network))
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	return mac
}

// raw sends an Ethernet frame.
func raw(name string, to net.HardwareAddr, b []byte) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	copy(b, to)
	copy(b[6:], i.HardwareAddr)
	return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: i.Index})
}
