package fusedev

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Of the protocol, fuse(4) and linux/fuse.h.
const (
	opRead      = 15
	opWrite     = 16
	opInterrupt = 36

	headSize   = int(unsafe.Sizeof(fuse.ReadIn{})) // as large as WriteIn
	outSize    = int(unsafe.Sizeof(fuse.OutHeader{}))
	answerSize = 512 // of every answer without its payload, at most
)

// read takes one request: its first bytes into head, the others into bulk.
func (s *Server) read() (int, syscall.Errno) {
	s.iov[0].Base, s.iov[1].Base = (*byte)(unsafe.Pointer(&s.head[0])), &s.bulk[0]
	s.iov[0].SetLen(headSize)
	s.iov[1].SetLen(len(s.bulk))
	n, _, e := syscall.RawSyscall(unix.SYS_READV, uintptr(s.o.FD), uintptr(unsafe.Pointer(&s.iov[0])), uintptr(len(s.iov)))
	return int(n), e
}

// write gives the kernel one answer. That the request is gone, or the mount, is no failure.
func write(fd int, iov []unix.Iovec) error {
	_, _, e := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	switch e {
	case 0, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED, unix.EPERM:
		return nil
	}
	return fmt.Errorf("answer to the kernel: %w", e)
}

// take begins a request of n bytes.
func (s *Server) take(n int) {
	in := (*fuse.InHeader)(unsafe.Pointer(&s.head[0]))
	switch {
	case in.Opcode == opInterrupt:
		s.told(s.refuse(in.Unique, unix.ENOSYS)) // the kernel sends no more
	case (in.Opcode == opRead || in.Opcode == opWrite) && s.move(in, n):
	default:
		s.hand(s.wayOf(n))
	}
}

func (s *Server) refuse(unique uint64, e syscall.Errno) error {
	out := fuse.OutHeader{Length: uint32(outSize), Status: -int32(e), Unique: unique}
	return write(s.o.FD, []unix.Iovec{{Base: (*byte)(unsafe.Pointer(&out)), Len: uint64(outSize)}})
}

func (s *Server) told(err error) {
	if err != nil {
		s.o.Log.Error("a program waits in vain", "err", err)
	}
}

// way is a request on its way through go-fuse, and back.
type way struct {
	head [headSize]byte
	bulk []byte
	n    int // of head and bulk
	out  []byte
}

// wayOf has a copy of the request that was read.
func (s *Server) wayOf(n int) *way {
	w, ok := s.ways.Get().(*way)
	if !ok {
		w = &way{out: make([]byte, answerSize+s.o.Mount.MaxWrite)}
	}
	w.n = n
	w.head = *(*[headSize]byte)(unsafe.Pointer(&s.head[0]))
	w.bulk = append(w.bulk[:0], s.bulk[:max(0, n-headSize)]...)
	return w
}

// hand has the file system serve a request on a goroutine.
func (s *Server) hand(w *way) {
	s.busy.Add(1)
	s.all.Go(func() {
		s.told(s.by(w))
		s.busy.Add(-1)
		if s.starved.Swap(false) {
			s.goOn()
		}
	})
}

// by has the file system serve a request.
func (s *Server) by(w *way) error {
	defer s.ways.Put(w)
	in := [][]byte{w.head[:min(w.n, headSize)]}
	if w.n > headSize {
		in = append(in, w.bulk)
	}
	n, status := s.proto.HandleRequest(in, [][]byte{w.out})
	switch {
	case status != fuse.OK:
		return s.refuse((*fuse.InHeader)(unsafe.Pointer(&w.head[0])).Unique, syscall.Errno(status))
	case n == 0: // it wants no answer
		return nil
	}
	return write(s.o.FD, []unix.Iovec{{Base: &w.out[0], Len: uint64(n)}})
}
