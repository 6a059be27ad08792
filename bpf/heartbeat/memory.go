package heartbeat

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// memory is the kernel's maps, mapped here. All access is by atomic loads and stores of words.
type memory struct {
	node  *programNode
	slots []programSlot

	regions [][]byte
}

func mapMemory(node, slots *ebpf.Map) (m memory, err error) {
	for _, from := range []*ebpf.Map{node, slots} {
		size := roundUp(int(from.ValueSize())*int(from.MaxEntries()), unix.Getpagesize())
		region, err := unix.Mmap(from.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return memory{}, fmt.Errorf("heartbeat: map the kernel's memory: %w", firstError(err, m.unmap()))
		}
		m.regions = append(m.regions, region)
	}
	m.node = (*programNode)(unsafe.Pointer(&m.regions[0][0]))
	m.slots = unsafe.Slice((*programSlot)(unsafe.Pointer(&m.regions[1][0])), slots.MaxEntries())
	return m, nil
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

func firstError(first, second error) error {
	if second != nil {
		return fmt.Errorf("%w; and %w", first, second)
	}
	return first
}

func (m *memory) unmap() error {
	var failed error
	for _, r := range m.regions {
		if err := unix.Munmap(r); err != nil {
			failed = fmt.Errorf("heartbeat: unmap: %w", err)
		}
	}
	*m = memory{}
	return failed
}

const (
	slotWords = unsafe.Sizeof(programSlot{}) / 8
	nodeWords = unsafe.Sizeof(programNode{}) / 8
	// maxReads bounds how often a slot is read again because the kernel wrote it meanwhile, which takes it under 1 µs.
	maxReads = 10000
)

// read copies the slot as it was at one moment. It returns false if the kernel never stopped writing.
func (m *memory) read(slot uint32, to *programSlot) bool {
	from := (*[slotWords]uint64)(unsafe.Pointer(&m.slots[slot]))
	words := (*[slotWords]uint64)(unsafe.Pointer(to))
	for range maxReads {
		before := atomic.LoadUint64(&from[0])
		if before&1 != 0 {
			continue
		}
		for i := range from {
			words[i] = atomic.LoadUint64(&from[i])
		}
		if atomic.LoadUint64(&from[0]) == before {
			return true
		}
	}
	return false
}

func (m *memory) readNode() (n programNode) {
	from := (*[nodeWords]uint64)(unsafe.Pointer(m.node))
	words := (*[nodeWords]uint64)(unsafe.Pointer(&n))
	for i := range from {
		words[i] = atomic.LoadUint64(&from[i])
	}
	return n
}

// clear empties a slot that no path leads to, and gives it to p; the zero Path gives it to nobody.
func (m *memory) clear(slot uint32, p Path, now time.Duration) {
	words := (*[slotWords]uint64)(unsafe.Pointer(&m.slots[slot]))
	path := &words[unsafe.Offsetof(programSlot{}.Path)/8]
	atomic.StoreUint64(path, 0)
	for i := range words {
		if &words[i] != path && i != 0 {
			atomic.StoreUint64(&words[i], 0)
		}
	}
	atomic.StoreUint64(&m.slots[slot].Since, uint64(now))
	key := p.key()
	atomic.StoreUint64(path, *(*uint64)(unsafe.Pointer(&key)))
}
