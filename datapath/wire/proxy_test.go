package wire

import (
	"net"
	"sync"
	"testing"
)

// proxy passes bytes on until it freezes; then its connections stay open and nothing moves, as when a
// machine is off.
type proxy struct {
	addr   string
	frozen chan struct{}
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), frozen: make(chan struct{})}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	keep := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
	}
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			keep(near)
			far, err := net.Dial("tcp", to)
			if err != nil {
				continue
			}
			keep(far)
			all.Go(func() { p.pass(near, far) })
			all.Go(func() { p.pass(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return p
}

func (p *proxy) freeze() { close(p.frozen) }

func (p *proxy) pass(from, to net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		select {
		case <-p.frozen:
			continue
		default:
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
