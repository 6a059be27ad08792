package uring_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
)

// patience bounds every wait of a test.
const patience = 10 * time.Second

// openFile registers a new file of size bytes.
func openFile(t testing.TB, e *uring.Engine, size int64) *uring.File {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return register(t, e, int(f.Fd()))
}

// register registers fd until the end of the test.
func register(t testing.TB, e *uring.Engine, fd int) *uring.File {
	t.Helper()
	file, err := e.Register(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return file
}

// openPipe registers the reading end of a pipe that nobody writes to: a read of it never ends.
func openPipe(t testing.TB, e *uring.Engine) *uring.File {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return register(t, e, p[0])
}

func do(t testing.TB, e *uring.Engine, op *uring.Op) {
	t.Helper()
	if err := e.Do(context.Background(), 0, op); err != nil {
		t.Fatal(err)
	}
}

// on runs fn on ring 0 and waits.
func on(t testing.TB, e *uring.Engine, fn func(r *uring.Ring)) {
	t.Helper()
	done := make(chan struct{})
	if err := e.Ring(0).Post(func() { defer close(done); fn(e.Ring(0)) }); err != nil {
		t.Fatal(err)
	}
	wait(t, done)
}

func wait[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("nothing happened for too long")
	}
	return v
}

// submit starts op on ring 0; the channel yields it when it is done.
func submit(t testing.TB, e *uring.Engine, s uring.Submitter, op *uring.Op) <-chan *uring.Op {
	t.Helper()
	done := make(chan *uring.Op, 1)
	op.Done = func(op *uring.Op) { done <- op }
	on(t, e, func(*uring.Ring) { s.Submit(op) })
	return done
}

// wantError holds err to both of its faces.
func wantError(t testing.TB, err, kind error, errno unix.Errno) {
	t.Helper()
	if !errors.Is(err, kind) || !errors.Is(err, errno) {
		t.Fatalf("error %v, want %v and %v", err, kind, errno)
	}
}
