package fusedev

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Transfer is a read or a write on the lane. Bytes and offsets are the file's.
type Transfer struct {
	Write  bool
	File   uint64 // the handle that Open gave
	Offset int64
	Length int    // that the program asks for
	Flags  uint32 // Write: the file's, O_DSYNC among them
	Data   []byte // Write: what to store; valid during Begin

	Buf   []byte // Begin's: Read: what was read, which may be less; it stays Begin's until End
	Owner any    // Begin's

	// Done is for Begin to pass on: it is called on the lane when the I/O has ended.
	Done func(error)

	server *Server
	answer struct {
		fuse.OutHeader
		fuse.WriteOut
	}
	iov [2]unix.Iovec
}

func newTransfer(s *Server) *Transfer {
	t := &Transfer{server: s}
	t.Done = t.end
	return t
}

// move begins a transfer for a request of n bytes; false: it is for the file system.
func (s *Server) move(in *fuse.InHeader, n int) bool {
	last := len(s.free) - 1
	if last < 0 || n < headSize || in.TotalExtlen != 0 {
		return false
	}
	t := s.free[last]
	if !t.load(in, n-headSize) {
		return false
	}
	s.free = s.free[:last]
	s.moves++
	if !s.o.Files.Begin(t) {
		t.leave()
		return false
	}
	return true
}

// load reads the request, which has rest bytes behind its head.
func (t *Transfer) load(in *fuse.InHeader, rest int) bool {
	t.answer.Unique, t.Write = in.Unique, in.Opcode == opWrite
	if t.Write {
		w := (*fuse.WriteIn)(unsafe.Pointer(in))
		t.File, t.Offset, t.Length, t.Flags = w.Fh, int64(w.Offset), int(w.Size), w.Flags
		t.Data = t.server.bulk[:rest]
	} else {
		r := (*fuse.ReadIn)(unsafe.Pointer(in))
		t.File, t.Offset, t.Length, t.Flags = r.Fh, int64(r.Offset), int(r.Size), r.Flags
		t.Data = nil
	}
	return t.Offset >= 0 && (!t.Write || t.Length == rest)
}

// end answers.
func (t *Transfer) end(err error) {
	s, idle := t.server, t
	if err == nil {
		s.told(t.tell(0))
		_ = s.o.Files.End(t, nil)
	} else {
		idle = newTransfer(s) // in place of t, which goes with the goroutine
		s.all.Go(func() { s.told(t.fail(err)) })
	}
	idle.leave()
	s.settle()
}

func (t *Transfer) fail(err error) error {
	return t.tell(int32(t.server.o.Files.End(t, err)))
}

// tell gives the kernel the answer: the bytes that were read, or how many were written, or an errno.
func (t *Transfer) tell(errno int32) error {
	a := &t.answer
	t.iov[0].Base = (*byte)(unsafe.Pointer(a))
	head, data := outSize, []byte(nil)
	switch {
	case errno != 0:
	case t.Write:
		head = int(unsafe.Sizeof(*a))
		a.Size = uint32(t.Length)
	default:
		data = t.Buf
	}
	t.iov[0].SetLen(head)
	t.iov[1].Base = unsafe.SliceData(data)
	t.iov[1].SetLen(len(data))
	a.Status, a.Length = -errno, uint32(head+len(data))
	return write(t.server.o.FD, t.iov[:])
}

// leave makes room for another transfer.
func (t *Transfer) leave() {
	t.Data, t.Buf, t.Owner = nil, nil, nil
	t.server.moves--
	t.server.free = append(t.server.free, t)
}
