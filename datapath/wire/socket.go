package wire

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout makes a connection fail when the peer does not acknowledge what was sent for so long.
func userTimeout(c syscall.RawConn, d time.Duration) error {
	var err error
	ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
	return errors.Join(ctl, err)
}

// listener sets that on what it accepts.
type listener struct {
	net.Listener
	silence time.Duration
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			_ = userTimeout(raw, l.silence) // pings find a dead peer too
		}
	}
	return c, nil
}

// DialTCP is the default of ClientOptions.Dial: TCP connections that fail when the peer does not acknowledge what was
// sent for silence.
func DialTCP(silence time.Duration) func(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, Control: func(network, _ string, c syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		return userTimeout(c, silence)
	}}
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}
