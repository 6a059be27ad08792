package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/cluster"
	"lunar/netft/network"
)

// The bounds of probes.
const (
	echoLife   = 5 * time.Second        // of the socket that answers them
	probeWait  = 300 * time.Millisecond // for one answer
	probeTries = 3
	maxEchoes  = 64 // sockets that answer at once
)

// pathEcho asks a node to answer probes for a while; the answer is the UDP port.
const pathEcho = "/node/v1/echo"

// A probe is a datagram of a nonce (8 bytes) and zeroes; the answer is the nonce and the probe's length (4 bytes, big
// endian), so that nobody gets more out of an echo than is put in.
const (
	probeNonce  = 8
	probeAnswer = probeNonce + 4
	smallProbe  = 32
)

// probeResult is what became of datagrams to a peer over a network.
type probeResult struct {
	Peer    string `json:"peer"`
	Network string `json:"network"`
	Size    int    `json:"size"`          // of the large one with its headers: the MTU of this node's interface
	Large   bool   `json:"large"`         // it arrived whole
	Err     string `json:"err,omitempty"` // why nothing passed
}

// echo answers probes on a port until echoLife is over.
func (n *Node) echo(ctx context.Context) (uint16, error) {
	select {
	case n.echoes <- struct{}{}:
	default:
		return 0, errors.New("it answers too many others")
	}
	m := n.membership.Load()
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", ":0")
	if err != nil {
		<-n.echoes
		return 0, err
	}
	_ = conn.SetDeadline(time.Now().Add(echoLife))
	m.tasks.Go(func() {
		defer func() { <-n.echoes }()
		defer conn.Close() //nolint:errcheck // nothing is lost
		answerProbes(conn)
	})
	return netip.MustParseAddrPort(conn.LocalAddr().String()).Port(), nil
}

func answerProbes(conn net.PacketConn) {
	buffer := make([]byte, 1<<16)
	for {
		length, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		if length < probeAnswer {
			continue
		}
		binary.BigEndian.PutUint32(buffer[probeNonce:], uint32(length))
		_, _ = conn.WriteTo(buffer[:probeAnswer], from)
	}
}

// probeNetworks sends datagrams of full size to each other node over each network that both are on.
func (n *Node) probeNetworks(ctx context.Context) []probeResult {
	k := n.networks.Load()
	m := n.membership.Load()
	if k == nil || m == nil || !m.shared {
		return nil
	}
	var mu sync.Mutex // guards out
	var out []probeResult
	var all sync.WaitGroup
	for _, peer := range *m.members.Load() {
		if peer.Name == n.name {
			continue
		}
		all.Go(func() {
			found := n.probePeer(ctx, peer, sharedNetworks(k.view.Networks, n.db.Number(), peer.Number))
			mu.Lock()
			defer mu.Unlock()
			out = append(out, found...)
		})
	}
	all.Wait()
	return out
}

func (n *Node) probePeer(ctx context.Context, peer cluster.Member, shared []network.Network) []probeResult {
	ctx, cancel := context.WithTimeout(ctx, echoLife)
	defer cancel()
	port, err := askPeer[uint16](ctx, n, peer, http.MethodPost, pathEcho, nil)
	if err != nil {
		return nil // that it does not answer is told by the facts
	}
	out := make([]probeResult, 0, len(shared))
	for _, w := range shared {
		own, _ := w.Member(n.db.Number())
		other, _ := w.Member(peer.Number)
		r := probeResult{Peer: peer.Name, Network: w.Name, Size: own.Interface.MTU}
		if from, to, ok := commonFamily(own.Interface, other.Interface); ok {
			r.Large, err = probe(ctx, netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, port), r.Size)
			if err != nil {
				r.Err = err.Error()
			}
			out = append(out, r)
		}
	}
	return out
}

// commonFamily chooses addresses of both; link-local ones get this node's interface as their zone.
func commonFamily(own, other network.Interface) (from, to netip.Addr, ok bool) {
	if from, to = own.Address6(), other.Address6(); from.IsValid() && to.IsValid() && from.IsLinkLocalUnicast() == to.IsLinkLocalUnicast() {
		if from.IsLinkLocalUnicast() {
			from, to = from.WithZone(own.Name), to.WithZone(own.Name)
		}
		return from, to, true
	}
	from, to = own.Address4(), other.Address4()
	return from, to, from.IsValid() && to.IsValid()
}

// ipHeaders are those before a datagram's data.
func ipHeaders(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// probe sends a small datagram and one of size bytes with its headers, which routers must not cut in pieces. large tells
// that the latter arrived; the error, why not even the former did.
func probe(ctx context.Context, from, to netip.AddrPort, size int) (large bool, err error) {
	dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from), Control: whole}
	conn, err := dialer.DialContext(ctx, "udp", to.String())
	if err != nil {
		return false, err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	headers := ipHeaders(to.Addr())
	if passed, err := exchangeProbe(conn, smallProbe); !passed {
		return false, errors.Join(errors.New("no answer"), err)
	}
	large, _ = exchangeProbe(conn, min(size, 1<<16-1)-headers)
	return large, nil
}

// whole forbids fragments, whatever is believed of the path's MTU.
func whole(_, _ string, c syscall.RawConn) error {
	var err error
	outer := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		if e := unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); e == nil {
			err = nil // of an IPv6 socket
		}
	})
	return errors.Join(outer, err)
}

func exchangeProbe(conn net.Conn, length int) (bool, error) {
	if length < probeAnswer {
		return false, fmt.Errorf("an MTU that leaves %d bytes is too small", length)
	}
	var last error
	for range probeTries {
		data := make([]byte, length)
		_, _ = rand.Read(data[:probeNonce])
		if _, last = conn.Write(data); last != nil {
			continue
		}
		if last = awaitProbe(conn, data); last == nil {
			return true, nil
		}
	}
	return false, last
}

func awaitProbe(conn net.Conn, sent []byte) error {
	if err := conn.SetReadDeadline(time.Now().Add(probeWait)); err != nil {
		return err
	}
	answer := make([]byte, probeAnswer)
	for {
		length, err := conn.Read(answer)
		if err != nil {
			return err
		}
		if length == probeAnswer && bytes.Equal(answer[:probeNonce], sent[:probeNonce]) &&
			int(binary.BigEndian.Uint32(answer[probeNonce:])) == len(sent) {
			return nil
		}
	}
}
