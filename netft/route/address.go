package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lunar/netft/network"
)

// alias marks an interface as ours.
const alias = "lunar cluster address"

// addressGenerationNone is IN6_ADDR_GEN_MODE_NONE: no link-local address is made.
const addressGenerationNone = 1

// ErrForeignInterface says that an interface of our name is not ours.
var ErrForeignInterface = errors.New("route: an interface named " + network.ClusterInterface + " exists and is not Lunar's: rename it")

// makeAddress makes the interface unless it is there, and gives it the cluster address and no other.
func (k *Keeper) makeAddress() error {
	l, err := k.ownLink()
	if err != nil {
		return err
	}
	made := l == nil
	if made {
		if l, err = k.addLink(); err != nil {
			return fmt.Errorf("route: make the interface %s: %w", network.ClusterInterface, err)
		}
	}
	if err := k.ownAddress(l); err != nil {
		return fmt.Errorf("route: cluster address %s on %s: %w", k.cluster, network.ClusterInterface, err)
	}
	if made {
		return k.dropRenamed()
	}
	return nil
}

// dropRenamed takes interfaces of ours away that someone gave another name.
func (k *Keeper) dropRenamed() error {
	links, err := k.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("route: list interfaces: %w", err)
	}
	var failed []error
	for _, l := range links {
		if a := l.Attrs(); a.Alias == alias && a.Name != network.ClusterInterface {
			k.log.Warn("the interface of the cluster address was renamed; another one takes its place", "interface", a.Name)
			failed = append(failed, k.handle.LinkDel(l))
		}
	}
	return errors.Join(failed...)
}

// ownLink returns our interface, nil when there is none.
func (k *Keeper) ownLink() (netlink.Link, error) {
	l, err := k.handle.LinkByName(network.ClusterInterface)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("route: look for %s: %w", network.ClusterInterface, err)
	}
	if l.Attrs().Alias != alias {
		return nil, fmt.Errorf("%w (it is a %s)", ErrForeignInterface, l.Type())
	}
	return l, nil
}

// addLink makes the interface and marks it last, so that one half made is not taken for ours.
func (k *Keeper) addLink() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = network.ClusterInterface
	err := k.handle.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = k.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}
	if err != nil {
		return nil, err
	}
	l, err := k.handle.LinkByName(network.ClusterInterface)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(k.handle.LinkSetAlias(l, alias), k.allowIPv6(), k.noLinkLocal(l)); err != nil {
		return nil, errors.Join(err, k.handle.LinkDel(l))
	}
	return l, nil
}

// allowIPv6 undoes a default that turns IPv6 off on new interfaces, on ours.
func (k *Keeper) allowIPv6() error {
	if k.cluster.Is4() {
		return nil
	}
	err := k.ns.Do(turnOnIPv6)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("this kernel has no IPv6: use an IPv4 cluster address")
	}
	return err
}

// noLinkLocal has the kernel give the interface no address of its own; one without IPv6 does not.
func (k *Keeper) noLinkLocal(l netlink.Link) error {
	err := k.handle.LinkSetIP6AddrGenMode(l, addressGenerationNone)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// turnOnIPv6 writes only if it has to: the file may be read-only, as under systemd's ProtectKernelTunables.
func turnOnIPv6() error {
	const file = "/proc/sys/net/ipv6/conf/" + network.ClusterInterface + "/disable_ipv6"
	value, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(value)) == "0" {
		return err
	}
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		return fmt.Errorf("IPv6 is off on new interfaces, and cannot be turned on: set net.ipv6.conf.default.disable_ipv6=0, or use an IPv4 cluster address: %w", err)
	}
	return nil
}

func (k *Keeper) ownAddress(l netlink.Link) error {
	addresses, err := k.handle.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	there := false
	for _, a := range addresses {
		if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == k.cluster {
			there = true
			continue
		}
		if err := k.handle.AddrDel(l, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	if !there {
		err = k.handle.AddrReplace(l, &netlink.Addr{IPNet: host(k.cluster), Flags: k.addressFlags()})
		if errors.Is(err, unix.EACCES) && k.cluster.Is6() {
			return fmt.Errorf("IPv6 is off on %s: turn it on (sysctl net.ipv6.conf.%[1]s.disable_ipv6=0): %w", network.ClusterInterface, err)
		}
		if err != nil {
			return err
		}
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return k.handle.LinkSetUp(l)
}

// addressFlags turns duplicate address detection off: the interface has no wire.
func (k *Keeper) addressFlags() int {
	if k.cluster.Is4() {
		return 0
	}
	return unix.IFA_F_NODAD
}

func (k *Keeper) dropAddress() error {
	if err := k.dropRenamed(); err != nil {
		return err
	}
	l, err := k.ownLink()
	if err != nil || l == nil {
		return err
	}
	if err := k.handle.LinkDel(l); err != nil {
		return fmt.Errorf("route: take %s away: %w", network.ClusterInterface, err)
	}
	return nil
}

// host is the address as a destination.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
