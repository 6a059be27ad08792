package uring

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// MaxSendBuffers bounds one Send: the kernel takes 1,024 vectors at most (UIO_MAXIOV).
const MaxSendBuffers = 1024

// Socket is a connected stream socket on a ring. Its methods are called on the ring's thread; the
// functions they take run there too, never before the method returned.
type Socket struct {
	ring  *Ring
	fd    int32
	rx    receiver
	tx    sender
	pages *Pages // nil: everything is copied

	closing  bool
	gone     bool // the descriptor is closed
	onClosed []func()
}

// receiver is the receiving half.
type receiver struct {
	socket *Socket
	slot   uint32
	busy   bool
	more   bool // the socket held more than the last receive took
	tries  int
	iov    [2]unix.Iovec // keep the buffers reachable
	msg    unix.Msghdr
	done   func(n int, err error)
}

// sender is the sending half. Its vectors keep the buffers reachable.
type sender struct {
	socket *Socket
	slot   uint32
	busy   bool
	tries  int
	iov    []unix.Iovec
	from   int // the first vector that is not sent
	msg    unix.Msghdr
	done   func(err error)
}

// Attach takes a connected stream socket over, the descriptor included, unless it fails. The socket
// must not be shared with Go's net package: it is switched to blocking mode, which is what io_uring
// needs to wait by itself.
func (r *Ring) Attach(fd int) (*Socket, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case err != nil:
		return nil, fmt.Errorf("uring: attach descriptor %d: %w", fd, err)
	case kind != unix.SOCK_STREAM:
		return nil, &SocketError{Operation: "attach", Kind: ErrInvalid, Errno: unix.ESOCKTNOSUPPORT}
	case r.closing:
		return nil, &SocketError{Operation: "attach", Kind: ErrClosed, Errno: unix.EBADF}
	case len(r.sockets) >= r.opts.Sockets:
		return nil, &SocketError{Operation: "attach", Kind: ErrQueueFull, Errno: unix.EMFILE}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("uring: attach descriptor %d: %w", fd, err)
	}
	s := &Socket{ring: r, fd: int32(fd)}
	s.rx.socket, s.tx.socket = s, s
	s.rx.slot, s.tx.slot = r.acquire(&s.rx), r.acquire(&s.tx)
	r.sockets[s] = struct{}{}
	return s, nil
}

// refusal tells why a half cannot start.
func (s *Socket) refusal(operation string, busy, valid bool) error {
	switch {
	case s.closing:
		return &SocketError{Operation: operation, Kind: ErrClosed, Errno: unix.EBADF}
	case busy:
		return &SocketError{Operation: operation, Kind: ErrInvalid, Errno: unix.EALREADY}
	case !valid:
		return &SocketError{Operation: operation, Kind: ErrInvalid, Errno: unix.EINVAL}
	}
	return nil
}

// Recv receives at least one byte, into p and then into rest, which may be empty; one Recv may be
// under way at a time. n is 0 with a nil error at the peer's orderly close. p and rest must stay
// untouched until done, which is never called before Recv returned.
func (s *Socket) Recv(p, rest []byte, done func(n int, err error)) {
	if err := s.refusal("receive", s.rx.busy, len(p) > 0); err != nil {
		s.ring.later = append(s.ring.later, func() { done(0, err) })
		return
	}
	s.rx.busy, s.rx.done, s.rx.tries = true, done, 0
	s.rx.iov = [2]unix.Iovec{vector(p), vector(rest)}
	s.rx.start(s.ring)
}

func vector(p []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
}

func bytes(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

func (x *receiver) start(r *Ring) {
	e := r.sqe()
	if x.iov[1].Len == 0 {
		e.Recv(x.socket.fd, bytes(&x.iov[0]), !x.more)
	} else {
		x.msg.Iov = &x.iov[0]
		x.msg.SetIovlen(len(x.iov))
		e.Recvmsg(x.socket.fd, &x.msg, !x.more)
	}
	e.Tag(r.next(x.slot))
}

// next is the tag of a new request in a slot that stays with its owner.
func (r *Ring) next(slot uint32) uint64 {
	r.slots[slot].gen++
	return r.tag(slot)
}

func (x *receiver) complete(r *Ring, _ uint32, res int32, flags uint32) {
	x.more = flags&sys.CQESockNonempty != 0
	if again(res, x.tries) && !x.socket.closing {
		x.tries++
		x.start(r)
		return
	}
	n, err := max(int(res), 0), x.socket.failure("receive", res)
	done := x.done
	x.busy, x.iov, x.done = false, [2]unix.Iovec{}, nil
	done(n, err)
	x.socket.settle()
}

func again(res int32, tries int) bool {
	return (res == -int32(unix.EAGAIN) || res == -int32(unix.EINTR)) && tries < maxTries
}

// failure is the error of a result; of any result once the socket closes.
func (s *Socket) failure(operation string, res int32) error {
	switch {
	case s.closing:
		return &SocketError{Operation: operation, Kind: ErrClosed, Errno: unix.EBADF}
	case res < 0:
		e := syscall.Errno(-res)
		return &SocketError{Operation: operation, Kind: kindOf(e), Errno: e}
	}
	return nil
}

// Send writes all of bufs (at most MaxSendBuffers); one Send may be under way at a time. The
// buffers, but not the slice of them, must stay untouched until done, which is called before Send
// returns if the socket takes everything at once: then the ring needs no completion to go on.
func (s *Socket) Send(bufs [][]byte, done func(err error)) {
	if err := s.refusal("send", s.tx.busy, len(bufs) <= MaxSendBuffers); err != nil {
		s.ring.later = append(s.ring.later, func() { done(err) })
		return
	}
	s.tx.load(bufs)
	if len(s.tx.iov) == 0 {
		s.ring.later = append(s.ring.later, func() { done(nil) })
		return
	}
	s.tx.busy, s.tx.done, s.tx.tries = true, done, 0
	s.tx.complete(s.ring, s.tx.slot, s.tx.attempt(), 0)
}

// attempt sends what the socket takes without waiting: the number of bytes or a negative errno, as
// in a completion.
func (x *sender) attempt() int32 {
	if x.socket.pages != nil {
		return x.attemptPages()
	}
	return x.copy(x.iov, 0)
}

// copy sends out of the vectors. It is a raw system call, since it never blocks.
func (x *sender) copy(v []unix.Iovec, flags uintptr) int32 {
	x.aim(v)
	n, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(x.socket.fd), uintptr(unsafe.Pointer(&x.msg)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|flags)
	if e != 0 {
		return -int32(e)
	}
	return int32(n)
}

// aim lets the message header describe v.
func (x *sender) aim(v []unix.Iovec) {
	x.msg.Iov = &v[0]
	x.msg.SetIovlen(len(v))
}

// load makes the vectors of the buffers that are not empty.
func (x *sender) load(bufs [][]byte) {
	x.iov, x.from = x.iov[:0], 0
	for _, b := range bufs {
		if len(b) > 0 {
			x.iov = append(x.iov, vector(b))
		}
	}
}

func (x *sender) start(r *Ring) {
	e := r.sqe()
	if len(x.iov)-x.from == 1 {
		e.Send(x.socket.fd, bytes(&x.iov[x.from]))
	} else {
		x.aim(x.iov[x.from:])
		e.Sendmsg(x.socket.fd, &x.msg)
	}
	e.Tag(r.next(x.slot))
}

func (x *sender) complete(r *Ring, _ uint32, res int32, _ uint32) {
	if res > 0 {
		x.advance(uint64(res))
		x.tries = 0
	}
	if x.from < len(x.iov) && !x.socket.closing && (res > 0 || again(res, x.tries)) {
		x.tries++
		x.start(r)
		return
	}
	if res == 0 {
		res = -int32(unix.EPIPE)
	}
	err := x.socket.failure("send", res)
	done := x.done
	clear(x.iov)
	x.busy, x.done, x.msg.Iov = false, nil, nil
	done(err)
	x.socket.settle()
}

// advance passes over n bytes that were sent.
func (x *sender) advance(n uint64) {
	for n > 0 {
		v := &x.iov[x.from]
		if n < v.Len {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.Len -= n
			return
		}
		n -= v.Len
		x.from++
	}
}

// Close ends both directions. What is under way completes with an error first; then the descriptor
// is closed and closed (which may be nil) is called.
func (s *Socket) Close(closed func()) {
	if closed != nil {
		s.onClosed = append(s.onClosed, closed)
	}
	switch {
	case s.gone:
		s.ring.later = append(s.ring.later, s.tellClosed)
	case !s.closing:
		s.closing = true
		_ = unix.Shutdown(int(s.fd), unix.SHUT_RDWR)
		if s.rx.busy {
			s.ring.cancelTag(s.ring.tag(s.rx.slot))
		}
		if s.tx.busy {
			s.ring.cancelTag(s.ring.tag(s.tx.slot))
		}
		s.ring.later = append(s.ring.later, s.settle)
	}
}

// settle closes the descriptor once nothing is under way on a closing socket.
func (s *Socket) settle() {
	if !s.closing || s.gone || s.rx.busy || s.tx.busy {
		return
	}
	s.gone = true
	s.ring.release(s.rx.slot)
	s.ring.release(s.tx.slot)
	delete(s.ring.sockets, s)
	_ = unix.Close(int(s.fd))
	s.tellClosed()
}

func (s *Socket) tellClosed() {
	fns := s.onClosed
	s.onClosed = nil
	for _, fn := range fns {
		fn()
	}
}
