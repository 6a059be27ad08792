package uring_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

func TestPoolClasses(t *testing.T) {
	p := uringtest.Open(t, uring.Options{}).Pool()
	for _, c := range []struct{ n, capacity int }{
		{0, 4096}, {1, 4096}, {4096, 4096}, {4097, 8192}, {65536, 65536}, {65537, 131072}, {1 << 20, 1 << 20},
	} {
		b := p.Get(c.n)
		if len(b) != c.n || cap(b) != c.capacity {
			t.Errorf("Get(%d): length %d, capacity %d", c.n, len(b), cap(b))
		}
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(b))); at%uring.PageSize != 0 {
			t.Errorf("Get(%d) at %#x", c.n, at)
		}
		p.Put(b)
	}
	if p.Get(1<<20+1) != nil || p.Get(-1) != nil {
		t.Error("a buffer of an impossible size")
	}
}

func TestPoolExhaustionAndReuse(t *testing.T) {
	p := uringtest.Open(t, uring.Options{PoolBytes: 2 << 20}).Pool()
	for _, size := range []int{4096, 1 << 20, 16384, 4096} { // slabs change their class
		var got [][]byte
		for b := p.Get(size); b != nil; b = p.Get(size) {
			clear(b)
			got = append(got, b)
		}
		if want := 2 << 20 / size; len(got) != want || p.InUse() != want {
			t.Fatalf("%d buffers of %d, %d in use, want %d", len(got), size, p.InUse(), want)
		}
		for _, b := range got {
			p.Put(b)
		}
	}
}

func TestPoolMisuse(t *testing.T) {
	p := uringtest.Open(t, uring.Options{}).Pool()
	a, b := p.Get(8192), p.Get(8192)
	p.Put(a)
	mustPanic(t, "double Put", func() { p.Put(a) })
	mustPanic(t, "Put of the middle", func() { p.Put(b[4096:]) })
	mustPanic(t, "Put of a foreign buffer", func() { p.Put(make([]byte, 4096)) })
	p.Put(b)
	mustPanic(t, "double Put in an idle slab", func() { p.Put(b) })
}

// TestPoolConcurrent has each goroutine sign its buffers: two owners of one buffer would show.
func TestPoolConcurrent(t *testing.T) {
	p := uringtest.Open(t, uring.Options{PoolBytes: 4 << 20}).Pool()
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 1))
			var mine [][]byte
			for range 3000 {
				if len(mine) > 0 && random.IntN(2) == 0 {
					i := random.IntN(len(mine))
					checkSigned(t, mine[i], byte(g))
					p.Put(mine[i])
					mine[i] = mine[len(mine)-1]
					mine = mine[:len(mine)-1]
				} else if b := p.Get(1 + random.IntN(64<<10)); b != nil {
					b[0], b[len(b)-1] = byte(g), byte(g)
					mine = append(mine, b)
				}
			}
			for _, b := range mine {
				checkSigned(t, b, byte(g))
				p.Put(b)
			}
		})
	}
	all.Wait()
}

func checkSigned(t *testing.T, b []byte, g byte) {
	if b[0] != g || b[len(b)-1] != g {
		t.Errorf("buffer of %d is signed %d and %d", g, b[0], b[len(b)-1])
	}
}

func BenchmarkPool(b *testing.B) {
	p := uringtest.Open(b, uring.Options{}).Pool()
	b.ReportAllocs()
	for b.Loop() {
		p.Put(p.Get(4096))
	}
}
