package iotrace

import (
	"encoding/binary"
	"net/netip"
)

// addrPort reads what the kernel wrote in the order of the network.
func (p *tcpPeer) addrPort() netip.AddrPort {
	var a [16]byte
	for i, word := range p.Address {
		binary.NativeEndian.PutUint32(a[4*i:], word)
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], p.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), binary.BigEndian.Uint16(port[:]))
}
