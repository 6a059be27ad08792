package e2e

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// TestHostileConnections opens 1,000 connections that never log in: silent ones, ones that send
// garbage, half a header, a header that promises more than it may, one byte at a time. Meanwhile a real
// initiator writes, reads and compares; afterwards the daemon has its descriptors back.
func TestHostileConnections(t *testing.T) {
	const connections = 1000
	ctx, s := serve(t, 1024*mib, 128*mib)
	source := random(t, s.lab, "source.raw", 128*mib, 4)
	check(t, lab.Upload(ctx, source, s.url))
	check(t, lab.Equal(ctx, source, s.url)) // the first large read makes the pipe that a ring keeps
	before := descriptors(t, s.node)
	portal := fmt.Sprintf("127.0.0.1:%d", s.node.Ports[0])
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range connections {
		conn, err := net.DialTimeout("tcp", portal, 5*time.Second)
		check(t, err)
		all.Go(func() { torment(conn, hostilities[i%len(hostilities)], stop) })
	}
	check(t, lab.Upload(ctx, source, s.url))
	check(t, lab.Equal(ctx, source, s.url))
	close(stop)
	all.Wait()
	check(t, lab.Poll(30*time.Second, func() error {
		if now := descriptors(t, s.node); now > before {
			return fmt.Errorf("%d descriptors, %d before", now, before)
		}
		return nil
	}))
	check(t, lab.Equal(ctx, source, s.url))
}

// hostility is what a connection sends, and how many bytes at a time; 0 is all at once.
type hostility struct {
	bytes []byte
	step  int
}

var hostilities = []hostility{
	{},
	{bytes: garbage(4096)},
	{bytes: loginHeader(0)[:20]},
	{bytes: loginHeader(0xffffff)},
	{bytes: loginHeader(8192)},
	{bytes: loginHeader(8192), step: 1},
	{bytes: append(loginHeader(12), "Nonsense\x00\x00=\x00"...)},
}

func garbage(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// loginHeader is the basic header segment of a Login Request (RFC 7143 §11.12) with a data segment of n bytes.
func loginHeader(n int) []byte {
	b := make([]byte, 48)
	b[0], b[1] = 0x43, 0x87
	b[5], b[6], b[7] = byte(n>>16), byte(n>>8), byte(n)
	copy(b[8:14], []byte{0x40, 0, 0, 1, 0, 0})
	return b
}

// torment sends and holds on until stop, or until the target has had enough.
func torment(conn net.Conn, h hostility, stop <-chan struct{}) {
	defer conn.Close()
	step := h.step
	if step == 0 {
		step = max(len(h.bytes), 1)
	}
	for rest := h.bytes; len(rest) > 0; rest = rest[min(step, len(rest)):] {
		if _, err := conn.Write(rest[:min(step, len(rest))]); err != nil {
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	<-stop
}

func descriptors(t *testing.T, node *lab.Lunard) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", node.PID()))
	check(t, err)
	return len(entries)
}
