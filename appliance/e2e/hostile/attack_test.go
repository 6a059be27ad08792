package hostile

import (
	"crypto/rand"
	"net"
	"sync"
	"time"
)

// attack is what one hostile connection does over and over; it returns when its connection has
// ended or stop is closed.
type attack struct {
	name string
	run  func(a *attacker, conn net.Conn)
	rest time.Duration // before it connects again
}

var attacks = []attack{
	{"silent", func(a *attacker, conn net.Conn) { a.linger(conn) }, time.Second},
	{"slow login", func(a *attacker, conn net.Conn) { a.drip(conn, loginRequest(a.target, 1<<20+a.n)) }, time.Second},
	{"half a login", func(a *attacker, conn net.Conn) { a.send(conn, loginRequest(a.target, 0)[:20]); a.linger(conn) }, time.Second},
	{"garbage", func(a *attacker, conn net.Conn) { a.send(conn, garbage()); a.linger(conn) }, 100 * time.Millisecond},
	{"come and go", func(*attacker, net.Conn) {}, 100 * time.Millisecond},
	{"reads no answers", (*attacker).deaf, time.Second},
	{"half a command", (*attacker).half, time.Second},
	{"half-open", func(a *attacker, conn net.Conn) { _ = conn.(*net.TCPConn).CloseWrite(); a.linger(conn) }, 200 * time.Millisecond}, //nolint:forcetypeassert // dial gives no other
}

// attacker is one of the hostile connections' owners.
type attacker struct {
	from, portal, target string
	n                    int
	stop                 <-chan struct{}
}

// besiege keeps n hostile connections going until the function that it returns has ended them.
func besiege(n int, portal, target string) (end func()) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		a := &attacker{from: []string{"127.0.0.2", "127.0.0.3"}[i%2], portal: portal, target: target, n: i, stop: stop}
		all.Go(func() { a.repeat(attacks[i%len(attacks)]) })
	}
	return func() {
		close(stop)
		all.Wait()
	}
}

func (a *attacker) repeat(what attack) {
	for over := false; !over; over = a.pause(what.rest) {
		if conn, err := dial(a.from, a.portal); err == nil {
			what.run(a, conn)
			_ = conn.Close()
		}
	}
}

// pause tells whether it is over.
func (a *attacker) pause(d time.Duration) bool {
	select {
	case <-a.stop:
		return true
	case <-time.After(d):
		return false
	}
}

func (a *attacker) send(conn net.Conn, p []byte) bool {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := conn.Write(p)
	return err == nil
}

// linger waits until the target has had enough.
func (a *attacker) linger(conn net.Conn) {
	p := make([]byte, 512)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := conn.Read(p)
		timeout, ok := err.(net.Error) //nolint:errorlint // as net gives it
		if err != nil && !(ok && timeout.Timeout()) || a.pause(0) {
			return
		}
	}
}

// drip sends a byte at a time.
func (a *attacker) drip(conn net.Conn, p []byte) {
	for i := range p {
		if !a.send(conn, p[i:i+1]) || a.pause(50*time.Millisecond) {
			return
		}
	}
}

// deaf logs in, asks for much, and reads none of it.
func (a *attacker) deaf(conn net.Conn) {
	s := &session{conn: conn, sn: 1}
	if s.enter(a.target, 1<<20+a.n) != nil {
		return
	}
	for range 64 {
		s.head.SetCmdSN(s.sn)
		s.head.SetITT(s.sn)
		s.sn++
		if !a.send(conn, s.head[:]) {
			return
		}
	}
	a.pause(5 * time.Second)
}

// half logs in and stops in the middle of a command's header.
func (a *attacker) half(conn net.Conn) {
	s := &session{conn: conn, sn: 1}
	if s.enter(a.target, 1<<20+a.n) != nil {
		return
	}
	a.send(conn, s.head[:30])
	a.pause(5 * time.Second)
}

func garbage() []byte {
	p := make([]byte, 4096)
	_, _ = rand.Read(p)
	return p
}
