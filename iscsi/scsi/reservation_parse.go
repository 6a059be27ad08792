package scsi

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// reservationScope gives the parser what the device knows of its ports.
type reservationScope struct {
	ports      []uint16                   // relative target port identifiers of the device
	initiators func(node string) []string // initiator ports known by an iSCSI node name
	persistent bool                       // APTPL is supported
}

const outListLength = 24 // the basic parameter list, and what precedes the TransportIDs

// parseReservationOut makes an order of a PERSISTENT RESERVE OUT (SPC-4 §6.16.3). list is what
// arrived of the PARAMETER LIST LENGTH bytes.
func parseReservationOut(cdb *[16]byte, list []byte, sender nexusID, scope *reservationScope) (*reservationOrder, verdict) {
	o := &reservationOrder{action: reservationAction(cdb[1] & 0x1F), nexus: sender}
	if len(list) < outListLength || uint64(be32(cdb[5:])) != uint64(len(list)) {
		return nil, refusal(senseParameterLength)
	}
	if v := o.parseKind(cdb[2]); v.status != Good {
		return nil, v
	}
	o.key, o.actionKey = be64(list[0:]), be64(list[8:])
	parse := o.parseBasic
	if o.action == actionRegisterAndMove {
		parse = o.parseMove
	}
	v := parse(list, scope)
	return o, v
}

// parseKind reads SCOPE and TYPE, which count for these service actions only.
func (o *reservationOrder) parseKind(b byte) verdict {
	switch o.action {
	case actionReserve, actionRelease, actionPreempt, actionPreemptAbort:
	default:
		return verdict{}
	}
	o.kind = reservationType(b & 0x0F)
	if b>>4 != 0 {
		return refusal(senseInvalidField.atBit(2, 7))
	}
	if !o.kind.valid() {
		return refusal(senseInvalidField.atBit(2, 3))
	}
	return verdict{}
}

func (o *reservationOrder) registers() bool {
	return o.action == actionRegister || o.action == actionRegisterIgnore
}

func (o *reservationOrder) parseBasic(list []byte, scope *reservationScope) verdict {
	specified := list[20]&0x08 != 0
	switch {
	case specified && o.action != actionRegister:
		return refusal(senseInvalidParameter.inListBit(20, 3))
	case !specified && len(list) != outListLength:
		return refusal(senseParameterLength)
	case !o.registers():
		return verdict{}
	}
	o.persist = list[20]&0x01 != 0
	if o.persist && !scope.persistent {
		return refusal(senseInvalidParameter.inListBit(20, 0))
	}
	if list[20]&0x04 != 0 {
		o.ports = scope.ports
	}
	if specified {
		return o.parseNamed(list, scope)
	}
	return verdict{}
}

// parseNamed reads the TransportIDs of SPEC_I_PT; a node name without an ISID stands for every
// initiator port of that node that is known.
func (o *reservationOrder) parseNamed(list []byte, scope *reservationScope) verdict {
	if len(list) < outListLength+4 || uint64(be32(list[24:])) != uint64(len(list)-outListLength-4) {
		return refusal(senseParameterLength)
	}
	for at := outListLength + 4; at < len(list); {
		id, n, ok := parseTransportID(list[at:])
		if !ok {
			return refusal(senseInvalidParameter.inList(at))
		}
		o.name(id, scope)
		if len(o.named) > maxRegistrants {
			return refusal(senseNoResources)
		}
		at += n
	}
	return verdict{}
}

// name adds the I_T nexuses of a TransportID through the sender's target port, once each.
func (o *reservationOrder) name(id string, scope *reservationScope) {
	ports := []string{id}
	if !strings.Contains(id, isidSeparator) {
		ports = scope.initiators(id)
	}
	for _, port := range ports {
		n := nexusID{initiator: port, target: o.nexus.target, port: o.nexus.port}
		if n != o.nexus && !slices.Contains(o.named, n) {
			o.named = append(o.named, n)
		}
	}
}

// parseMove reads the parameter list of REGISTER AND MOVE (SPC-4 §6.16.4).
func (o *reservationOrder) parseMove(list []byte, scope *reservationScope) verdict {
	o.persist, o.unregister = list[17]&0x01 != 0, list[17]&0x02 != 0
	if o.persist && !scope.persistent {
		return refusal(senseInvalidParameter.inListBit(17, 0))
	}
	if uint64(be32(list[20:])) != uint64(len(list)-outListLength) {
		return refusal(senseParameterLength)
	}
	port := binary.BigEndian.Uint16(list[18:])
	if !slices.Contains(scope.ports, port) {
		return refusal(senseInvalidParameter.inList(18))
	}
	id, n, ok := parseTransportID(list[outListLength:])
	if !ok || n != len(list)-outListLength || !strings.Contains(id, isidSeparator) {
		return refusal(senseInvalidParameter.inList(24))
	}
	o.destination = nexusID{initiator: id, target: o.nexus.target, port: port}
	return verdict{}
}

// isidSeparator stands between the iSCSI name and the ISID in an initiator port's name.
const isidSeparator = ",i,0x"

const (
	isidDigits     = 12
	iscsiNameBytes = 223 // RFC 7143 §4.2.7.1
)

// parseTransportID reads one iSCSI TransportID (SPC-4 §7.6.4.6) from p and tells how long it is.
// The name is name,i,0xISID, or the node name alone for TPID FORMAT 00b; in lower case, as iSCSI
// compares names.
func parseTransportID(p []byte) (name string, n int, ok bool) {
	if len(p) < 24 || p[0]&0x3F != 0x05 {
		return "", 0, false
	}
	n = 4 + be16(p[2:])
	if n < 24 || n > len(p) || n%4 != 0 {
		return "", 0, false
	}
	text, padding, ended := bytes.Cut(p[4:n], []byte{0})
	if !ended || len(bytes.Trim(padding, "\x00")) != 0 {
		return "", 0, false
	}
	name = strings.ToLower(string(text))
	return name, n, validPortName(name, p[0]>>6)
}

func validPortName(name string, format byte) bool {
	node, isid, port := strings.Cut(name, isidSeparator)
	if node == "" || len(node) > iscsiNameBytes || !printable(node) {
		return false
	}
	switch format {
	case 0:
		return !port
	case 1:
		return port && len(isid) == isidDigits && strings.Trim(isid, "0123456789abcdef") == ""
	}
	return false
}

// transportID is the TransportID of an initiator port's name, padded as SPC-4 §7.6.4.6 says.
func transportID(name string) []byte {
	size := max(20, (len(name)+1+3)&^3)
	p := make([]byte, 4+size)
	p[0] = 0x05
	if strings.Contains(name, isidSeparator) {
		p[0] |= 0x40
	}
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	copy(p[4:], name)
	return p
}
