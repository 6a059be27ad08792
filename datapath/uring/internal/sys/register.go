package sys

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (r *Ring) register(op uintptr, arg unsafe.Pointer, n int) (int, error) {
	v, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), uintptr(n), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(v), nil
}

// RegisterBuffers pins bufs, each at most 1 GiB and outside Go's heap, for ReadFixed and
// WriteFixed; a nil one leaves its place empty: io_uring_register(2), IORING_REGISTER_BUFFERS.
func (r *Ring) RegisterBuffers(bufs [][]byte) error {
	iov := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
	}
	if _, err := r.register(registerBuffers, unsafe.Pointer(unsafe.SliceData(iov)), len(iov)); err != nil {
		return fmt.Errorf("IORING_REGISTER_BUFFERS: %w", err)
	}
	return nil
}

// rsrcUpdate2 is struct io_uring_rsrc_update2.
type rsrcUpdate2 struct {
	offset, _  uint32
	data, tags uint64
	nr, _      uint32
}

// UpdateBuffer pins buf, as RegisterBuffers does, at a place of the table; nil empties it once the requests
// that use it are done: io_uring_register(2), IORING_REGISTER_BUFFERS_UPDATE.
func (r *Ring) UpdateBuffer(index int, buf []byte) error {
	iov := &unix.Iovec{Base: unsafe.SliceData(buf), Len: uint64(len(buf))}
	arg := rsrcUpdate2{offset: uint32(index), nr: 1, data: uint64(uintptr(unsafe.Pointer(iov)))}
	_, err := r.register(registerBuffersUpdate, unsafe.Pointer(&arg), int(unsafe.Sizeof(arg)))
	runtime.KeepAlive(iov)
	if err != nil {
		return fmt.Errorf("IORING_REGISTER_BUFFERS_UPDATE: %w", err)
	}
	return nil
}

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	nr, flags uint32
	_         uint64
	data      uint64
	tags      uint64
}

// RegisterFiles makes an empty table of n fixed files: io_uring_register(2),
// IORING_REGISTER_FILES2 with IORING_RSRC_REGISTER_SPARSE.
func (r *Ring) RegisterFiles(n int) error {
	arg := rsrcRegister{nr: uint32(n), flags: registerFlagSparse}
	if _, err := r.register(registerFiles2, unsafe.Pointer(&arg), int(unsafe.Sizeof(arg))); err != nil {
		return fmt.Errorf("IORING_REGISTER_FILES2: %w", err)
	}
	return nil
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset uint32
	_      uint32
	data   uint64
}

// UpdateFile puts descriptor fd at index of the table; -1 empties the place. The kernel keeps a
// reference to the file until then: io_uring_register(2), IORING_REGISTER_FILES_UPDATE.
func (r *Ring) UpdateFile(index int, fd int32) error {
	value := new(int32)
	*value = fd
	arg := rsrcUpdate{offset: uint32(index), data: uint64(uintptr(unsafe.Pointer(value)))}
	_, err := r.register(registerFilesUpdate, unsafe.Pointer(&arg), 1)
	runtime.KeepAlive(value)
	if err != nil {
		return fmt.Errorf("IORING_REGISTER_FILES_UPDATE: %w", err)
	}
	return nil
}

// RegisterRingFD lets this thread enter the ring without a look-up in the descriptor table:
// io_uring_register(2), IORING_REGISTER_RING_FDS.
func (r *Ring) RegisterRingFD() error {
	arg := rsrcUpdate{offset: registerRingFDAnyslot, data: uint64(r.fd)}
	if _, err := r.register(registerRingFDs, unsafe.Pointer(&arg), 1); err != nil {
		return fmt.Errorf("IORING_REGISTER_RING_FDS: %w", err)
	}
	r.enterFD, r.enterFlags = int(arg.offset), enterRegisteredRing
	return nil
}

// unregisterRingFD gives the index back: io_uring_register(2), IORING_UNREGISTER_RING_FDS.
func (r *Ring) unregisterRingFD() {
	if r.enterFlags == 0 {
		return
	}
	arg := rsrcUpdate{offset: uint32(r.enterFD)}
	_, _ = r.register(unregisterRingFDs, unsafe.Pointer(&arg), 1)
	r.enterFD, r.enterFlags = r.fd, 0
}
