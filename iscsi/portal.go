package iscsi

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultGroup is the target portal group tag of a portal that names none, until Server.SetGroup.
const DefaultGroup = 1

// MaxPeers bounds the portals of other servers that discovery tells.
const MaxPeers = 256

// Peer is a portal of another server that offers the same targets.
type Peer struct {
	Address string // host:port
	Group   uint16 // target portal group tag, unlike those of every other server
}

// SetGroup gives the portals that name no group another one: servers that offer the same targets have
// a target portal group each. It counts for sessions from now on.
func (s *Server) SetGroup(group uint16) { s.group.Store(uint32(group)) }

// SetPeers replaces the portals of other servers that SendTargets tells beside this one's, the first
// MaxPeers of them.
func (s *Server) SetPeers(peers []Peer) {
	own := slices.Clone(peers[:min(len(peers), MaxPeers)])
	s.peers.Store(&own)
}

// Portal is where initiators connect.
type Portal struct {
	// Listener is a TCP listener, made by net.Listen or handed in by socket activation. The
	// server owns it.
	Listener net.Listener
	// Group is the target portal group tag and the relative target port, from 1. Default: the
	// server's.
	Group uint16
	// Advertise is the host:port that SendTargets gives. Default: the listener's address, or for
	// a wildcard listener the address that the initiator came to.
	Advertise string
}

type portal struct {
	Portal
	server *Server
	ended  sync.WaitGroup
}

// serve is the accept loop; it ends when the listener is closed.
func (p *portal) serve() {
	defer p.ended.Done()
	for wait := time.Duration(0); ; {
		c, err := p.Listener.Accept()
		switch {
		case err == nil:
			wait = 0
			p.server.adopt(p, c)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			wait = min(wait*2+5*time.Millisecond, time.Second)
			p.server.opts.Log.Warn("iscsi: accept failed", "portal", p.Listener.Addr(), "error", err)
			p.server.pause(wait)
		}
	}
}

func (p *portal) close() error {
	err := p.Listener.Close()
	p.ended.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("iscsi: close portal %s: %w", p.Listener.Addr(), err)
	}
	return nil
}

// group is the portal's target portal group tag.
func (p *portal) group() uint16 {
	if p.Group != 0 {
		return p.Group
	}
	return uint16(p.server.group.Load())
}

// address is the TargetAddress that an initiator which came to local is told.
func (p *portal) address(local net.Addr) string {
	if p.Advertise != "" {
		return p.Advertise
	}
	own, ok := p.Listener.Addr().(*net.TCPAddr)
	if !ok || !own.IP.IsUnspecified() && own.IP != nil {
		return stripZone(p.Listener.Addr().String())
	}
	came, ok := local.(*net.TCPAddr)
	if !ok {
		return own.String()
	}
	return (&net.TCPAddr{IP: came.IP, Port: own.Port}).String()
}

func stripZone(addr string) string {
	from, to := strings.IndexByte(addr, '%'), strings.LastIndexByte(addr, ']')
	if from < 0 || to < from {
		return addr
	}
	return addr[:from] + addr[to:]
}

// detach makes the connection's descriptor ours and closes the net.Conn.
func detach(c net.Conn) (fd int, err error) {
	defer func() { _ = c.Close() }()
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("iscsi: %T has no descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("iscsi: detach: %w", err)
	}
	var dupErr error
	err = raw.Control(func(own uintptr) {
		fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("iscsi: detach: %w", err)
	}
	return fd, nil
}

// tune sets the TCP options; a stream socket of another family refuses them, which is no harm.
func tune(fd int, stall time.Duration) {
	set := func(level, name, value int) { _ = unix.SetsockoptInt(fd, level, name, value) }
	set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
	set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stall/time.Millisecond))
}
