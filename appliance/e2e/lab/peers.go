package lab

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"
)

// Export is one LUN, offered by some target at one or more portals.
type Export struct {
	// URLs are in libiscsi's form, one per portal: iscsi://ADDRESS:PORT/IQN/LUN.
	URLs []string
	// Target serves it.
	Target *Process
}

const (
	startLimit = 15 * time.Second
	peerIQN    = "iqn.2026-01.lunar.test:peer"
)

func export(target *Process, address, iqn string, lun int, ports ...int) *Export {
	e := &Export{Target: target}
	for _, port := range ports {
		portal := net.JoinHostPort(address, strconv.Itoa(port))
		e.URLs = append(e.URLs, fmt.Sprintf("iscsi://%s/%s/%d", portal, iqn, lun))
	}
	return e
}

// TgtdStore says how tgtd reads and writes its file.
type TgtdStore []string

// The stores of tgtd. The first two bypass the page cache, for speed beside ours (aio does so by
// itself, and lacks commands); the third is its default, the most complete.
var (
	TgtdAIO     = TgtdStore{"--bstype", "aio"}
	TgtdRdwr    = TgtdStore{"--bstype", "rdwr", "--bsoflags", "direct"}
	TgtdDefault = TgtdStore{"--bstype", "rdwr"}
)

// Tgtd exports path by Debian's tgtd, at two portals.
func (l *Lab) Tgtd(ctx context.Context, store TgtdStore, path string) (*Export, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	control := strconv.Itoa(ports[0] & 0x7fff) // the number of tgtd's control socket, 15 bits
	p, err := l.Start("tgtd", "-f", "-C", control,
		"--iscsi", fmt.Sprintf("portal=127.0.0.1:%d,portal=127.0.0.1:%d", ports[0], ports[1]))
	if err != nil {
		return nil, err
	}
	l.own(func() error { p.Kill(); return nil }) // tgtd does not heed SIGTERM while it has targets
	admin := func(args ...string) error {
		_, err := Run(ctx, append([]string{"tgtadm", "-C", control, "--lld", "iscsi"}, args...)...)
		return err
	}
	newTarget := func() error { return admin("--op", "new", "--mode", "target", "--tid", "1", "-T", peerIQN) }
	if err := Poll(startLimit, newTarget); err != nil {
		return nil, err
	}
	lun := []string{"--mode", "logicalunit", "--tid", "1", "--lun", "1"}
	steps := [][]string{
		append(append([]string{"--op", "new", "-b", path}, lun...), store...),
		append([]string{"--op", "update", "--params", "thin_provisioning=1"}, lun...),
		{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"},
	}
	for _, step := range steps {
		if err := admin(step...); err != nil {
			return nil, err
		}
	}
	return export(p, "127.0.0.1", peerIQN, 1, ports...), nil
}

// Gotgt exports path by gotgt, embedded in the program at bin (appliance/bench/gotgt), at one portal.
func (l *Lab) Gotgt(bin, path string) (*Export, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	p, err := l.Start(bin, "-port", strconv.Itoa(port), "-iqn", peerIQN, "-file", path)
	if err != nil {
		return nil, err
	}
	return export(p, "127.0.0.1", peerIQN, 0, port), Poll(startLimit, func() error { return dial(port) })
}

func dial(port int) error {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}
