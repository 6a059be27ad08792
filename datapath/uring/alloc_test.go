package uring_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// chain repeats something asynchronous on the ring's thread and tells when it was done n times.
type chain struct {
	ring *uring.Ring
	left int
	step func()
	done chan struct{}
	post func()

	limit *time.Timer
}

func newChain(e *uring.Engine) *chain {
	c := &chain{ring: e.Ring(0), done: make(chan struct{}, 1), limit: time.NewTimer(patience)}
	c.post = func() { c.step() }
	return c
}

// next goes on from a completion.
func (c *chain) next() {
	if c.left--; c.left > 0 {
		c.step()
		return
	}
	c.done <- struct{}{}
}

func (c *chain) run(t testing.TB, n int) {
	c.left = n
	if err := c.ring.Post(c.post); err != nil {
		t.Fatal(err)
	}
	c.limit.Reset(patience)
	select {
	case <-c.done:
	case <-c.limit.C:
		t.Fatal("the chain stands still")
	}
}

// transfers makes a chain of reads or writes.
func transfers(t testing.TB, e *uring.Engine, code uring.Code, buf []byte) *chain {
	c, f := newChain(e), openFile(t, e, 1<<20)
	op := &uring.Op{Code: code, File: f, Buf: buf, Done: func(op *uring.Op) {
		if op.Err != nil {
			t.Error(op.Err)
		}
		c.next()
	}}
	c.step = func() { c.ring.Submit(op) }
	return c
}

// echoes makes a chain of a send of two buffers and a receive of the answer. The peer is a goroutine.
func echoes(t testing.TB, e *uring.Engine) *chain {
	s, peer := pair(t, e)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fd := int(peer.Fd())
		_ = unix.SetNonblock(fd, false) // plain system calls allocate nothing
		echo(fd)
	}()
	t.Cleanup(func() {
		closeSocket(t, e, s)
		<-ended
	})
	c, out, in := newChain(e), [][]byte{make([]byte, 48), make([]byte, 512)}, make([]byte, 4096)
	var onRecv func(n int, err error)
	got := 0
	onRecv = func(n int, err error) {
		if got += n; err != nil || n == 0 {
			t.Error("receive", n, err)
		} else if got < 560 {
			s.Recv(in, nil, onRecv)
			return
		}
		c.next()
	}
	onSent := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	c.step = func() {
		got = 0
		s.Recv(in, nil, onRecv)
		s.Send(out, onSent)
	}
	return c
}

// echo returns what it reads, until the end.
func echo(fd int) {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return
		}
		for at := 0; at < n; {
			m, err := unix.Write(fd, buf[at:n])
			if err != nil {
				return
			}
			at += m
		}
	}
}

func TestNoAllocations(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	buf := e.Pool().Get(4096)
	defer e.Pool().Put(buf)
	const n = 1000
	for name, c := range map[string]*chain{
		"write": transfers(t, e, uring.Write, buf),
		"read":  transfers(t, e, uring.Read, buf),
		"heap":  transfers(t, e, uring.Write, make([]byte, 512)),
		"flush": transfers(t, e, uring.Flush, nil),
		"echo":  echoes(t, e),
	} {
		c.run(t, n) // grows what grows once
		if allocs := testing.AllocsPerRun(5, func() { c.run(t, n) }); allocs >= n/100 {
			t.Errorf("%s: %v allocations in %d operations", name, allocs, n)
		}
	}
}

func benchmark(b *testing.B, c *chain) {
	b.Helper()
	c.run(b, 100)
	b.ReportAllocs()
	b.ResetTimer()
	c.run(b, b.N)
}

func BenchmarkRead(b *testing.B) {
	e := uringtest.Open(b, uring.Options{})
	buf := e.Pool().Get(4096)
	defer e.Pool().Put(buf)
	benchmark(b, transfers(b, e, uring.Read, buf))
}

func BenchmarkWrite(b *testing.B) {
	e := uringtest.Open(b, uring.Options{})
	buf := e.Pool().Get(4096)
	defer e.Pool().Put(buf)
	benchmark(b, transfers(b, e, uring.Write, buf))
}

func BenchmarkEcho(b *testing.B) {
	e := uringtest.Open(b, uring.Options{})
	benchmark(b, echoes(b, e))
}

func BenchmarkNop(b *testing.B) {
	e := uringtest.Open(b, uring.Options{})
	c := newChain(e)
	op := &uring.Op{Done: func(*uring.Op) { c.next() }}
	c.step = func() { c.ring.Submit(op) }
	benchmark(b, c)
}
