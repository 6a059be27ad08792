package uring_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

func TestDeadline(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	op := &uring.Op{Code: uring.Read, File: openPipe(t, e), Buf: e.Pool().Get(4096), Deadline: 20 * time.Millisecond}
	start := time.Now()
	wantError(t, e.Do(context.Background(), 0, op), uring.ErrDeadline, unix.ETIMEDOUT)
	if d := time.Since(start); d < 20*time.Millisecond || d > 10*time.Second {
		t.Errorf("after %v", d)
	}
	if op.Held {
		t.Error("held, although it came back")
	}
	e.Pool().Put(op.Buf)
}

func TestDefaultDeadline(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Deadline: 30 * time.Millisecond})
	op := &uring.Op{Code: uring.Read, File: openPipe(t, e), Buf: make([]byte, 1)}
	wantError(t, e.Do(context.Background(), 0, op), uring.ErrDeadline, unix.ETIMEDOUT)
}

func TestDeadlineInQueue(t *testing.T) {
	e := uringtest.Open(t, uring.Options{InFlight: 1})
	f := openPipe(t, e)
	first := &uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 1)}
	blocked := submit(t, e, e.Ring(0), first)
	second := &uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 1), Deadline: 20 * time.Millisecond}
	wantError(t, wait(t, submit(t, e, e.Ring(0), second)).Err, uring.ErrDeadline, unix.ETIMEDOUT)
	on(t, e, func(r *uring.Ring) { r.Cancel(first) })
	wantError(t, wait(t, blocked).Err, uring.ErrCanceled, unix.ECANCELED)
}

func TestCancelByContext(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	op := &uring.Op{Code: uring.Read, File: openPipe(t, e), Buf: make([]byte, 1)}
	wantError(t, e.Do(ctx, 0, op), uring.ErrCanceled, unix.ECANCELED)
}

// TestManyDeadlines lets more operations expire at once than cancel requests may be under way.
func TestManyDeadlines(t *testing.T) {
	const n = 200
	e := uringtest.Open(t, uring.Options{InFlight: n})
	f := openPipe(t, e)
	done := make(chan error, n)
	on(t, e, func(r *uring.Ring) {
		for range n {
			r.Submit(&uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 1), Deadline: 10 * time.Millisecond,
				Done: func(op *uring.Op) { done <- op.Err }})
		}
	})
	for range n {
		wantError(t, wait(t, done), uring.ErrDeadline, unix.ETIMEDOUT)
	}
}

// newFaulty makes every operation fail the same way.
func newFaulty(t *testing.T, e *uring.Engine, k uring.FaultKind) *uring.Faulty {
	t.Helper()
	var p uring.Plan
	p.Rate[k] = 1
	f, err := uring.NewFaulty(e.Ring(0), p)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestHeld follows an operation that the kernel does not give back: the report, the buffer that
// stays counted, the release.
func TestHeld(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Grace: 20 * time.Millisecond})
	faulty := newFaulty(t, e, uring.FaultLose)
	released := make(chan struct{})
	op := &uring.Op{Code: uring.Read, File: openFile(t, e, 4096), Buf: e.Pool().Get(4096),
		Deadline: 20 * time.Millisecond, Released: func() { close(released) }}
	wait(t, submit(t, e, faulty, op))
	wantError(t, op.Err, uring.ErrDeadline, unix.ETIMEDOUT)
	if !op.Held {
		t.Fatal("not held")
	}
	buf := op.Buf
	e.Pool().Put(buf)
	if n := e.Pool().InUse(); n != 1 {
		t.Fatalf("%d buffers in use, the held one must count", n)
	}
	mustPanic(t, "second Put", func() { e.Pool().Put(buf) })
	if err := e.Do(context.Background(), 0, &uring.Op{Code: uring.Nop}); err != nil {
		t.Fatal(err)
	}
	on(t, e, func(*uring.Ring) { faulty.Release() })
	wait(t, released)
	if n := e.Pool().InUse(); n != 0 {
		t.Fatalf("%d buffers in use after the release", n)
	}
}

func TestHeldBufferPutAfterRelease(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Grace: 10 * time.Millisecond})
	faulty := newFaulty(t, e, uring.FaultLose)
	released := make(chan struct{})
	op := &uring.Op{Code: uring.Write, File: openFile(t, e, 4096), Buf: e.Pool().Get(100),
		Deadline: 10 * time.Millisecond, Released: func() { close(released) }}
	wait(t, submit(t, e, faulty, op))
	on(t, e, func(*uring.Ring) { faulty.Release() })
	wait(t, released)
	if n := e.Pool().InUse(); n != 1 {
		t.Fatalf("%d buffers in use, want the owner's", n)
	}
	e.Pool().Put(op.Buf)
}

func TestCloseDrains(t *testing.T) {
	e := uringtest.Open(t, uring.Options{InFlight: 4})
	f := openFile(t, e, 1<<20)
	const n = 500
	done := 0
	on(t, e, func(r *uring.Ring) {
		for i := range n {
			r.Submit(&uring.Op{Code: uring.Write, File: f, Buf: make([]byte, 512), Offset: int64(i) * 512,
				Done: func(op *uring.Op) {
					if op.Err == nil {
						done++
					}
				}})
		}
	})
	if err := e.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if done != n {
		t.Fatalf("%d of %d operations were finished", done, n)
	}
	if err := e.Ring(0).Post(func() {}); !errors.Is(err, uring.ErrClosed) {
		t.Fatalf("post after close: %v", err)
	}
	if err := e.Do(context.Background(), 0, &uring.Op{}); !errors.Is(err, uring.ErrClosed) {
		t.Fatalf("operation after close: %v", err)
	}
}

func TestCloseGivesUp(t *testing.T) {
	uringtest.CheckLeaks(t)
	e, err := uring.Open(uring.Options{PoolBytes: 1 << 20, Grace: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	file, faulty := openPipe(t, e), newFaulty(t, e, uring.FaultLose)
	waiting := submit(t, e, e.Ring(0), &uring.Op{Code: uring.Read, File: file, Buf: make([]byte, 1)})
	lost := submit(t, e, faulty, &uring.Op{Code: uring.Read, File: file, Buf: make([]byte, 1)})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); !errors.Is(err, uring.ErrDeadline) {
		t.Fatalf("close over a lost operation: %v", err)
	}
	wantError(t, wait(t, waiting).Err, uring.ErrCanceled, unix.ECANCELED)
	if op := wait(t, lost); !op.Held {
		t.Fatalf("the lost operation: %v", op.Err)
	}
}

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	fn()
}

// TestReleasedAfterDone has the kernel let go in the very batch that reports the operation as held.
func TestReleasedAfterDone(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Grace: 10 * time.Millisecond})
	faulty := newFaulty(t, e, uring.FaultLose)
	f, events := openFile(t, e, 4096), make(chan string, 2)
	on(t, e, func(*uring.Ring) {
		faulty.Submit(&uring.Op{Code: uring.Write, File: f, Buf: make([]byte, 512), Deadline: 50 * time.Millisecond,
			Done: func(*uring.Op) { events <- "done" }, Released: func() { events <- "released" }})
	})
	time.Sleep(55 * time.Millisecond) // the deadline has passed, Grace has not
	if err := e.Ring(0).Post(func() { time.Sleep(50 * time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	on(t, e, func(*uring.Ring) { faulty.Release() }) // in the batch that finds Grace over
	if first, second := wait(t, events), wait(t, events); first != "done" || second != "released" {
		t.Fatalf("%s before %s", first, second)
	}
}
