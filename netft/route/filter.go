package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The values of rp_filter, see the kernel's ip-sysctl.
const (
	filterStrict = "1"
	filterLoose  = "2"
)

const filterFile = "/proc/sys/net/ipv4/conf/%s/rp_filter"

// devconfFilter is IPV4_DEVCONF_RP_FILTER of linux/ip.h.
const devconfFilter = 8

// filters are the values that interfaces had before theirs was changed, by name.
type filters map[string]string

// loosen takes the strict reverse path filter off the interfaces. The kernel takes the higher one of
// an interface's value and that of "all", so 2 on the interface is enough.
func (k *Keeper) loosen(interfaces []string) error {
	if !k.cluster.Is4() {
		return nil
	}
	return k.ns.Do(func() error {
		all := readFilter("all")
		var failed []error
		for _, name := range interfaces {
			old := readFilter(name)
			if max(all, old) != filterStrict {
				continue
			}
			err := setFilter(name, filterLoose)
			if err != nil && !gone(err) {
				failed = append(failed, fmt.Errorf("route: %s drops what peers send to the cluster address: %w", name, err))
			}
			if err == nil {
				k.filters[name] = old
				k.log.Info("reverse path filter loosened for cluster traffic", "interface", name, "from", old, "to", filterLoose)
			}
		}
		return errors.Join(failed...)
	})
}

// restore puts the filters back that nobody changed since.
func (k *Keeper) restore() error {
	if len(k.filters) == 0 {
		return nil
	}
	return k.ns.Do(func() error {
		var failed []error
		for name, old := range k.filters {
			if readFilter(name) != filterLoose {
				continue
			}
			if err := setFilter(name, old); err != nil && !gone(err) {
				failed = append(failed, fmt.Errorf("route: restore rp_filter of %s: %w", name, err))
			}
		}
		return errors.Join(failed...)
	})
}

// readFilter is an interface's value, "" when there is none.
func readFilter(name string) string {
	value, err := os.ReadFile(fmt.Sprintf(filterFile, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}

// gone tells that the interface is not there any more.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EAFNOSUPPORT)
}

// setFilter changes an interface's value by netlink: /proc/sys may be read-only, as under systemd's ProtectKernelTunables.
func setFilter(name, value string) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("%w: %w", unix.ENODEV, err)
	}
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(i.Index)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	settings := families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	settings.AddRtAttr(devconfFilter, binary.NativeEndian.AppendUint32(nil, uint32(value[0]-'0')))
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	request.AddData(message)
	request.AddData(families)
	_, err = request.Execute(unix.NETLINK_ROUTE, 0)
	return os.NewSyscallError("netlink", err)
}
