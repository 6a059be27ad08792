package link

import (
	"encoding/binary"
	"math"

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

// genericHeader is struct genlmsghdr. nl.Genlmsg has two bytes and is sent as four: it reads what follows it in memory.
type genericHeader [nl.SizeofGenlmsg]byte

// Len and Serialize implement nl.NetlinkRequestData.
func (h genericHeader) Len() int          { return len(h) }
func (h genericHeader) Serialize() []byte { return h[:] }

// ethtoolFamily is the number of the generic netlink family, 0 in a kernel without it (before 5.6).
func ethtoolFamily() int {
	ask := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, 0)
	ask.AddData(genericHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION})
	ask.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated("ethtool")))
	answers, err := ask.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) == 0 || len(answers[0]) < nl.SizeofGenlmsg {
		return 0
	}
	family := 0
	attributes(answers[0][nl.SizeofGenlmsg:], func(kind uint16, value []byte) {
		if kind == nl.GENL_CTRL_ATTR_FAMILY_ID && len(value) == 2 {
			family = int(binary.NativeEndian.Uint16(value))
		}
	})
	return family
}

// ethtoolSpeeds are the speeds of all interfaces that tell, in Mbit/s by index. It returns what it
// could get: a speed only decides between networks that are equal otherwise.
func ethtoolSpeeds(family int) map[int]uint32 {
	speeds := map[int]uint32{}
	if family == 0 {
		return speeds
	}
	ask := nl.NewNetlinkRequest(family, unix.NLM_F_DUMP)
	ask.AddData(genericHeader{msgLinkModesGet, 1})
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
