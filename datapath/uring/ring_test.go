package uring_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

func TestWriteReadBack(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	f := openFile(t, e, 1<<20)
	for name, buf := range map[string][]byte{"pool": e.Pool().Get(8192), "heap": make([]byte, 8192)} {
		want := make([]byte, len(buf))
		_, _ = rand.Read(want)
		copy(buf, want)
		do(t, e, &uring.Op{Code: uring.Write, File: f, Buf: buf, Offset: 4096, FUA: true})
		do(t, e, &uring.Op{Code: uring.Flush, File: f})
		clear(buf)
		do(t, e, &uring.Op{Code: uring.Read, File: f, Buf: buf, Offset: 4096})
		if !bytes.Equal(buf, want) {
			t.Errorf("%s: read back differs", name)
		}
		if name == "pool" {
			e.Pool().Put(buf)
		}
	}
}

func TestReadPastEnd(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	f := openFile(t, e, 1000)
	op := &uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 4096)}
	wantError(t, e.Do(context.Background(), 0, op), uring.ErrShort, unix.EIO)
	if op.N != 1000 {
		t.Fatalf("%d bytes", op.N)
	}
}

func TestBadOperations(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	f := openFile(t, e, 4096)
	for _, op := range []*uring.Op{
		{Code: uring.Read, Buf: make([]byte, 1)},
		{Code: uring.Write, File: f, Buf: make([]byte, 1), Offset: -1},
		{Code: uring.Discard, File: f},
		{Code: 200},
	} {
		wantError(t, e.Do(context.Background(), 0, op), uring.ErrInvalid, unix.EINVAL)
	}
	if err := e.Do(context.Background(), 1, &uring.Op{}); !errors.Is(err, uring.ErrInvalid) {
		t.Fatalf("a ring that is not there: %v", err)
	}
	var oe *uring.OpError
	err := e.Do(context.Background(), 0, &uring.Op{Code: uring.Read, File: openPipe(t, e), Buf: make([]byte, 1), Deadline: time.Millisecond})
	if !errors.As(err, &oe) || oe.Code != uring.Read || oe.Length != 1 {
		t.Fatalf("error %#v", err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]uring.Options{
		"rings":    {Rings: -1},
		"entries":  {Entries: 100},
		"pool":     {PoolBytes: 1<<20 + 1},
		"deadline": {Deadline: time.Nanosecond},
		"inflight": {InFlight: 1 << 20},
	} {
		if _, err := uring.Open(o); !errors.Is(err, uring.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (uring.Options{}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestQueueFull(t *testing.T) {
	e := uringtest.Open(t, uring.Options{InFlight: 2, Queue: 3})
	f := openPipe(t, e)
	var ops [8]uring.Op
	full, canceled := 0, 0
	done := make(chan struct{}, len(ops))
	on(t, e, func(r *uring.Ring) {
		for i := range ops {
			ops[i] = uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 1), Done: func(op *uring.Op) {
				switch {
				case errors.Is(op.Err, uring.ErrQueueFull) && errors.Is(op.Err, unix.EAGAIN):
					full++
				case errors.Is(op.Err, uring.ErrCanceled):
					canceled++
				}
				done <- struct{}{}
			}}
			r.Submit(&ops[i])
		}
		if full != 0 {
			t.Error("Done was called inside Submit")
		}
	})
	for range 3 {
		wait(t, done)
	}
	on(t, e, func(r *uring.Ring) {
		for i := range ops {
			r.Cancel(&ops[i])
		}
	})
	for range 5 {
		wait(t, done)
	}
	on(t, e, func(*uring.Ring) {
		if full != 3 || canceled != 5 {
			t.Errorf("%d refused, %d canceled; want 3 and 5", full, canceled)
		}
	})
}

// TestManySubmits fills the submission queue several times over from one callback.
func TestManySubmits(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Entries: 8, InFlight: 200, Queue: 2000})
	done := make(chan struct{})
	left := 2000
	on(t, e, func(r *uring.Ring) {
		for range left {
			r.Submit(&uring.Op{Code: uring.Nop, Done: func(op *uring.Op) {
				if op.Err != nil {
					t.Error(op.Err)
				}
				if left--; left == 0 {
					close(done)
				}
			}})
		}
	})
	wait(t, done)
}

func TestPostOrderAndConcurrency(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	const senders, each = 8, 2000
	var got [senders][]int
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for i := range each {
				if err := e.Ring(0).Post(func() { got[s] = append(got[s], i) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	on(t, e, func(*uring.Ring) {
		for s := range got {
			if len(got[s]) != each || !slices.IsSorted(got[s]) {
				t.Errorf("sender %d: %d posts, sorted: %v", s, len(got[s]), slices.IsSorted(got[s]))
			}
		}
	})
}

func TestHooks(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	batches, ticks := 0, make(chan time.Time, 100)
	on(t, e, func(r *uring.Ring) {
		r.OnBatch(func() { batches++ })
		r.OnTick(func(now time.Time) {
			select {
			case ticks <- now:
			default:
			}
		})
	})
	start := time.Now()
	for range 3 {
		if now := wait(t, ticks); time.Since(now).Abs() > 5*time.Second {
			t.Fatalf("tick says %v", now)
		}
	}
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("three ticks in %v", d)
	}
	before := 0
	on(t, e, func(*uring.Ring) { before = batches })
	do(t, e, &uring.Op{Code: uring.Nop})
	on(t, e, func(*uring.Ring) {
		if batches == before {
			t.Error("OnBatch did not run")
		}
	})
}

func TestManyRings(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Rings: 3})
	f := openFile(t, e, 1<<20)
	for lane := range e.Rings() {
		buf := e.Pool().Get(4096)
		op := &uring.Op{Code: uring.Write, File: f, Buf: buf, Offset: int64(lane) * 4096}
		if err := e.Do(context.Background(), lane, op); err != nil {
			t.Error(err)
		}
		e.Pool().Put(buf)
		if e.Ring(lane).Index() != lane {
			t.Error("index")
		}
	}
}

func TestFileTable(t *testing.T) {
	e := uringtest.Open(t, uring.Options{Files: 2})
	a := openFile(t, e, 4096)
	f, err := e.Register(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Register(0); !errors.Is(err, uring.ErrQueueFull) {
		t.Fatalf("a third file of two: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); !errors.Is(err, uring.ErrClosed) {
		t.Fatalf("second close: %v", err)
	}
	err = e.Do(context.Background(), 0, &uring.Op{Code: uring.Flush, File: f})
	wantError(t, err, uring.ErrClosed, unix.EBADF)
	if _, err := e.Register(-1); !errors.Is(err, unix.EBADF) {
		t.Fatalf("descriptor -1: %v", err)
	}
	do(t, e, &uring.Op{Code: uring.Flush, File: a})
}

// TestFileCloseWaits holds File.Close to its word: it returns after the last operation.
func TestFileCloseWaits(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
	f, err := e.Register(p[0])
	if err != nil {
		t.Fatal(err)
	}
	done := submit(t, e, e.Ring(0), &uring.Op{Code: uring.Read, File: f, Buf: make([]byte, 1)})
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	select {
	case <-closed:
		t.Fatal("closed under an operation")
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := unix.Write(p[1], []byte{1}); err != nil {
		t.Fatal(err)
	}
	if op := wait(t, done); op.Err != nil {
		t.Error(op.Err)
	}
	if err := wait(t, closed); err != nil {
		t.Error(err)
	}
}
