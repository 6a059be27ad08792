package nbd

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// Name is an export's name, taken apart. People and tools write VOLUME/IMAGE, with the image's number
// in hexadecimal; a node writes VOLUME/IMAGE@EPOCH#NODE.INCARNATION.SET.
type Name struct {
	Volume string
	Image  protocol.ImageID

	// What follows is a node's; Node is "" where people and tools connect.
	Node        protocol.NodeID
	Epoch       uint64 // of the coordinator that it means
	Incarnation uint64 // of the node's process
	Set         uint64 // of connections; grows within an incarnation
}

// String is the name on the wire.
func (n Name) String() string {
	s := fmt.Sprintf("%s/%x", n.Volume, uint64(n.Image))
	if n.Node == "" {
		return s
	}
	return fmt.Sprintf("%s@%d#%s.%d.%d", s, n.Epoch, n.Node, n.Incarnation, n.Set)
}

// ParseName takes a name apart; the error wraps EINVAL and shows the form.
func ParseName(s string) (n Name, err error) {
	bad := fmt.Errorf("nbd: export name %q: want VOLUME/IMAGE or VOLUME/IMAGE@EPOCH#NODE.INCARNATION.SET: %w", s, unix.EINVAL)
	front, node, isNode := strings.Cut(s, "@")
	volume, image, ok := strings.Cut(front, "/")
	id, err := strconv.ParseUint(image, 16, 64)
	if !ok || err != nil || volume == "" || len(s) > maxString {
		return n, bad
	}
	n.Volume, n.Image = volume, protocol.ImageID(id)
	if isNode && !n.parseNode(node) {
		return Name{}, bad
	}
	return n, nil
}

// parseNode reads EPOCH#NODE.INCARNATION.SET; a node's name may have dots.
func (n *Name) parseNode(s string) (ok bool) {
	epoch, rest, ok := strings.Cut(s, "#")
	set := strings.LastIndexByte(rest, '.')
	if !ok || set < 0 {
		return false
	}
	incarnation := strings.LastIndexByte(rest[:set], '.')
	if incarnation < 1 {
		return false
	}
	n.Node = protocol.NodeID(rest[:incarnation])
	for _, f := range []struct {
		text string
		to   *uint64
	}{{epoch, &n.Epoch}, {rest[incarnation+1 : set], &n.Incarnation}, {rest[set+1:], &n.Set}} {
		var err error
		if *f.to, err = strconv.ParseUint(f.text, 10, 64); err != nil {
			return false
		}
	}
	return true
}
