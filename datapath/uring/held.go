package uring

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// heldSet knows the pool's buffers that the kernel still owns although their operation was reported.
type heldSet struct {
	count atomic.Int32 // len(pins), for a look without the mutex
	mu    sync.Mutex   // guards pins and what it points to
	pins  map[uintptr]*pin
}

// pin is one buffer: how many operations hold it, and whether its owner has put it back meanwhile.
type pin struct {
	ops int
	put bool
}

// deferPut notes a Put of the buffer at off; false if nothing holds it.
func (h *heldSet) deferPut(off uintptr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pins[off]
	if p == nil {
		return false
	}
	if p.put {
		panic("uring: Pool.Put of a buffer that is not handed out")
	}
	p.put = true
	return true
}

// chunk is the offset of the handed-out buffer that b lies in; false if b is not the pool's.
func (p *Pool) chunk(b []byte) (uintptr, bool) {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - p.base
	if off >= uintptr(len(p.slabs))*slabSize {
		return 0, false
	}
	c := p.slabs[off>>maxClass].class.Load()
	if c < 0 {
		return 0, false
	}
	return off &^ (PageSize<<c - 1), true
}

// hold keeps the buffer around b out of circulation until as many calls of letGo.
func (p *Pool) hold(b []byte) {
	off, ok := p.chunk(b)
	if !ok {
		return
	}
	h := &p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pins[off] == nil {
		h.pins[off] = new(pin)
	}
	h.pins[off].ops++
	h.count.Store(int32(len(h.pins)))
}

// letGo ends a hold, and does the Put that came meanwhile.
func (p *Pool) letGo(b []byte) {
	off, ok := p.chunk(b)
	if ok && p.held.unpin(off) {
		p.put(off)
	}
}

func (h *heldSet) unpin(off uintptr) (put bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pins[off]
	if p.ops--; p.ops > 0 {
		return false
	}
	delete(h.pins, off)
	h.count.Store(int32(len(h.pins)))
	return p.put
}
