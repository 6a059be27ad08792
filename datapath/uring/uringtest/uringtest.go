// Package uringtest opens engines for tests and checks that they leave nothing behind.
package uringtest

import (
	"context"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/datapath/uring"
)

// closeLimit bounds the drain of an engine at the end of a test.
const closeLimit = 20 * time.Second

// Open starts an engine that ends with the test, which then fails if buffers of the pool, descriptors
// or goroutines are left over from after this call. A test that calls it must not be parallel: the
// process has one table of descriptors. Close files registered with the engine by t.Cleanup.
func Open(t testing.TB, o uring.Options) *uring.Engine {
	t.Helper()
	CheckLeaks(t)
	if o.PoolBytes == 0 {
		o.PoolBytes = 8 << 20
	}
	e, err := uring.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := e.Close(ctx); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
		if n := e.Pool().InUse(); n != 0 {
			t.Errorf("%d buffers of the pool are still in use", n)
		}
	})
	return e
}

// CheckLeaks makes the test fail at its end if goroutines or descriptors are left over from after this call.
func CheckLeaks(t testing.TB) {
	t.Helper()
	startPoller(t)
	running, open := goleak.IgnoreCurrent(), descriptors(t)
	t.Cleanup(func() {
		goleak.VerifyNone(t, running)
		if n := descriptors(t); n != open {
			t.Errorf("%d descriptors open, %d before the test", n, open)
		}
	})
}

// startPoller makes the Go runtime open the descriptors of its own poller, so that they are not
// taken for a leak.
func startPoller(t testing.TB) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.Close(), w.Close()
}

func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
