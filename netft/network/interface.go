package network

import (
	"net/netip"
	"slices"
)

// ClusterInterface is the dummy interface that bears a node's cluster address. It is no part of
// any network.
const ClusterInterface = "lunar0"

// Interface is one network interface of a node, as its kernel tells.
type Interface struct {
	Index   int    `json:"index"` // of the kernel; 0 is none
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"` // lower case with colons; empty where there is none
	MTU     int    `json:"mtu"`           // bytes
	Speed   uint32 `json:"speed"`         // Mbit/s; 0 is unknown, as when there is no carrier
	Up      bool   `json:"up"`            // by the administrator
	Carrier bool   `json:"carrier"`       // the link has a signal, or the driver cannot tell

	Gateway4 bool `json:"gateway4,omitempty"` // an IPv4 default route leaves by it
	Gateway6 bool `json:"gateway6,omitempty"` // an IPv6 default route leaves by it
	// IPv6Disabled tells that the kernel's disable_ipv6 is set on it.
	IPv6Disabled bool `json:"ipv6Disabled,omitempty"`

	// Addresses are those in use, each with the length of its subnet, sorted; link-local ones too,
	// without a zone.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Duplicates are addresses that another machine was found to have (duplicate address
	// detection, RFC 4862 §5.4.5); the kernel does not use them.
	Duplicates []netip.Prefix `json:"duplicates,omitempty"`
}

// Running tells whether the interface can carry traffic now.
func (i Interface) Running() bool { return i.Up && i.Carrier }

// Gateway tells whether a default route of either family leaves by the interface.
func (i Interface) Gateway() bool { return i.Gateway4 || i.Gateway6 }

// LinkLocal returns its first address in fe80::/64, the zero Addr when it has none.
func (i Interface) LinkLocal() netip.Addr {
	return i.first(func(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() })
}

// Address4 returns its first IPv4 address, a link-local one last; the zero Addr when it has none.
func (i Interface) Address4() netip.Addr {
	if a := i.first(func(a netip.Addr) bool { return a.Is4() && !a.IsLinkLocalUnicast() }); a.IsValid() {
		return a
	}
	return i.first(netip.Addr.Is4)
}

// Address6 returns its first IPv6 address that is not link-local, else the link-local one, the zero
// Addr when it has none.
func (i Interface) Address6() netip.Addr {
	if a := i.first(func(a netip.Addr) bool { return a.Is6() && !a.IsLinkLocalUnicast() }); a.IsValid() {
		return a
	}
	return i.LinkLocal()
}

func (i Interface) first(fits func(netip.Addr) bool) netip.Addr {
	for _, p := range i.Addresses {
		if fits(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// Equal tells whether nothing differs.
func (i Interface) Equal(o Interface) bool {
	addresses, duplicates := i.Addresses, i.Duplicates
	if !slices.Equal(addresses, o.Addresses) || !slices.Equal(duplicates, o.Duplicates) {
		return false
	}
	return i.Index == o.Index && i.Name == o.Name && i.MAC == o.MAC && i.MTU == o.MTU && i.Speed == o.Speed &&
		i.Up == o.Up && i.Carrier == o.Carrier && i.Gateway4 == o.Gateway4 && i.Gateway6 == o.Gateway6 &&
		i.IPv6Disabled == o.IPv6Disabled
}

// subnets are the subnets that tell which network the interface is in: no link-local ones, no
// loopback, and no single addresses.
func (i Interface) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range i.Addresses {
		a := p.Addr()
		if !p.IsValid() || p.IsSingleIP() || a.IsLinkLocalUnicast() || a.IsLoopback() || !a.IsGlobalUnicast() {
			continue
		}
		if m := p.Masked(); !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, compareSubnets)
	return out
}

// linkLocalOnly tells whether link-local addresses are all it has.
func (i Interface) linkLocalOnly() bool {
	return len(i.subnets()) == 0 && i.first(netip.Addr.IsLinkLocalUnicast).IsValid()
}

// compareSubnets sorts IPv4 before IPv6, then by address, then the wider first.
func compareSubnets(a, b netip.Prefix) int { return a.Compare(b) }

// Node is what one node tells of itself.
type Node struct {
	Number     uint16      `json:"number"` // of the member; unique
	Name       string      `json:"name"`   // for messages
	Interfaces []Interface `json:"interfaces"`
}
