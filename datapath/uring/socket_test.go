package uring_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// pair attaches one end of a socket pair to ring 0; the other end is the test's.
func pair(t testing.TB, e *uring.Engine) (*uring.Socket, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[1], true); err != nil { // read and write deadlines work then
		t.Fatal(err)
	}
	peer := os.NewFile(uintptr(fds[1]), "peer")
	t.Cleanup(func() { _ = peer.Close() })
	_ = peer.SetDeadline(time.Now().Add(patience))
	var s *uring.Socket
	on(t, e, func(r *uring.Ring) { s, err = r.Attach(fds[0]) })
	if err != nil {
		t.Fatal(err)
	}
	return s, peer
}

type received struct {
	n   int
	err error
}

func recv(t testing.TB, e *uring.Engine, s *uring.Socket, p []byte) <-chan received {
	t.Helper()
	c := make(chan received, 1)
	on(t, e, func(*uring.Ring) { s.Recv(p, nil, func(n int, err error) { c <- received{n, err} }) })
	return c
}

func send(t testing.TB, e *uring.Engine, s *uring.Socket, bufs [][]byte) <-chan error {
	t.Helper()
	c := make(chan error, 1)
	on(t, e, func(*uring.Ring) { s.Send(bufs, func(err error) { c <- err }) })
	return c
}

func closeSocket(t testing.TB, e *uring.Engine, s *uring.Socket) {
	t.Helper()
	c := make(chan struct{})
	on(t, e, func(*uring.Ring) { s.Close(func() { close(c) }) })
	wait(t, c)
}

func TestSocketEcho(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := pair(t, e)
	buf := make([]byte, 64)
	got := recv(t, e, s, buf) // waits: nothing is there yet
	if _, err := peer.WriteString("ping"); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, got); r.err != nil || string(buf[:r.n]) != "ping" {
		t.Fatalf("received %q, %v", buf[:r.n], r.err)
	}
	got = recv(t, e, s, buf) // a receive and a send at once
	if err := wait(t, send(t, e, s, [][]byte{[]byte("po"), nil, []byte("ng")})); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 4)
	if _, err := io.ReadFull(peer, back); err != nil || string(back) != "pong" {
		t.Fatalf("peer got %q, %v", back, err)
	}
	_ = peer.Close()
	if r := wait(t, got); r.n != 0 || r.err != nil {
		t.Fatalf("at the peer's close: %+v", r)
	}
	if err := wait(t, send(t, e, s, [][]byte{[]byte("x")})); !errors.Is(err, unix.EPIPE) || !errors.Is(err, uring.ErrIO) {
		t.Fatalf("send to nobody: %v", err)
	}
	closeSocket(t, e, s)
}

// TestSocketRest receives over the end of the first buffer into the second.
func TestSocketRest(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := pair(t, e)
	for _, text := range []string{"12345678", "12", "1234"} {
		buf := make([]byte, 12)
		c := make(chan received, 1)
		on(t, e, func(*uring.Ring) { s.Recv(buf[:4:4], buf[4:], func(n int, err error) { c <- received{n, err} }) })
		if _, err := peer.WriteString(text); err != nil {
			t.Fatal(err)
		}
		r := wait(t, c)
		if got := string(buf[:r.n]); r.err != nil || got != text {
			t.Errorf("received %q, %v, want %q", got, r.err, text)
		}
	}
	closeSocket(t, e, s)
}

// TestSocketBigSend sends more than the socket holds, in as many pieces as one call takes.
func TestSocketBigSend(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := pair(t, e)
	all := make([]byte, 8<<20+1023)
	_, _ = rand.Read(all)
	var bufs [][]byte
	piece := len(all) / uring.MaxSendBuffers
	for i := range uring.MaxSendBuffers {
		end := (i + 1) * piece
		if i == uring.MaxSendBuffers-1 {
			end = len(all)
		}
		bufs = append(bufs, all[i*piece:end])
	}
	sent := send(t, e, s, bufs)
	clear(bufs) // the slice of buffers is the caller's again
	got := make([]byte, len(all))
	for at := 0; at < len(got); { // in odd steps
		n, err := peer.Read(got[at:min(at+100003, len(got))])
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if err := wait(t, sent); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, all) {
		t.Fatal("the peer got something else")
	}
	closeSocket(t, e, s)
}

func TestSocketEmptySend(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, _ := pair(t, e)
	if err := wait(t, send(t, e, s, [][]byte{nil, {}})); err != nil {
		t.Fatal(err)
	}
	closeSocket(t, e, s)
}

func TestSocketMisuse(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Sockets: 1})
	s, _ := pair(t, e)
	first := recv(t, e, s, make([]byte, 1))
	wantError(t, wait(t, recv(t, e, s, make([]byte, 1))).err, uring.ErrInvalid, unix.EALREADY)
	wantError(t, wait(t, send(t, e, s, make([][]byte, uring.MaxSendBuffers+1))), uring.ErrInvalid, unix.EINVAL)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	on(t, e, func(r *uring.Ring) {
		if _, err := r.Attach(fds[0]); !errors.Is(err, uring.ErrQueueFull) {
			t.Errorf("a second socket of one: %v", err)
		}
		if _, err := r.Attach(0); err == nil {
			t.Error("attached what is no socket")
		}
	})
	closeSocket(t, e, s)
	wantError(t, wait(t, first).err, uring.ErrClosed, unix.EBADF)
	wantError(t, wait(t, recv(t, e, s, make([]byte, 1))).err, uring.ErrClosed, unix.EBADF)
	closeSocket(t, e, s) // again
}

// TestSocketCloseOrder closes under a receive and a blocked send: both fail, then the descriptor is
// closed, then closed is called.
func TestSocketCloseOrder(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, peer := pair(t, e)
	events := make(chan string, 3)
	on(t, e, func(*uring.Ring) {
		s.Recv(make([]byte, 1), nil, func(_ int, err error) { events <- "recv " + kind(err) })
		s.Send([][]byte{make([]byte, 16<<20)}, func(err error) { events <- "send " + kind(err) })
	})
	time.Sleep(20 * time.Millisecond) // the send fills the socket and waits
	on(t, e, func(*uring.Ring) {
		s.Close(func() { events <- "closed" })
		if len(events) != 0 {
			t.Error("a callback ran inside Close")
		}
	})
	got := map[string]int{}
	for i := range 3 {
		got[wait(t, events)] = i
	}
	if len(got) != 3 || got["closed"] != 2 {
		t.Fatalf("events %v", got)
	}
	if _, err := io.Copy(io.Discard, peer); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
}

func kind(err error) string {
	if errors.Is(err, uring.ErrClosed) {
		return "closed"
	}
	return "other"
}

// TestEngineCloseClosesSockets leaves a socket to the engine.
func TestEngineCloseClosesSockets(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	s, _ := pair(t, e)
	got := recv(t, e, s, make([]byte, 1))
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, wait(t, got).err, uring.ErrClosed, unix.EBADF)
}
