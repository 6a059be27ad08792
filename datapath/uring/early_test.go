package uring_test

import (
	"testing"
	"time"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// TestSubmitsWithinBatch lets whole batches complete at once, each completion starting an operation: the
// first ones must be with the kernel long before the last completion is handled.
func TestSubmitsWithinBatch(t *testing.T) {
	const depth, rounds = 64, 100
	e := uringtest.Open(t, uring.Options{})
	r, done := e.Ring(0), make(chan struct{})
	ops, left, live, built := make([]uring.Op, depth), depth*rounds, depth, 0
	for i := range ops {
		ops[i].Done = func(op *uring.Op) {
			built = max(built, uring.Built(r))
			if left--; left > 0 {
				r.Submit(op)
			} else if live--; live == 0 {
				close(done)
			}
		}
	}
	if err := r.Post(func() {
		for i := range ops {
			r.Submit(&ops[i])
		}
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("operations do not end")
	}
	if built > depth*5/8 {
		t.Errorf("%d of %d operations were built before any was submitted", built, depth)
	}
}

// TestSubmitsAloneBeforeWaiting looks at what is left to submit when a ring is about to wait: nothing when one operation
// is under way, all of them, for one enter, when there are two.
func TestSubmitsAloneBeforeWaiting(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	do(t, e, &uring.Op{}) // the ring's own first requests are submitted
	for depth, want := range map[int]int{1: 0, 2: 2} {
		left, done := make(chan int, 1), make(chan struct{}, depth)
		if err := e.Ring(0).Post(func() {
			for range depth {
				e.Ring(0).Submit(&uring.Op{Done: func(*uring.Op) { done <- struct{}{} }})
			}
			left <- uring.StartAlone(e.Ring(0))
		}); err != nil {
			t.Fatal(err)
		}
		if got := <-left; got != want {
			t.Errorf("%d of %d operations are left to submit, want %d", got, depth, want)
		}
		for range depth {
			<-done
		}
	}
}
