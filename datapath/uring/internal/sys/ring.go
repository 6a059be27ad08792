package sys

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config sizes a ring. Entries is the depth of the submission queue, CQEntries that of the
// completion queue; the kernel rounds both up to powers of two and clamps them to its limits.
type Config struct {
	Entries, CQEntries uint32
	Flags              uint32 // Setup* beyond SetupCQSize and SetupClamp, which are always set
}

// Ring is one io_uring instance with its queues mapped.
type Ring struct {
	fd         int // the descriptor, for close and register
	enterFD    int // the registered index once RegisterRingFD succeeded, else fd
	enterFlags uintptr
	features   uint32
	rings      []byte
	sqeMem     []byte
	sqes       []SQE
	cqes       []CQE
	sqHead     *uint32 // written by the kernel
	sqTail     *uint32
	sqFlags    *uint32 // written by the kernel
	cqHead     *uint32
	cqTail     *uint32 // written by the kernel
	cqOver     *uint32 // written by the kernel
	tail       uint32  // SQEs built; ahead of *sqTail until the next enter
	arg        extArg
}

// Setup makes a ring and maps its queues: io_uring_setup(2). The ring needs IORING_FEAT_NODROP,
// IORING_FEAT_EXT_ARG and IORING_FEAT_SINGLE_MMAP (Linux 5.11).
func Setup(c Config) (*Ring, error) {
	p := params{flags: c.Flags | SetupCQSize | SetupClamp, cqEntries: c.CQEntries}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(c.Entries), uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", e)
	}
	r := &Ring{fd: int(fd), enterFD: int(fd), features: p.features}
	const need = FeatNoDrop | FeatExtArg | FeatSingleMmap
	if p.features&need != need {
		_ = r.Close()
		return nil, fmt.Errorf("io_uring_setup: kernel features %#x lack %#x: Linux 5.11 or newer is needed: %w",
			p.features, need&^p.features, unix.ENOSYS)
	}
	if err := r.mmap(&p); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// mmap maps both rings at once, and the array of SQEs: io_uring_setup(2), "IORING_OFF_SQ_RING".
func (r *Ring) mmap(p *params) (err error) {
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*sizeofCQE)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("mmap of the rings: %w", err)
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries*sizeofSQE), prot, flags); err != nil {
		return fmt.Errorf("mmap of the submission entries: %w", err)
	}
	r.sqHead, r.sqTail, r.sqFlags = r.word(p.sqOff.head), r.word(p.sqOff.tail), r.word(p.sqOff.flags)
	r.cqHead, r.cqTail, r.cqOver = r.word(p.cqOff.head), r.word(p.cqOff.tail), r.word(p.cqOff.overflow)
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.rings[p.cqOff.cqes])), p.cqEntries)
	if p.flags&SetupNoSQArray == 0 {
		identity(unsafe.Slice(r.word(p.sqOff.array), p.sqEntries))
	}
	return nil
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// identity makes entry i of the submission ring always name SQE i.
func identity(array []uint32) {
	for i := range array {
		array[i] = uint32(i)
	}
}

// Close unmaps the queues and closes the ring. The kernel then cancels what is in flight, on its
// own time: buffers of such requests must outlive it.
func (r *Ring) Close() error {
	for _, m := range [...]*[]byte{&r.rings, &r.sqeMem} {
		if *m != nil {
			_ = unix.Munmap(*m)
			*m = nil
		}
	}
	r.unregisterRingFD()
	fd := r.fd
	r.fd = -1
	if fd < 0 {
		return unix.EBADF
	}
	return unix.Close(fd)
}

// Entries tells the true depth of the submission and of the completion queue.
func (r *Ring) Entries() (sq, cq int) { return len(r.sqes), len(r.cqes) }

// Overflows counts the completions that found the completion queue full; the kernel kept them
// aside (IORING_FEAT_NODROP) and hands them out at a later Enter.
func (r *Ring) Overflows() uint32 { return atomic.LoadUint32(r.cqOver) }
