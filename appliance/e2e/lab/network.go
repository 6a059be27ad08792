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

	lab *Lab
}

// Host is a machine of its own as far as the network goes: a network namespace.
type Host struct {
	Namespace string

	lab   *Lab
	links map[*Network]string // the bridge's end of each cable
}

// maxNetworks bounds the subnets that Network looks through for a free one.
const maxNetworks = 200

// Network makes a segment with a subnet that no other lab uses: 10.213.N.0/24.
func (l *Lab) Network(ctx context.Context) (*Network, error) {
	for i := range maxNetworks {
		n := &Network{Bridge: fmt.Sprintf("lunar-br%d", i), Subnet: netip.MustParsePrefix(fmt.Sprintf("10.213.%d.0/24", i)), lab: l}
		if ip(ctx, "link", "add", n.Bridge, "type", "bridge", "forward_delay", "0") != nil {
			continue
		}
		l.own(func() error { return ip(context.Background(), "link", "del", n.Bridge) }) //nolint:contextcheck // at the lab's end
		return n, errors.Join(
			ip(ctx, "addr", "add", n.Address(254).String()+"/24", "dev", n.Bridge),
			ip(ctx, "link", "set", n.Bridge, "up"))
	}
	return nil, errors.New("network: no free subnet: delete the bridges lunar-br* that an earlier run left")
}

// Address is the n-th address of the subnet.
func (n *Network) Address(i byte) netip.Addr {
	a := n.Subnet.Addr().As4()
	a[3] = i
	return netip.AddrFrom4(a)
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

// Join plugs the host into a network, with the i-th address of its subnet, i in 1 to 253.
func (h *Host) Join(ctx context.Context, n *Network, i byte) (netip.Addr, error) {
	outer, inner := fmt.Sprintf("%s-%d", strings.Replace(n.Bridge, "lunar-br", "lun", 1), i), strings.TrimPrefix(n.Bridge, "lunar-")
	address := n.Address(i)
	if err := ip(ctx, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", h.Namespace); err != nil {
		return address, err
	}
	// The kernel takes a namespace's devices away some time after the namespace; the next lab uses the name at once.
	h.lab.own(func() error { return ip(context.Background(), "link", "del", outer) }) //nolint:contextcheck // at the lab's end
	for _, words := range [][]string{
		{"link", "set", outer, "master", n.Bridge, "up"},
		{"-n", h.Namespace, "addr", "add", address.String() + "/24", "dev", inner},
		{"-n", h.Namespace, "link", "set", inner, "up"},
	} {
		if err := ip(ctx, words...); err != nil {
			return address, err
		}
	}
	h.links[n] = outer
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

// command is a command line that runs on the host; a nil Host is the lab's own namespace.
func (h *Host) command(argv ...string) []string {
	if h == nil {
		return argv
	}
	return append([]string{"ip", "netns", "exec", h.Namespace}, argv...)
}

func (h *Host) ip(ctx context.Context, words ...string) error {
	return ip(ctx, append([]string{"-n", h.Namespace}, words...)...)
}

func ip(ctx context.Context, words ...string) error {
	_, err := Run(ctx, append([]string{"ip"}, words...)...)
	return err
}
