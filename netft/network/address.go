package network

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
)

// ClusterAddress is the IPv6 cluster address of a node: fdGG:GGGG:GGGG::N, a unique local address
// (RFC 4193) whose 40-bit global ID comes from SHA-256 of the cluster's id, with subnet ID 0 and
// the node's number as interface ID. It is the zero Addr for number 0.
func ClusterAddress(id string, number uint16) netip.Addr {
	if number == 0 {
		return netip.Addr{}
	}
	sum := clusterHash(id)
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:5])
	binary.BigEndian.PutUint16(a[14:], number)
	return netip.AddrFrom16(a)
}

// The IPv4 link-local addresses that hosts may take: 169.254.1.0 to 169.254.254.255, RFC 3927 §2.1.
const (
	first4 = 169<<24 | 254<<16 | 1<<8
	count4 = 254 << 8
)

// ClusterAddress4 is the IPv4 cluster address of a node, for clusters whose kernels have no IPv6:
// 169.254.1.0 plus the node's number plus an offset from the cluster's id, which wraps at
// 169.254.254.255. Numbers of one cluster never meet below 65025; the result is the zero Addr for
// 0 and from there on.
//
// RFC 3927 asks hosts to probe for a free address first. This one is on an interface without a wire
// and is reached by host routes, so it is not probed; but Linux answers ARP for it on every network
// of the node. A machine on those networks that took the same address by itself (zeroconf, 1 of
// 65024) finds the node there and takes another; two clusters on one network may meet. Prefer IPv6.
func ClusterAddress4(id string, number uint16) netip.Addr {
	if number == 0 || number > count4 {
		return netip.Addr{}
	}
	sum := clusterHash(id)
	offset := binary.BigEndian.Uint32(sum[8:]) % count4
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], first4+(offset+uint32(number))%count4)
	return netip.AddrFrom4(a)
}

func clusterHash(id string) [sha256.Size]byte { return sha256.Sum256([]byte("lunar cluster " + id)) }
