package coordinator

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aioDepth is how many writes one context has under way at most.
const aioDepth = 64

// struct iocb and struct io_event of linux/aio_abi.h, little endian.
type iocb struct {
	data   uint64
	_      [2]uint32 // key, flags of the write
	opcode uint16
	_      uint16 // priority
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      uint64
	_      [2]uint32 // flags, eventfd
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

const iocbPwrite = 1 // IOCB_CMD_PWRITE

// aio is a context of the kernel's native AIO, for writes that change a mapping: XFS starts these, one after the other,
// in io_submit(2) itself, while io_uring hands each to a thread of its own.
type aio struct {
	id     uintptr
	blocks [aioDepth]iocb
	list   [aioDepth]*iocb
	events [aioDepth]ioEvent
}

func newAIO() (*aio, error) {
	a := &aio{}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, aioDepth, uintptr(unsafe.Pointer(&a.id)), 0); errno != 0 {
		return nil, fmt.Errorf("io_setup: %w", errno)
	}
	for i := range a.list {
		a.list[i] = &a.blocks[i]
	}
	return a, nil
}

func (a *aio) close() error {
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, a.id, 0, 0); errno != 0 {
		return fmt.Errorf("io_destroy: %w", errno)
	}
	return nil
}

// write does what it can of writes, aioDepth at most, and marks those that were done whole. Nothing is under way when
// it returns. What the writes point to is on the heap, and so stays where it is.
func (a *aio) write(fd int, writes []*allocating) {
	for i, w := range writes {
		a.blocks[i] = iocb{data: uint64(i), opcode: iocbPwrite, fd: uint32(fd), buf: uint64(address(w.p)), bytes: uint64(len(w.p)), offset: w.off}
	}
	begun := a.submit(len(writes))
	for ended := 0; ended < begun; {
		left := uintptr(begun - ended)
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.id, left, left, uintptr(unsafe.Pointer(&a.events[0])), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		for _, e := range a.events[:n] {
			w := writes[e.data]
			w.done = e.res == int64(len(w.p))
		}
		ended += int(n)
	}
}

// submit begins the first n blocks, and tells how many it could.
func (a *aio) submit(n int) (begun int) {
	for begun < n {
		done, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.id, uintptr(n-begun), uintptr(unsafe.Pointer(&a.list[begun])))
		switch {
		case errno == unix.EINTR:
		case errno != 0 || done == 0:
			return begun
		default:
			begun += int(done)
		}
	}
	return begun
}

// aios are the contexts of a coordinator: as many as were wanted at once.
type aios struct {
	mu   sync.Mutex // guards free
	free []*aio     // nobody uses them at present
}

func (all *aios) take() (*aio, error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	n := len(all.free)
	if n == 0 {
		return newAIO()
	}
	a := all.free[n-1]
	all.free = all.free[:n-1]
	return a, nil
}

func (all *aios) give(a *aio) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.free = append(all.free, a)
}

// close ends all contexts; none is in use.
func (all *aios) close() error {
	all.mu.Lock()
	defer all.mu.Unlock()
	var errs []error
	for _, a := range all.free {
		errs = append(errs, a.close())
	}
	all.free = nil
	return errors.Join(errs...)
}
