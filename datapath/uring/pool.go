package uring

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	minClass  = 12 // 4 KiB
	maxClass  = 20 // 1 MiB
	classes   = maxClass - minClass + 1
	slabSize  = 1 << maxClass
	chunkBits = slabSize >> minClass // chunks of the smallest class in a slab
	// regionSize is what one registered buffer can hold at most (1 GiB).
	regionSize = 1 << 30

	// PageSize is the alignment of every buffer of a Pool.
	PageSize = 1 << minClass
	// MaxBuffer is the largest buffer that a Pool hands out.
	MaxBuffer = slabSize
)

// Pool hands out 4,096-aligned buffers in power-of-two classes from 4 KiB to 1 MiB, out of one
// mapping outside Go's heap that every ring has registered. It is safe for concurrent use.
//
// The mapping is cut into slabs of 1 MiB; a slab serves one class while any of its buffers is out.
type Pool struct {
	mem   []byte
	base  uintptr
	inUse atomic.Int64
	class [classes]poolClass
	slabs []slab

	mu   sync.Mutex // guards idle
	idle []int32    // slabs of no class

	held heldSet
}

// poolClass is the stock of one size.
type poolClass struct {
	mu      sync.Mutex // guards partial, and the slabs of this class
	partial []int32    // slabs with a free chunk, the last one in use
	_       [64]byte
}

// slab is 1 MiB of the pool. free has a bit for every chunk that is not handed out.
type slab struct {
	class atomic.Int32 // class index, or -1 while idle
	nfree int32
	at    int32 // place in the class's partial list, or -1
	free  [chunkBits / 64]uint64
}

// newPool maps size bytes, a multiple of slabSize.
func newPool(size int64) (*Pool, error) {
	mem, err := unix.Mmap(-1, 0, int(size+slabSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("uring: mapping a pool of %d bytes: %w", size, err)
	}
	start := uintptr(unsafe.Pointer(&mem[0]))
	skip := -start & (slabSize - 1)
	p := &Pool{mem: mem, base: start + skip, slabs: make([]slab, size/slabSize)}
	_ = unix.Madvise(mem[skip:int64(skip)+size], unix.MADV_HUGEPAGE) // a hint: fewer page table walks
	for i := len(p.slabs) - 1; i >= 0; i-- {
		p.slabs[i].class.Store(-1)
		p.slabs[i].at = -1
		p.idle = append(p.idle, int32(i))
	}
	p.held.pins = make(map[uintptr]*pin)
	return p, nil
}

// close makes Get return nil and unmaps the pool, unless the kernel may still write into it.
func (p *Pool) close() error {
	for c := range p.class {
		p.class[c].mu.Lock()
		p.class[c].partial = nil
		p.class[c].mu.Unlock()
	}
	p.mu.Lock()
	p.idle = nil
	p.mu.Unlock()
	if p.held.count.Load() != 0 {
		return nil
	}
	return unix.Munmap(p.mem)
}

// usable is the part that is handed out.
func (p *Pool) usable() []byte {
	skip := p.base - uintptr(unsafe.Pointer(&p.mem[0]))
	return p.mem[skip : skip+uintptr(len(p.slabs))*slabSize]
}

// regions cuts the pool into pieces that can be registered.
func (p *Pool) regions() (out [][]byte) {
	for m := p.usable(); len(m) > 0; m = m[min(len(m), regionSize):] {
		out = append(out, m[:min(len(m), regionSize)])
	}
	return out
}

// region tells which registered buffer holds b, or false if b is not the pool's.
func (p *Pool) region(b []byte) (uint16, bool) {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - p.base
	if off >= uintptr(len(p.slabs))*slabSize {
		return 0, false
	}
	return uint16(off / regionSize), true
}

// classOf is the class index of a size from 0 to MaxBuffer.
func classOf(n int) int {
	if n <= PageSize {
		return 0
	}
	return bits.Len(uint(n-1)) - minClass
}

// Get returns a buffer of n bytes, content undefined, whose capacity is its class's size; nil when
// n is negative or above MaxBuffer, or the pool is exhausted. The caller owns it until Put.
func (p *Pool) Get(n int) []byte {
	if n < 0 || n > MaxBuffer {
		return nil
	}
	c := classOf(n)
	off, ok := p.take(c)
	if !ok {
		return nil
	}
	p.inUse.Add(1)
	m := p.usable()
	return m[off : off+n : off+PageSize<<c]
}

// take marks a chunk of class c as handed out and returns its offset.
func (p *Pool) take(c int) (off int, ok bool) {
	k := &p.class[c]
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.partial) == 0 && !p.adopt(c) {
		return 0, false
	}
	i := k.partial[len(k.partial)-1]
	s := &p.slabs[i]
	for w := range s.free {
		if s.free[w] == 0 {
			continue
		}
		bit := bits.TrailingZeros64(s.free[w])
		s.free[w] &^= 1 << bit
		if s.nfree--; s.nfree == 0 {
			k.unlink(p, i)
		}
		return int(i)<<maxClass + (w*64+bit)<<(c+minClass), true
	}
	panic("uring: a slab with free chunks has none")
}

// adopt gives an idle slab to class c, whose mutex is held.
func (p *Pool) adopt(c int) bool {
	p.mu.Lock()
	n := len(p.idle)
	if n == 0 {
		p.mu.Unlock()
		return false
	}
	i := p.idle[n-1]
	p.idle = p.idle[:n-1]
	p.mu.Unlock()
	s := &p.slabs[i]
	s.nfree = int32(slabSize >> (c + minClass))
	for w := range s.free {
		s.free[w] = lowBits(int(s.nfree) - w*64)
	}
	s.class.Store(int32(c))
	p.class[c].link(p, i)
	return true
}

// lowBits has the lowest n bits set, n clipped to 0..64.
func lowBits(n int) uint64 {
	switch {
	case n <= 0:
		return 0
	case n >= 64:
		return ^uint64(0)
	}
	return 1<<n - 1
}

func (k *poolClass) link(p *Pool, i int32) {
	p.slabs[i].at = int32(len(k.partial))
	k.partial = append(k.partial, i)
}

func (k *poolClass) unlink(p *Pool, i int32) {
	s := &p.slabs[i]
	last := k.partial[len(k.partial)-1]
	k.partial[s.at] = last
	p.slabs[last].at = s.at
	k.partial = k.partial[:len(k.partial)-1]
	s.at = -1
}

// Put takes back a buffer that Get returned, or any slice that begins where it began. It panics on a buffer
// that is not the pool's and on one that is not handed out (a double Put): both mean that memory
// has two owners. A buffer that the kernel still holds (Op.Held) stays counted until it comes back.
func (p *Pool) Put(b []byte) {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - p.base
	if off >= uintptr(len(p.slabs))*slabSize {
		panic("uring: Pool.Put of a buffer that is not the pool's")
	}
	if p.held.count.Load() != 0 && p.held.deferPut(off) {
		return
	}
	p.put(off)
}

func (p *Pool) put(off uintptr) {
	i := int32(off >> maxClass)
	s := &p.slabs[i]
	c := s.class.Load()
	if c < 0 {
		panic("uring: Pool.Put of a buffer that is not handed out")
	}
	k := &p.class[c]
	k.mu.Lock()
	chunk := (off & (slabSize - 1)) >> (uint(c) + minClass)
	bit := uint64(1) << (chunk % 64)
	if s.class.Load() != c || s.free[chunk/64]&bit != 0 || off&(PageSize<<c-1) != 0 {
		k.mu.Unlock()
		panic("uring: Pool.Put of a buffer that is not handed out")
	}
	s.free[chunk/64] |= bit
	s.nfree++
	p.settle(k, i, int(c))
	k.mu.Unlock()
	p.inUse.Add(-1)
}

// settle files slab i of class c after a chunk came back to it: for use again, or as idle if whole.
func (p *Pool) settle(k *poolClass, i int32, c int) {
	s := &p.slabs[i]
	if s.at < 0 {
		k.link(p, i)
	}
	if int(s.nfree) < slabSize>>(c+minClass) {
		return
	}
	k.unlink(p, i)
	s.class.Store(-1)
	p.mu.Lock()
	p.idle = append(p.idle, i)
	p.mu.Unlock()
}

// InUse is the number of buffers that are handed out, those included that the kernel holds after
// their Put.
func (p *Pool) InUse() int { return int(p.inUse.Load()) }
