package heartbeat

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dchest/siphash"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	goleak.VerifyTestMain(m)
}

const beatSize = 72

// frame is a heartbeat as netft/beat documents it, which this package may not import. TestGolden holds both to one format.
type frame struct {
	kind            uint8
	flags           uint16
	from, to        uint16
	network         uint16
	family          Family
	age             uint32
	inc, seq        uint64
	sent, echo, hld uint64
}

func (f frame) bytes(key [KeySize]byte) []byte {
	k0, k1 := binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])
	b := binary.BigEndian.AppendUint32(nil, 0x4c4e4842)
	b = append(b, 1, f.kind)
	b = binary.BigEndian.AppendUint16(b, f.flags)
	b = binary.BigEndian.AppendUint32(b, uint32(siphash.Hash(k0, k1, clusterName)))
	for _, v := range []uint16{f.from, f.to, f.network, uint16(f.family) << 8} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, f.age)
	for _, v := range []uint64{f.inc, f.seq, f.sent, f.echo, f.hld} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint64(b, siphash.Hash(k0, k1, b))
}

func parseFrame(b []byte) frame {
	u16, u64 := binary.BigEndian.Uint16, binary.BigEndian.Uint64
	return frame{
		kind: b[5], flags: u16(b[6:]), from: u16(b[12:]), to: u16(b[14:]), network: u16(b[16:]), family: Family(b[18]),
		age: binary.BigEndian.Uint32(b[20:]), inc: u64(b[24:]), seq: u64(b[32:]), sent: u64(b[40:]), echo: u64(b[48:]), hld: u64(b[56:]),
	}
}

func testKey() (k [KeySize]byte) {
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

// host is a network namespace without a name, which goes with its descriptor.
type host struct {
	t      testing.TB
	ns     *os.File
	number uint16
}

func newHost(t testing.TB, number uint16) *host {
	t.Helper()
	h := &host{t: t, number: number}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.ns.Close() })
	h.run("ip", "link", "set", "lo", "up")
	return h
}

// do runs f on a thread inside the namespace.
func (h *host) do(f func() error) {
	h.t.Helper()
	if err := h.try(f); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) try(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (h *host) run(words ...string) {
	h.t.Helper()
	h.do(func() error {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out)
		}
		return nil
	})
}

func device(network uint16) string { return fmt.Sprintf("net%d", network) }

func (h *host) index(network uint16) (index int) {
	h.t.Helper()
	h.do(func() error {
		i, err := net.InterfaceByName(device(network))
		if err == nil {
			index = i.Index
		}
		return err
	})
	return index
}

// addr is the host's address on a network: IPv4, ULA, or link-local with its zone.
func (h *host) addr(network uint16, family Family, local bool) netip.Addr {
	switch {
	case family == IPv4:
		return netip.AddrFrom4([4]byte{10, 9, byte(network), byte(h.number)})
	case local:
		return netip.MustParseAddr(fmt.Sprintf("fe80::%x%%%s", h.number, device(network)))
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:9:0:%x::%x", network, h.number))
}

// join lays a veth pair between two hosts, with all kinds of addresses, ready for use.
func join(t testing.TB, network uint16, a, b *host) {
	t.Helper()
	dev := device(network)
	a.run("ip", "link", "add", dev, "type", "veth", "peer", "name", dev, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.ns.Fd()))
	t.Cleanup(func() {
		_ = a.try(func() error { return exec.Command("ip", "link", "del", dev).Run() }) // a test may have removed it
	})
	for _, h := range []*host{a, b} {
		h.run("ip", "link", "set", dev, "addrgenmode", "none")
		h.run("ip", "link", "set", dev, "up")
		h.run("ip", "addr", "add", h.addr(network, IPv4, false).String()+"/24", "dev", dev)
		h.run("ip", "addr", "add", h.addr(network, IPv6, false).String()+"/64", "dev", dev, "nodad")
		h.run("ip", "addr", "add", h.addr(network, IPv6, true).WithZone("").String()+"/64", "dev", dev, "nodad")
	}
	eventually(t, "the veth pair passes packets", func() bool {
		return a.try(func() error {
			return exec.Command("ip", "-6", "route", "get", b.addr(network, IPv6, false).String()).Run()
		}) == nil
	})
}

// node is a host with the programs loaded.
type node struct {
	*host
	*Heartbeat
	inc   uint64
	seq   map[Path]uint64
	conns map[netip.Addr]*net.UDPConn
}

func newNode(t testing.TB, h *host, o Options) *node {
	t.Helper()
	o.Number = h.number
	if o.Incarnation == 0 {
		o.Incarnation = 100
	}
	if o.Keys == nil {
		o.Keys = [][KeySize]byte{testKey()}
	}
	n := &node{host: h, inc: o.Incarnation, seq: map[Path]uint64{}, conns: map[netip.Addr]*net.UDPConn{}}
	h.do(func() (err error) {
		n.Heartbeat, err = Load(o)
		return err
	})
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// watch attaches the node to networks, and names its paths to peers.
func (n *node) watch(networks []uint16, peers ...uint16) {
	n.t.Helper()
	var paths []Path
	for _, network := range networks {
		index := n.index(network)
		n.do(func() error { return n.Attach(index, network) })
		for _, p := range peers {
			paths = append(paths, Path{p, network, IPv4}, Path{p, network, IPv6})
		}
	}
	if err := n.SetPaths(paths); err != nil {
		n.t.Fatal(err)
	}
}

// conn is the host's socket on an address, closed with the test.
func (h *host) conn(addr netip.Addr) (c *net.UDPConn) {
	h.t.Helper()
	h.do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		return err
	})
	h.t.Cleanup(func() { c.Close() })
	return c
}

// forget closes the sockets, whose interface went.
func (n *node) forget() {
	for addr, c := range n.conns {
		c.Close()
		delete(n.conns, addr)
	}
}

const port = 3343

// next is the node's next beat to a peer.
func (n *node) next(p Path) frame {
	n.seq[p]++
	return frame{kind: 1, from: n.number, to: p.Peer, network: p.Network, family: p.Family, inc: n.inc, seq: n.seq[p], sent: uint64(Now())}
}

// beat sends the node's next beat to a peer, as its daemon does.
func (n *node) beat(to *host, p Path, local bool) {
	n.t.Helper()
	n.send(to, p, local, n.next(p).bytes(testKey()))
}

func (n *node) send(to *host, p Path, local bool, b []byte) {
	n.t.Helper()
	addr := n.addr(p.Network, p.Family, local)
	c := n.conns[addr]
	if c == nil {
		c = n.conn(addr)
		n.conns[addr] = c
	}
	write(n.t, c, to.addr(p.Network, p.Family, local), b)
}

func write(t testing.TB, c *net.UDPConn, to netip.Addr, b []byte) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(to, port)); err != nil {
		t.Fatal(err)
	}
}

func (n *node) stamp(p Path) (s Stamp) {
	n.t.Helper()
	if !n.Stamp(p, &s) {
		n.t.Fatalf("no stamp of %+v", p)
	}
	return s
}

// eventually polls: nothing here is known to be done by a certain time.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
