// Package netnstest gives tests network namespaces without a name, which end with the test.
//
// The caller runs as root, and is a test.
package netnstest

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netns"
)

// Namespace is a network namespace with a thread of its own.
type Namespace struct {
	t    testing.TB
	file *os.File // of the namespace
	work chan func()
	end  chan struct{}
}

// New makes an empty namespace, with loopback up.
func New(t testing.TB) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := &Namespace{t: t, work: make(chan func()), end: make(chan struct{})}
	ready := make(chan error, 1)
	go n.run(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	n.Must(func() error { return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}) })
	return n
}

// run is the thread. It ends with the goroutine, as it stays locked.
func (n *Namespace) run(ready chan<- error) {
	defer close(n.end)
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		n.file, err = os.Open("/proc/thread-self/ns/net")
	}
	ready <- err
	for f := range n.work {
		f()
	}
}

// close takes the veth ends away first: the kernel lets a namespace's devices go only later.
func (n *Namespace) close() {
	_ = n.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "veth" || l.Type() == "dummy" || l.Type() == "bridge" {
				_ = netlink.LinkDel(l)
			}
		}
		return err
	})
	close(n.work)
	<-n.end
	_ = n.file.Close()
}

// Do runs f on the namespace's thread. Sockets that f opens are in the namespace.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	n.work <- func() { done <- f() }
	return <-done
}

// Must is Do, and an error ends the test.
func (n *Namespace) Must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

// Current is netns.Current of the namespace; the caller closes it.
func (n *Namespace) Current() *netns.Namespace {
	n.t.Helper()
	var ns *netns.Namespace
	n.Must(func() (err error) { ns, err = netns.Current(); return err })
	return ns
}

// Sysctl writes /proc/sys/net/PATH of the namespace.
func (n *Namespace) Sysctl(path, value string) {
	n.t.Helper()
	n.Must(func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) })
}

// Link is the index of an interface.
func (n *Namespace) Link(name string) int {
	n.t.Helper()
	index := 0
	n.Must(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	})
	return index
}

// Up sets an interface up.
func (n *Namespace) Up(name string) {
	n.t.Helper()
	n.Must(func() error { return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
}

// Down sets an interface down.
func (n *Namespace) Down(name string) {
	n.t.Helper()
	n.Must(func() error { return netlink.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
}

// Address adds addresses such as "10.0.0.1/24" to an interface, IPv6 ones without duplicate address detection.
func (n *Namespace) Address(name string, addresses ...string) {
	n.t.Helper()
	n.address(name, addresses, func(l netlink.Link, a *netlink.Addr) error {
		a.Flags = unix.IFA_F_NODAD
		return netlink.AddrAdd(l, a)
	})
}

// NoAddress takes addresses away.
func (n *Namespace) NoAddress(name string, addresses ...string) {
	n.t.Helper()
	n.address(name, addresses, netlink.AddrDel)
}

func (n *Namespace) address(name string, addresses []string, do func(netlink.Link, *netlink.Addr) error) {
	n.t.Helper()
	n.Must(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := do(l, a); err != nil {
				return fmt.Errorf("%s on %s: %w", text, name, err)
			}
		}
		return nil
	})
}

// Cable joins an interface of a and one of b, both up, link-local addresses without duplicate address detection.
func Cable(a *Namespace, nameA string, b *Namespace, nameB string) {
	a.t.Helper()
	a.Must(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = nameA
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.file.Fd()))})
	})
	for n, name := range map[*Namespace]string{a: nameA, b: nameB} {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
			n.Sysctl("ipv6/conf/"+name+"/accept_dad", "0")
		}
		n.Up(name)
	}
}

// Prefixes parses prefixes.
func Prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
