package uring_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// crowd is a pipe with a limit, of which several rings read a byte at a time.
type crowd struct {
	t    *testing.T
	e    *uring.Engine
	file *uring.File
	tap  int // the pipe's writing end
	done chan *uring.Op
	ops  int // not yet drained
}

func newCrowd(t *testing.T, e *uring.Engine, limit int) *crowd {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	c := &crowd{t: t, e: e, file: register(t, e, p[0]), tap: p[1], done: make(chan *uring.Op, 64)}
	uring.Limit(c.file, limit)
	return c
}

// read starts n reads on a ring and checks how many operations the kernel has then.
func (c *crowd) read(ring, n, running int) (ops []*uring.Op) {
	c.t.Helper()
	started := make(chan struct{})
	err := c.e.Ring(ring).Post(func() {
		defer close(started)
		for range n {
			op := &uring.Op{Code: uring.Read, File: c.file, Buf: make([]byte, 1), Done: func(op *uring.Op) { c.done <- op }}
			ops = append(ops, op)
			c.e.Ring(ring).Submit(op)
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	wait(c.t, started)
	c.ops += n
	c.expect(running)
	return ops
}

func (c *crowd) expect(running int) {
	c.t.Helper()
	if n := uring.Running(c.file); n != running {
		c.t.Errorf("%d operations in the kernel, want %d", n, running)
	}
}

// drain lets every read have its byte.
func (c *crowd) drain() {
	c.t.Helper()
	for ; c.ops > 0; c.ops-- {
		if _, err := unix.Write(c.tap, []byte{1}); err != nil {
			c.t.Fatal(err)
		}
		if op := wait(c.t, c.done); op.Err != nil || op.N != 1 {
			c.t.Errorf("%d bytes, %v", op.N, op.Err)
		}
	}
	c.expect(0)
}

// TestDeviceQueue fills a device's queue from one ring: another still gets its share, and all that waits
// comes through.
func TestDeviceQueue(t *testing.T) {
	c := newCrowd(t, uringtest.Open(t, uring.Options{Rings: 2}), 4)
	c.read(0, 10, 4)
	c.read(1, 5, 6)
	c.drain()
	c.read(1, 5, 4)
	c.drain()
}

// TestDeviceQueueFull lets no other file wait for the crowded one.
func TestDeviceQueueFull(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	c := newCrowd(t, e, 1)
	c.read(0, 3, 1)
	do(t, e, &uring.Op{Code: uring.Read, File: openFile(t, e, 4096), Buf: make([]byte, 4096)})
	c.drain()
}

// TestDeviceQueueBound counts what waits for a device among what waits.
func TestDeviceQueueBound(t *testing.T) {
	c := newCrowd(t, uringtest.Open(t, uring.Options{Queue: 2}), 1)
	c.read(0, 4, 1)
	wantError(t, wait(t, c.done).Err, uring.ErrQueueFull, unix.EAGAIN)
	c.ops--
	c.drain()
}

// TestDeviceQueueEnds ends operations that wait for room in each way there is.
func TestDeviceQueueEnds(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	c := newCrowd(t, e, 1)
	ops := c.read(0, 3, 1)
	on(t, e, func(r *uring.Ring) { r.Cancel(ops[1]) })
	wantError(t, wait(t, c.done).Err, uring.ErrCanceled, unix.ECANCELED)
	late := &uring.Op{Code: uring.Read, File: c.file, Buf: make([]byte, 1), Deadline: 20 * time.Millisecond}
	wantError(t, wait(t, submit(t, e, e.Ring(0), late)).Err, uring.ErrDeadline, unix.ETIMEDOUT)
	c.ops--
	c.drain()
}

func TestDeviceQueueAtClose(t *testing.T) {
	e, err := uring.Open(uring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
	f, err := e.Register(p[0])
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{t: t, e: e, file: f, done: make(chan *uring.Op, 64)}
	uring.Limit(f, 1)
	c.read(0, 3, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
	for range 3 {
		wantError(t, wait(t, c.done).Err, uring.ErrCanceled, unix.ECANCELED)
	}
	c.expect(0)
}

func TestQueueDepth(t *testing.T) {
	loop := openLoop(t)
	want, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(loop.Name(), "/dev/") + "/queue/nr_requests")
	if err != nil {
		t.Fatal(err)
	}
	n, err := uring.QueueDepth(loop)
	if err != nil || n < 1 || strconv.Itoa(n) != strings.TrimSpace(string(want)) {
		t.Errorf("depth %d, %v, want %s", n, err, want)
	}
}
