package uring_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// input is a pipe with a watch, which takes what comes.
type input struct {
	t     *testing.T
	e     *uring.Engine
	fds   [2]int
	watch *uring.Watch
	got   chan string
}

func watched(t *testing.T, e *uring.Engine) *input {
	t.Helper()
	in := &input{t: t, e: e, got: make(chan string, 1024)}
	if err := unix.Pipe2(in.fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	var err error
	on(t, e, func(r *uring.Ring) { in.watch, err = r.Watch(in.fds[0], in.take) })
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// take reads byte by byte, until there is no more.
func (in *input) take() {
	p := make([]byte, 1)
	for {
		n, err := unix.Read(in.fds[0], p)
		if n <= 0 {
			if err == nil {
				in.got <- "end"
			}
			return
		}
		in.got <- string(p)
	}
}

func (in *input) write(text string) {
	in.t.Helper()
	if _, err := unix.Write(in.fds[1], []byte(text)); err != nil {
		in.t.Error(err)
	}
}

func (in *input) wants(text string) {
	in.t.Helper()
	select {
	case got := <-in.got:
		if got != text {
			in.t.Errorf("got %q, want %q", got, text)
		}
	case <-time.After(patience):
		in.t.Fatalf("%q did not come", text)
	}
}

// stop ends the watch and closes the pipe's reading end.
func (in *input) stop() {
	in.t.Helper()
	ended := make(chan struct{})
	on(in.t, in.e, func(*uring.Ring) { in.watch.Stop(func() { close(ended) }) })
	select {
	case <-ended:
	case <-time.After(patience):
		in.t.Fatal("the watch does not end")
	}
	_ = unix.Close(in.fds[0])
}

func TestWatch(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	in := watched(t, e)
	for range 3 {
		in.write("ab")
		in.wants("a")
		in.wants("b")
	}
	in.stop()
	_ = unix.Close(in.fds[1])
	in = watched(t, e) // what is there already counts, and so does an end
	in.write("c")
	in.wants("c")
	_ = unix.Close(in.fds[1])
	in.wants("end")
	in.stop()
}

// TestWatchStopped has no call after Stop.
func TestWatchStopped(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	in := watched(t, e)
	ended := make(chan struct{})
	on(t, e, func(*uring.Ring) {
		in.watch.Stop(func() { close(ended) })
		in.write("x")
	})
	<-ended
	select {
	case got := <-in.got:
		t.Errorf("%q after Stop", got)
	default:
	}
	_, _ = unix.Close(in.fds[0]), unix.Close(in.fds[1])
}

// TestWatches takes as many as there may be, again and again.
func TestWatches(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	for range 3 {
		var all []*input
		for range uring.MaxWatches {
			all = append(all, watched(t, e))
		}
		var err error
		on(t, e, func(r *uring.Ring) { _, err = r.Watch(all[0].fds[0], func() {}) })
		if !errors.Is(err, uring.ErrQueueFull) {
			t.Errorf("one more: %v", err)
		}
		for _, in := range all {
			in.write("y")
			in.wants("y")
			in.stop()
			_ = unix.Close(in.fds[1])
		}
	}
}
