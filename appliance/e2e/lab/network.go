package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Network is a segment that hosts share: a bridge in the lab's own namespace, which has the subnet's
// last address, so that initiators started by the test reach every host.
type Network struct {
	Bridge string
	Subnet netip.Prefix

	lab   *Lab
	hosts []*Host
}

// Family is the IP version of a network or a cluster; 0 leaves it open.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Host is a machine of its own as far as the network goes: a network namespace.
type Host struct {
	Namespace string
	// Sys has its programs see the machine's own /sys, with the bpf file system.
	Sys bool
	// Hidden are folders of the machine that its programs find empty.
	Hidden []string

	lab   *Lab
	links map[*Network]string // the bridge's end of each cable
}

// maxNetworks bounds the subnets that Network looks through for a free one.
const maxNetworks = 200

// Network makes a segment with a subnet that no other lab uses: 10.213.N.0/24.
func (l *Lab) Network(ctx context.Context) (*Network, error) { return l.NetworkOf(ctx, IPv4) }

// NetworkOf is Network with a subnet of the family; by IPv6 2001:db8:213:N::/120.
func (l *Lab) NetworkOf(ctx context.Context, f Family) (*Network, error) {
	for i := range maxNetworks {
		n := &Network{Bridge: fmt.Sprintf("lunar-br%d", i), Subnet: netip.MustParsePrefix(fmt.Sprintf("10.213.%d.0/24", i)), lab: l}
		if f == IPv6 {
			n.Subnet = netip.MustParsePrefix(fmt.Sprintf("2001:db8:213:%x::/120", i+1))
		}
		if ip(ctx, "link", "add", n.Bridge, "type", "bridge", "forward_delay", "0") != nil {
			continue
		}
		l.own(func() error { return ip(context.Background(), "link", "del", n.Bridge) }) //nolint:contextcheck // at the lab's end
		return n, errors.Join(
			ip(ctx, n.give(n.Address(254), n.Bridge)...),
			ip(ctx, "link", "set", n.Bridge, "up"))
	}
	return nil, errors.New("network: no free subnet: delete the bridges lunar-br* that an earlier run left")
}

// Address is the n-th address of the subnet.
func (n *Network) Address(i byte) netip.Addr {
	a := n.Subnet.Addr().AsSlice()
	a[len(a)-1] = i
	out, _ := netip.AddrFromSlice(a)
	return out
}

// give are ip's words for an address that is usable at once.
func (n *Network) give(a netip.Addr, device string) []string {
	words := []string{"addr", "add", netip.PrefixFrom(a, n.Subnet.Bits()).String(), "dev", device}
	if a.Is6() {
		words = append(words, "nodad")
	}
	return words
}

// Host makes a host without a network.
func (l *Lab) Host(ctx context.Context, name string) (*Host, error) {
	h := &Host{Namespace: fmt.Sprintf("lunar-%d-%s", os.Getpid(), name), lab: l, links: map[*Network]string{}}
	if err := ip(ctx, "netns", "add", h.Namespace); err != nil {
		return nil, err
	}
	l.own(func() error { return ip(context.Background(), "netns", "del", h.Namespace) }) //nolint:contextcheck // at the lab's end
	err := h.ip(ctx, "link", "set", "lo", "up")
	return h, err
}

// WithoutIPv6 turns IPv6 off on the host, as an administrator would by sysctl.
func (h *Host) WithoutIPv6(ctx context.Context) error {
	const off = "for i in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done"
	_, err := Run(ctx, h.command("sh", "-c", off)...)
	return err
}

// Join plugs the host into a network, with the i-th address of its subnet, i in 1 to 253.
func (h *Host) Join(ctx context.Context, n *Network, i byte) (netip.Addr, error) {
	outer, inner := fmt.Sprintf("%s-%d", strings.Replace(n.Bridge, "lunar-br", "lun", 1), i), h.device(n)
	address := n.Address(i)
	if err := ip(ctx, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", h.Namespace); err != nil {
		return address, err
	}
	// The kernel takes a namespace's devices away some time after the namespace; the next lab uses the name at once.
	h.lab.own(func() error { return ip(context.Background(), "link", "del", outer) }) //nolint:contextcheck // at the lab's end
	for _, words := range [][]string{
		{"link", "set", outer, "master", n.Bridge, "up"},
		append([]string{"-n", h.Namespace}, n.give(address, inner)...),
		{"-n", h.Namespace, "link", "set", inner, "up"},
	} {
		if err := ip(ctx, words...); err != nil {
			return address, err
		}
	}
	h.links[n] = outer
	n.hosts = append(n.hosts, h)
	return address, nil
}

// Cut pulls the host's cable out of a network, and Mend puts it back.
func (h *Host) Cut(ctx context.Context, n *Network) error {
	return ip(ctx, "link", "set", h.links[n], "down")
}

// Mend is described at Cut.
func (h *Host) Mend(ctx context.Context, n *Network) error {
	return ip(ctx, "link", "set", h.links[n], "up")
}

// Deafen has the network's switch lose, silently, all that others send to the host; what it sends, and what goes to all,
// passes. The switch is told that the host is where another one is. Listen ends it.
func (h *Host) Deafen(ctx context.Context, n *Network) error { return h.misplace(ctx, n, "replace") }

// Listen is described at Deafen.
func (h *Host) Listen(ctx context.Context, n *Network) error { return h.misplace(ctx, n, "del") }

func (h *Host) misplace(ctx context.Context, n *Network, how string) error {
	mac, err := Run(ctx, h.command("cat", "/sys/class/net/"+h.device(n)+"/address")...)
	if err != nil {
		return err
	}
	for _, o := range n.hosts {
		if o != h {
			_, err := Run(ctx, "bridge", "fdb", how, strings.TrimSpace(mac), "dev", o.links[n], "master", "static", "sticky")
			return err
		}
	}
	return errors.New("network: no other host to mistake this one for")
}

// device is the host's end of its cable.
func (*Host) device(n *Network) string { return strings.TrimPrefix(n.Bridge, "lunar-") }

// Run runs a program on the host.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return Run(ctx, h.command(argv...)...)
}

// command is a command line that runs on the host; a nil Host is the lab's own namespace.
func (h *Host) command(argv ...string) []string {
	if h == nil {
		return argv
	}
	if h.Sys {
		return append([]string{"nsenter", "--net=/run/netns/" + h.Namespace}, argv...)
	}
	words := []string{"ip", "netns", "exec", h.Namespace}
	if len(h.Hidden) > 0 { // ip has made a mount namespace
		script := "for folder in " + strings.Join(h.Hidden, " ") + `; do mount -t tmpfs none $folder || exit; done; exec "$@"`
		words = append(words, "sh", "-c", script, "sh")
	}
	return append(words, argv...)
}

func (h *Host) ip(ctx context.Context, words ...string) error {
	return ip(ctx, append([]string{"-n", h.Namespace}, words...)...)
}

func ip(ctx context.Context, words ...string) error {
	_, err := Run(ctx, append([]string{"ip"}, words...)...)
	return err
}
