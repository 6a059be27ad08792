package heartbeat

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/netft/detector"
)

const (
	// receiveBuffer holds what comes while this process does not run: about 1.5 KiB for each heartbeat, by the
	// kernel's count, so 5,000 of them.
	receiveBuffer = 8 << 20
	// maxDatagram is the longest that is read whole: a probe of a jumbo frame.
	maxDatagram = 64 << 10
	// maxDrain bounds what is read of one socket at a tick: more than its buffer holds.
	maxDrain = 1 << 15
	// trafficClass is CS6, network control (RFC 2474): switches that sort their queues let heartbeats pass.
	trafficClass = 0xc0
)

// socket is bound to one interface, family and port.
type socket struct {
	door
	name    string
	network uint16
	fd      int
}

// openSocket works in the network namespace of the calling thread.
func openSocket(at door, name string, port uint16) (*socket, error) {
	family := unix.AF_INET
	if at.family == detector.IPv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("heartbeat: socket on %s: %w", name, os.NewSyscallError("socket", err))
	}
	s := &socket{door: at, name: name, fd: fd}
	if err := s.prepare(port); err != nil {
		return nil, errors.Join(fmt.Errorf("heartbeat: %v on %s, UDP port %d: %w", at.family, name, port, err), s.close())
	}
	return s, nil
}

func (s *socket) prepare(port uint16) error {
	if err := unix.SetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.name); err != nil {
		return os.NewSyscallError("bind to device", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return os.NewSyscallError("ask for time stamps", err)
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // as much as the system's limit gives
	}
	if s.family == detector.IPv4 {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_TOS, trafficClass) // a wish
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		return os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrInet4{Port: int(port)}))
	}
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		return os.NewSyscallError("ask for IPv6 only", err)
	}
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, trafficClass)
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
	return os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrInet6{Port: int(port)}))
}

func (s *socket) close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }

func (s *socket) send(b []byte, to unix.Sockaddr) error {
	return unix.Sendto(s.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to)
}

// receive reads a datagram: its length, who sent it, and when it came by CLOCK_REALTIME, 0 if that is not known.
func (s *socket) receive(b, oob []byte) (n int, from netip.Addr, came time.Duration, err error) {
	n, oobn, _, sender, err := unix.Recvmsg(s.fd, b, oob, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, from, 0, err
	}
	switch a := sender.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		from = netip.AddrFrom16(a.Addr)
	}
	return n, from, stampOf(oob[:oobn]), nil
}

// stampOf finds SCM_TIMESTAMPNS, which is the only message that was asked for.
func stampOf(oob []byte) time.Duration {
	header, data, _, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil || header.Level != unix.SOL_SOCKET || header.Type != unix.SO_TIMESTAMPNS || len(data) < int(unsafe.Sizeof(unix.Timespec{})) {
		return 0
	}
	ts := (*unix.Timespec)(unsafe.Pointer(&data[0]))
	return time.Duration(ts.Nano())
}

func readClock(id int32) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(id, &ts) != nil {
		return 0 // both clocks that are read exist since Linux 2.6
	}
	return time.Duration(ts.Nano())
}

// Now reads CLOCK_MONOTONIC, the clock of all times here.
func Now() time.Duration { return readClock(unix.CLOCK_MONOTONIC) }
