package nbd

import (
	"context"
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sync/semaphore"
)

// Buffers are for direct I/O: they begin at multiples of alignment. A class holds those of one size.
const (
	alignment  = 4096
	leastClass = 12 // 4 KiB
	classes    = 14 // up to 32 MiB
)

// buffer is a piece of the pool's memory.
type buffer struct {
	whole []byte
	class int
}

// pool hands out aligned buffers, up to a number of bytes in all.
type pool struct {
	budget *semaphore.Weighted
	free   [classes]sync.Pool
}

func newPool(bytes int64) *pool {
	return &pool{budget: semaphore.NewWeighted(max(bytes, MaxPayload))}
}

func classOf(n int) int {
	return max(bits.Len(uint(max(n, 1)-1)), leastClass) - leastClass
}

// get waits for a buffer of n bytes at least, MaxPayload at most.
func (p *pool) get(ctx context.Context, n int) (*buffer, error) {
	class := classOf(n)
	if err := p.budget.Acquire(ctx, int64(sizeOf(class))); err != nil {
		return nil, err
	}
	return p.take(class), nil
}

// try is get, but nil instead of waiting.
func (p *pool) try(n int) *buffer {
	class := classOf(n)
	if !p.budget.TryAcquire(int64(sizeOf(class))) {
		return nil
	}
	return p.take(class)
}

func sizeOf(class int) int { return 1 << (class + leastClass) }

func (p *pool) take(class int) *buffer {
	if b, ok := p.free[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{whole: aligned(sizeOf(class)), class: class}
}

func (p *pool) put(b *buffer) {
	if b == nil {
		return
	}
	p.free[b.class].Put(b)
	p.budget.Release(int64(len(b.whole)))
}

func aligned(n int) []byte {
	b := make([]byte, n+alignment)
	shift := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (alignment - 1))
	return b[shift : shift+n : shift+n]
}
