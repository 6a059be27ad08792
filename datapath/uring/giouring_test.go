//go:build giouring

package uring_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"unsafe"

	g "github.com/pawelgaczynski/giouring"
	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// TestDifferential does the same seeded operations through the engine and through giouring, each on
// a file of its own: results and contents must agree.
func TestDifferential(t *testing.T) {
	const size = 256 << 10
	e := uringtest.Open(t, uring.Options{})
	ours := openFile(t, e, size)
	theirs, err := os.Create(t.TempDir() + "/theirs")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Close() }()
	if err := theirs.Truncate(size); err != nil {
		t.Fatal(err)
	}
	ring := openPeer(t)
	random := rand.New(rand.NewPCG(3, 1))
	for i := range 2000 {
		n := 1 + random.IntN(32<<10)
		off := random.Int64N(size + 8192) // past the end too
		a, b := make([]byte, n), make([]byte, n)
		code := [...]uring.Code{uring.Read, uring.Write, uring.Flush}[random.IntN(3)]
		if code == uring.Write {
			off = min(off, size-int64(n))
			for j := range a {
				a[j] = byte(random.Uint32())
			}
			copy(b, a)
		}
		op := &uring.Op{Code: code, File: ours, Buf: a, Offset: off}
		err := e.Do(context.Background(), 0, op)
		if err != nil && !errors.Is(err, uring.ErrShort) {
			t.Fatal(err)
		}
		if res := ring.do(t, code, int(theirs.Fd()), b, off); int(res) != op.N || !bytes.Equal(a, b) {
			t.Fatalf("operation %d, %s of %d at %d: %d bytes, giouring %d, equal: %v", i, code, n, off, op.N, res, bytes.Equal(a, b))
		}
	}
}

// peerRing is giouring's ring; its thread is the test's.
type peerRing struct {
	ring *g.Ring
	pin  runtime.Pinner
}

func openPeer(t *testing.T) *peerRing {
	t.Helper()
	ring, err := g.CreateRing(8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.QueueExit)
	return &peerRing{ring: ring}
}

func (p *peerRing) do(t *testing.T, code uring.Code, fd int, buf []byte, off int64) int32 {
	t.Helper()
	p.pin.Pin(&buf[0])
	defer p.pin.Unpin()
	e, at := p.ring.GetSQE(), uintptr(unsafe.Pointer(&buf[0]))
	switch code {
	case uring.Read:
		e.PrepareRead(fd, at, uint32(len(buf)), uint64(off))
	case uring.Write:
		e.PrepareWrite(fd, at, uint32(len(buf)), uint64(off))
	default:
		e.PrepareFsync(fd, 1) // IORING_FSYNC_DATASYNC
	}
	if code != uring.Flush {
		e.OpcodeFlags = 0 // giouring leaves the previous user's
	}
	for {
		if _, err := p.ring.SubmitAndWait(1); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if c, err := p.ring.PeekCQE(); err == nil && c != nil {
			res := c.Res
			p.ring.CQESeen(c)
			return res
		}
	}
}
