package link

import (
	"encoding/binary"
	"math"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The part of linux/ethtool_netlink.h that speeds need.
const (
	msgLinkModesGet    = 4
	attrLinkModesHead  = 1
	attrLinkModesSpeed = 5
	attrHeadIndex      = 1
)

// ethtoolFamily is the number of the generic netlink family, 0 in a kernel without it (before 5.6).
func ethtoolFamily() int {
	f, err := netlink.GenlFamilyGet("ethtool")
	if err != nil {
		return 0
	}
	return int(f.ID)
}

// ethtoolSpeeds are the speeds of all interfaces that tell, in Mbit/s by index. It returns what it
// could get: a speed only decides between networks that are equal otherwise.
func ethtoolSpeeds(family int) map[int]uint32 {
	speeds := map[int]uint32{}
	if family == 0 {
		return speeds
	}
	ask := nl.NewNetlinkRequest(family, unix.NLM_F_DUMP)
	ask.AddData(&nl.Genlmsg{Command: msgLinkModesGet, Version: 1})
	ask.AddData(nl.NewRtAttr(attrLinkModesHead|unix.NLA_F_NESTED, nil))
	answers, err := ask.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return speeds
	}
	for _, a := range answers {
		if index, speed := parseLinkModes(a); index != 0 && speed != 0 {
			speeds[index] = speed
		}
	}
	return speeds
}

// parseLinkModes reads an answer to msgLinkModesGet; 0 stands for what it does not tell.
func parseLinkModes(answer []byte) (index int, speed uint32) {
	if len(answer) < nl.SizeofGenlmsg {
		return 0, 0
	}
	attributes(answer[nl.SizeofGenlmsg:], func(kind uint16, value []byte) {
		switch kind {
		case attrLinkModesHead:
			attributes(value, func(kind uint16, value []byte) {
				if kind == attrHeadIndex {
					index = int(number(value))
				}
			})
		case attrLinkModesSpeed:
			speed = number(value)
		}
	})
	if speed == math.MaxUint32 { // SPEED_UNKNOWN
		speed = 0
	}
	return index, speed
}

// attributes calls each with every netlink attribute of b, until one is cut off.
func attributes(b []byte, each func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofNlAttr:length])
		b = b[min((length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
}

func number(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}
