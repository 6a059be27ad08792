package uring_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// tcpPair attaches one end of a TCP connection, with a large send buffer, to ring 0.
func tcpPair(t *testing.T, e *uring.Engine) (s *uring.Socket, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	_ = peer.SetDeadline(time.Now().Add(patience))
	on(t, e, func(r *uring.Ring) { s, err = r.Attach(fd) })
	if err != nil {
		t.Fatal(err)
	}
	return s, peer
}

func pagesOf(t *testing.T, e *uring.Engine, s *uring.Socket, size int64) (p *uring.Pages) {
	t.Helper()
	var err error
	on(t, e, func(*uring.Ring) { p, err = s.Pages(size) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func closePages(t *testing.T, e *uring.Engine, p *uring.Pages) {
	t.Helper()
	on(t, e, func(*uring.Ring) {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestPagesByReference: what was sent out of pages and is not read yet changes with them, but for what the kernel had to copy;
// headers and small pieces do not, and nothing does once the pages are closed.
func TestPagesByReference(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := tcpPair(t, e)
	p := pagesOf(t, e, s, 2<<20)
	head, small, big := bytes.Repeat([]byte{'h'}, 48), p.Get(4096), p.Get(128<<10)
	fill := func(b []byte, c byte) { copy(b, bytes.Repeat([]byte{c}, len(b))) }
	fill(small, 's')
	fill(big, 'a')
	if err := wait(t, send(t, e, s, [][]byte{head, big, head, small})); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{head, small, big} {
		fill(b, 'x')
	}
	closePages(t, e, p)
	got := make([]byte, 48+128<<10+48+4096)
	if _, err := io.ReadFull(peer, got); err != nil {
		t.Fatal(err)
	}
	data := got[48 : 48+128<<10]
	x, a := bytes.Count(data, []byte{'x'}), bytes.Count(data, []byte{'a'})
	if x == 0 || x+a != len(data) {
		t.Errorf("of %d bytes %d went by reference and %d as a copy", len(data), x, a)
	}
	for _, part := range []struct {
		got  []byte
		want byte
	}{{got[:48], 'h'}, {got[48+128<<10:][:48], 'h'}, {got[48+128<<10+48:], 's'}} {
		if bytes.Count(part.got, []byte{part.want}) != len(part.got) {
			t.Errorf("not all of a piece is %q", part.want)
		}
	}
	closeSocket(t, e, s)
}

// TestPagesContent sends pieces of all sizes, in pages and not, to a peer that is slow to read: what the socket does not take
// at once goes another way.
func TestPagesContent(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	local, localPeer := pair(t, e) // holds some 200 KiB
	remote, remotePeer := tcpPair(t, e)
	for name, end := range map[string]struct {
		s    *uring.Socket
		peer io.Reader
	}{"unix": {local, localPeer}, "tcp": {remote, remotePeer}} {
		s, peer := end.s, end.peer
		p := pagesOf(t, e, s, 8<<20)
		rnd, noise := rand.New(rand.NewPCG(1, 2)), rand.NewChaCha8([32]byte{})
		for range 20 {
			var want []byte
			var bufs, out [][]byte
			for range 1 + rnd.IntN(6) {
				b := p.Get(1 + rnd.IntN(512<<10))
				out = append(out, b)
				_, _ = noise.Read(b)
				from := rnd.IntN(len(b))
				for _, piece := range [][]byte{make([]byte, 48), b[from:], b[:from], b} {
					bufs, want = append(bufs, piece), append(want, piece...)
				}
			}
			sent := send(t, e, s, bufs)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(peer, got); err != nil {
				t.Fatal(err)
			}
			if err := wait(t, sent); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: the peer got something else", name)
			}
			for _, b := range out { // the peer has read it all
				p.Put(b)
			}
		}
		closePages(t, e, p)
		closeSocket(t, e, s)
	}
}

// TestPagesWait: a receive that waits and a send that waits go on while pages come and go.
func TestPagesWait(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := pair(t, e)
	p := pagesOf(t, e, s, 1<<20)
	in := make([]byte, 4)
	got := recv(t, e, s, in)
	sent := send(t, e, s, [][]byte{p.Get(1 << 20)}) // more than the socket takes
	again := make(chan received, 1)
	if _, err := peer.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, got); r.err != nil || string(in[:r.n]) != "ping" {
		t.Fatalf("received %q, %v", in[:r.n], r.err)
	}
	on(t, e, func(*uring.Ring) { s.Recv(in, nil, func(n int, err error) { again <- received{n, err} }) })
	if _, err := io.ReadFull(peer, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, sent); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, again); r.err != nil || string(in[:r.n]) != "pong" {
		t.Fatalf("received %q, %v", in[:r.n], r.err)
	}
	closeSocket(t, e, s)
	closePages(t, e, p)
}

// TestPagesHeld: a buffer that the kernel does not give back stays out of use, and the mapping stays until it comes back.
func TestPagesHeld(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Grace: 20 * time.Millisecond})
	s, _ := tcpPair(t, e)
	p := pagesOf(t, e, s, 1<<20)
	faulty := newFaulty(t, e, uring.FaultLose)
	released := make(chan struct{})
	op := &uring.Op{Code: uring.Read, File: openFile(t, e, 1<<20), Buf: p.Get(1 << 20),
		Deadline: 20 * time.Millisecond, Released: func() { close(released) }}
	wait(t, submit(t, e, faulty, op))
	if !op.Held {
		t.Fatal("not held")
	}
	p.Put(op.Buf)
	if p.Get(1<<20) != nil {
		t.Fatal("a held buffer was handed out")
	}
	closePages(t, e, p)
	op.Buf[0] = 1 // mapped
	on(t, e, func(*uring.Ring) { faulty.Release() })
	wait(t, released)
	if n := uring.LentPools(e); n != 0 {
		t.Fatalf("%d pools of sockets are left", n)
	}
	closeSocket(t, e, s)
}

func TestPagesRefused(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, _ := tcpPair(t, e)
	p := pagesOf(t, e, s, 1<<20)
	on(t, e, func(*uring.Ring) {
		if _, err := s.Pages(1 << 20); err == nil {
			t.Error("two pools for one socket")
		}
	})
	closePages(t, e, p)
	on(t, e, func(*uring.Ring) {
		if _, err := s.Pages(12345); err == nil {
			t.Error("a pool of 12345 bytes")
		}
	})
	closeSocket(t, e, s)
	on(t, e, func(*uring.Ring) {
		if _, err := s.Pages(1 << 20); err == nil {
			t.Error("a pool for a closed socket")
		}
	})
}

// TestPagesRead reads from a file into the pages of more sockets than the buffer table has places for, and of later ones.
func TestPagesRead(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	f := openFile(t, e, 1<<20)
	out := e.Pool().Get(64 << 10)
	for i := range out {
		out[i] = byte(i % 251)
	}
	do(t, e, &uring.Op{Code: uring.Write, File: f, Buf: out})
	for range 2 {
		var all []*uring.Pages
		var socks []*uring.Socket
		for i := range uring.LentPlaces + 2 {
			s, _ := pair(t, e)
			p := pagesOf(t, e, s, 1<<20)
			if got, want := uring.Registered(p), i < uring.LentPlaces; got != want {
				t.Fatalf("pool %d is registered: %v", i, got)
			}
			all, socks = append(all, p), append(socks, s)
			in := p.Get(64 << 10)
			do(t, e, &uring.Op{Code: uring.Read, File: f, Buf: in})
			if !bytes.Equal(in, out) {
				t.Fatalf("pool %d: read something else", i)
			}
		}
		for i, p := range all {
			closePages(t, e, p)
			closeSocket(t, e, socks[i])
		}
	}
	e.Pool().Put(out)
}
