package firstboot

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// link is how one interface, or each one, is set up. The text form has links apart by semicolons or lines, and in each, apart by
// commas or spaces: dhcp, ADDRESS/LENGTH, interface=NAME, mac=MAC, gateway=ADDRESS, dns=ADDRESS, mtu=N.
type link struct {
	name, mac string // which interface; both empty: each Ethernet interface for DHCP, the only one for addresses
	dhcp      bool
	addresses []netip.Prefix
	gateways  []netip.Addr
	dns       []netip.Addr
	mtu       int
}

var interfaceForm = regexp.MustCompile(`^[A-Za-z0-9._*?-]{1,32}$`)

func checkNetwork(s string) error {
	_, err := parseNetwork(s)
	return err
}

func parseNetwork(s string) (links []link, err error) {
	for _, text := range strings.FieldsFunc(s, func(r rune) bool { return r == ';' || r == '\n' }) {
		l, err := parseLink(text)
		if err != nil {
			return nil, err
		}
		if l != nil {
			links = append(links, *l)
		}
	}
	if len(links) == 0 {
		return nil, errors.New("it names no network: dhcp, or for one interface 192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53")
	}
	for i := range links {
		for j := range i {
			if links[i].name == links[j].name && links[i].mac == links[j].mac {
				return nil, errors.New("it has two parts for the same interface: give interface= or mac= in each")
			}
		}
	}
	return links, nil
}

func parseLink(text string) (*link, error) {
	words := fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	var l link
	for _, word := range words {
		if err := l.take(word); err != nil {
			return nil, err
		}
	}
	if !l.dhcp && len(l.addresses) == 0 {
		return nil, fmt.Errorf("%q has neither dhcp nor an address such as 192.0.2.10/24", strings.TrimSpace(text))
	}
	return &l, nil
}

func (l *link) take(word string) (err error) {
	key, value, pair := strings.Cut(word, "=")
	switch {
	case word == "dhcp":
		l.dhcp = true
		return nil
	case !pair:
		return l.address(word)
	case key == "interface":
		if !interfaceForm.MatchString(value) {
			return fmt.Errorf("interface=%s is no interface's name", value)
		}
		l.name = value
		return nil
	case key == "mac":
		mac, err := net.ParseMAC(value)
		if err != nil {
			return fmt.Errorf("mac=%s is no Ethernet address", value)
		}
		l.mac = mac.String()
		return nil
	case key == "gateway":
		return appendAddress(&l.gateways, word, value)
	case key == "dns":
		return appendAddress(&l.dns, word, value)
	case key == "mtu":
		if l.mtu, err = strconv.Atoi(value); err != nil || l.mtu < 576 || l.mtu > 65535 {
			return fmt.Errorf("mtu=%s is not from 576 to 65535", value)
		}
		return nil
	}
	return fmt.Errorf("%q is not known: dhcp, ADDRESS/LENGTH, interface=, mac=, gateway=, dns=, mtu=", word)
}

func (l *link) address(word string) error {
	p, err := netip.ParsePrefix(word)
	if err != nil {
		return fmt.Errorf("%q is no address with its length, such as 192.0.2.10/24", word)
	}
	if !p.Addr().IsValid() || p.Addr().IsMulticast() || p.Addr().IsUnspecified() || p.Addr().IsLoopback() {
		return fmt.Errorf("%s cannot be a machine's address", word)
	}
	l.addresses = append(l.addresses, p)
	return nil
}

func appendAddress(to *[]netip.Addr, word, value string) error {
	a, err := netip.ParseAddr(value)
	if err != nil {
		return fmt.Errorf("%s is no address", word)
	}
	*to = append(*to, a)
	return nil
}

// file is the link as a systemd.network(5). only is the machine's Ethernet interfaces: an address without an interface needs
// that there is one.
func (l *link) file(only []string) (string, error) {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("[Match]")
	switch {
	case l.mac != "":
		say("PermanentMACAddress=%s", l.mac)
	case l.name != "":
		say("Name=%s", l.name)
	case len(l.addresses) == 0:
		say("Type=ether\nKind=!*")
	case len(only) == 1:
		say("Name=%s", only[0])
	default:
		return "", fmt.Errorf("there are %d Ethernet interfaces (%s): say which one has %s, by interface= or mac=", len(only), strings.Join(only, ", "), l.addresses[0])
	}
	if l.mtu > 0 {
		say("\n[Link]\nMTUBytes=%d", l.mtu)
	}
	say("\n[Network]\nDHCP=%s\nLinkLocalAddressing=ipv6\nKeepConfiguration=dhcp-on-stop", map[bool]string{true: "yes", false: "no"}[l.dhcp])
	for _, a := range l.addresses {
		say("Address=%s", a)
	}
	for _, a := range l.gateways {
		say("Gateway=%s", a)
	}
	for _, a := range l.dns {
		say("DNS=%s", a)
	}
	say("\n[DHCPv4]\nUseHostname=no\nClientIdentifier=mac\n\n[DHCPv6]\nUseHostname=no")
	return b.String(), nil
}
