package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// listeners are the sockets that the daemon accepts on.
type listeners struct {
	portals   []net.Listener
	activated bool // the portals came from systemd
	api       net.Listener
	metrics   net.Listener // nil: off
}

func (l *listeners) close() {
	for _, p := range append(slices.Clone(l.portals), l.api, l.metrics) {
		if p != nil {
			_ = p.Close()
		}
	}
}

// listen opens every socket, or none. TCP sockets that systemd hands in take the place of the
// configured portals.
func (d *Daemon) listen() (*listeners, error) {
	l := &listeners{}
	if err := d.open(l); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// open leaves what it opened in l, also on failure.
func (d *Daemon) open(l *listeners) (err error) {
	if l.portals, err = activatedPortals(); err != nil {
		return err
	}
	l.activated = len(l.portals) > 0
	if !l.activated {
		if l.portals, err = listenPortals(d.config.ISCSI.Portals); err != nil {
			return err
		}
	}
	if l.api, err = listenUnix(d.config.Socket); err != nil {
		return err
	}
	if d.config.Metrics.Listen != "" {
		if l.metrics, err = net.Listen("tcp", d.config.Metrics.Listen); err != nil {
			return fmt.Errorf("metrics.listen: %w; choose another address in the configuration, or \"\" for none", err)
		}
	}
	return nil
}

func activatedPortals() ([]net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	var portals []net.Listener
	for _, l := range all {
		switch l := l.(type) {
		case nil:
		case *net.TCPListener:
			portals = append(portals, l)
		default:
			_ = l.Close()
		}
	}
	return portals, nil
}

func listenPortals(addresses []string) ([]net.Listener, error) {
	var portals []net.Listener
	for _, a := range addresses {
		l, err := listenPortal(a)
		if err != nil {
			for _, p := range portals {
				_ = p.Close()
			}
			return nil, fmt.Errorf("iscsi.portals: %w%s", err, listenHint(err))
		}
		portals = append(portals, l)
	}
	return portals, nil
}

// listenHint says what to do about an address that cannot be had.
func listenHint(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; is another target running? (ss -ltnp)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "; this machine has no such address (ip address)"
	}
	return ""
}

// listenPortal falls back from [::] to 0.0.0.0 on a machine without IPv6.
func listenPortal(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		if ap, e := netip.ParseAddrPort(address); e == nil && ap.Addr() == netip.IPv6Unspecified() {
			return net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()).String())
		}
	}
	return l, err
}

// listenUnix makes the API's socket for root alone. One that a killed daemon left behind is replaced.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if answers(path) {
		return nil, fmt.Errorf("socket: another lunard listens on %s; stop it, or give this one its own --socket", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	return l, nil
}

func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
