package trace

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

// The two ends of the slow wire.
const (
	nodeAddress      = "10.214.213.1"
	initiatorAddress = "10.214.213.2"
	nodeEnd          = "lunar-slow1"
	initiatorEnd     = "lunar-slow2"
)

// packet is on its way, and is due at a time.
type packet struct {
	data []byte
	due  time.Time
}

// wireDepth bounds the packets under way in one direction; more are lost, as in a switch.
const wireDepth = 4096

// carry takes packets from one end to the other, each after so long, until from is closed.
func carry(from, to *os.File, after time.Duration) {
	way := make(chan packet, wireDepth)
	var all sync.WaitGroup
	all.Go(func() {
		for p := range way {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.data) // a wire promises nothing
		}
	})
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if err != nil {
			break
		}
		select {
		case way <- packet{buf[:n], time.Now().Add(after)}:
		default:
		}
	}
	close(way)
	all.Wait()
}

// tunnel makes a TUN device in a network namespace, the present one for "".
func tunnel(namespace, name string) (f *os.File, err error) {
	var made sync.WaitGroup
	made.Go(func() {
		if namespace != "" {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err = enter("/run/netns/" + namespace); err != nil {
				return
			}
		}
		f, err = openTunnel(name)
	})
	made.Wait()
	return f, err
}

func enter(namespace string) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}

func openTunnel(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	var request struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], name)
	request.flags = unix.IFF_TUN | unix.IFF_NO_PI
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", name, errno)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// slowWire joins a host with the lab's own namespace; what the host sends takes so long.
func slowWire(ctx context.Context, t *testing.T, h *lab.Host, after time.Duration) {
	t.Helper()
	node, err := tunnel(h.Namespace, nodeEnd)
	check(t, err)
	initiator, err := tunnel("", initiatorEnd)
	if err != nil {
		node.Close()
	}
	check(t, err)
	var all sync.WaitGroup
	all.Go(func() { carry(node, initiator, after) })
	all.Go(func() { carry(initiator, node, 0) })
	t.Cleanup(func() { node.Close(); initiator.Close(); all.Wait() })
	for _, words := range [][]string{
		{"-n", h.Namespace, "addr", "add", nodeAddress, "peer", initiatorAddress, "dev", nodeEnd},
		{"-n", h.Namespace, "link", "set", nodeEnd, "mtu", "60000", "up"},
		{"addr", "add", initiatorAddress, "peer", nodeAddress, "dev", initiatorEnd},
		{"link", "set", initiatorEnd, "mtu", "60000", "up"},
	} {
		_, err := lab.Run(ctx, append([]string{"ip"}, words...)...)
		check(t, err)
	}
}

// TestNetworkDelay: a network that takes 10 ms shows where the network is: in the round trips, and in the time that a
// write's data takes to come.
func TestNetworkDelay(t *testing.T) {
	timed(t)
	ctx, l := labtest.Open(t, limit, "qemu-io", "mkfs.xfs", "ip")
	h, err := l.Host(ctx, "slow")
	check(t, err)
	slowWire(ctx, t, h, delay)
	disk, err := l.Loop("disk", 512*mib)
	check(t, err)
	n, err := l.Lunard(ctx, lab.Config{Host: h, Address: nodeAddress})
	check(t, err)
	e, err := n.ServeImage(ctx, disk.Path, "64MiB", target)
	check(t, err)
	repeat(ctx, t, e, 1, "write -P 7 0 1M")
	client := api.NewClient(n.Socket)
	t.Cleanup(client.Close)

	const writes = 20 // each of more than the initiator may send before it is asked
	hold(t, expected{
		slow: []string{"data", "network"}, command: "WRITE", most: "data",
		fast: []string{"decode", "layout", "queue", "device", "block write", "io_uring write", "redirect", "execute", "answer"},
	}, func() *seen {
		return follow(ctx, t, client, api.TraceQuery{Slowest: 5}, func() { repeat(ctx, t, e, writes, "write -P 7 0 320k") },
			func(s *seen) bool { return s.count("data") >= writes && s.count("network") > 20 })
	})

	top, err := client.Top(ctx, api.TopQuery{Window: api.MinTopWindow})
	check(t, err)
	if len(top.Nodes) != 1 || len(top.Volumes) != 1 || top.Volumes[0].Volume != "Volume1" || len(top.Notes) > 0 {
		t.Errorf("top is %+v", top)
	}
}
