package uring

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// byReference is the shortest vector, in bytes, that is not copied into the socket: for less the two system calls
// cost as much as the copy.
const byReference = 32 << 10

// Pages is a pool for one socket, see Socket.Pages. It belongs to the ring's thread.
type Pages struct {
	*Pool
	socket *Socket
	place  uint16 // in the ring's buffer table, or noPlace
	closed bool   // guarded by the engine's pageSets
}

const (
	// lentPlaces is for how many pools a ring keeps a place in its buffer table. I/O to the others costs more.
	lentPlaces = 32
	noPlace    = 1<<16 - 1
)

// newPlaces are the free places behind the first.
func newPlaces(first int) (free []uint16) {
	for i := range lentPlaces {
		free = append(free, uint16(first+i))
	}
	return free
}

// register gives p a place in the buffer table, if it can.
func (r *Ring) register(p *Pages) {
	p.place = noPlace
	if n := len(r.places) - 1; n >= 0 && r.fixes && r.sys.UpdateBuffer(int(r.places[n]), p.usable()) == nil {
		p.place, r.places = r.places[n], r.places[:n]
	}
	r.pages = append(r.pages, p)
}

func (r *Ring) unregister(p *Pages) {
	i := slices.Index(r.pages, p)
	if i < 0 {
		return
	}
	r.pages = slices.Delete(r.pages, i, i+1)
	if p.place != noPlace && r.sys.UpdateBuffer(int(p.place), nil) == nil {
		r.places = append(r.places, p.place)
	}
}

// Pages maps a pool of size bytes, a multiple of 1 MiB, for this socket alone; one at a time. What lies in it and
// is not short Send does not copy: the network refers to the pages until the peer has read them, longer than until
// done. Whoever writes to such a buffer changes what the peer reads. Nothing but the peer's own protocol tells
// when that is over, and a peer may lie: so only what it may see anyway may ever be written there. The memory is
// there, and locked, at once, for I/O of this ring.
func (s *Socket) Pages(size int64) (*Pages, error) {
	switch {
	case s.closing:
		return nil, &SocketError{Operation: "map pages", Kind: ErrClosed, Errno: unix.EBADF}
	case s.pages != nil || size < slabSize || size%slabSize != 0:
		return nil, &SocketError{Operation: "map pages", Kind: ErrInvalid, Errno: unix.EINVAL}
	}
	if err := s.ring.pipe.open(); err != nil {
		return nil, fmt.Errorf("uring: a pipe of %d bytes: %w", MaxBuffer, err)
	}
	pool, err := newPool(size)
	if err != nil {
		return nil, err
	}
	s.pages = &Pages{Pool: pool, socket: s}
	s.ring.engine.lent.add(s.pages)
	s.ring.register(s.pages)
	return s.pages, nil
}

// Close unmaps the pool, whoever has buffers of it. What the network still refers to keeps its content until it is
// sent; what the kernel holds (Op.Held) stays mapped until it comes back.
func (p *Pages) Close() error {
	if p.socket.pages == p {
		p.socket.pages = nil
	}
	p.socket.ring.unregister(p)
	return p.socket.ring.engine.lent.close(p)
}

// pageSets knows the pools of sockets.
type pageSets struct {
	mu  sync.Mutex // guards all and Pages.closed
	all []*Pages
}

func (l *pageSets) add(p *Pages) {
	l.mu.Lock()
	l.all = append(l.all, p)
	l.mu.Unlock()
}

// close forgets p and unmaps it, unless the kernel holds some of it.
func (l *pageSets) close(p *Pages) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.closed = true
	return l.settle(p)
}

// settle unmaps p if it is closed and nothing holds it. l.mu is held.
func (l *pageSets) settle(p *Pages) error {
	i := slices.Index(l.all, p)
	if i < 0 || !p.closed || p.held.count.Load() != 0 {
		return nil
	}
	l.all = slices.Delete(l.all, i, i+1)
	return p.Pool.close()
}

// hold is Pool.hold for a buffer of any pool.
func (e *Engine) hold(b []byte) {
	e.lent.mu.Lock()
	defer e.lent.mu.Unlock()
	pool, _ := e.poolOf(b)
	pool.hold(b)
}

// letGo is Pool.letGo for a buffer of any pool.
func (e *Engine) letGo(b []byte) {
	e.lent.mu.Lock()
	defer e.lent.mu.Unlock()
	pool, pages := e.poolOf(b)
	pool.letGo(b)
	if pages != nil {
		_ = e.lent.settle(pages) // the address range is ours, so it can be unmapped
	}
}

// poolOf finds the pool that b lies in, the engine's own if it is in none. e.lent.mu is held.
func (e *Engine) poolOf(b []byte) (*Pool, *Pages) {
	for _, p := range e.lent.all {
		if _, ok := p.region(b); ok {
			return p.Pool, p
		}
	}
	return e.pool, nil
}

// pipe is where pages pass on their way into a socket; it is empty in between.
type pipe struct{ read, write int }

// open makes the pipe if there is none; it takes a whole buffer.
func (p *pipe) open() error {
	if p.write != 0 {
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	p.read, p.write = fds[0], fds[1]
	if _, err := unix.FcntlInt(uintptr(p.write), unix.F_SETPIPE_SZ, MaxBuffer); err != nil {
		p.close()
		return err
	}
	return nil
}

func (p *pipe) close() {
	if p.write != 0 {
		_, _ = unix.Close(p.read), unix.Close(p.write)
		p.read, p.write = 0, 0
	}
}

// give hands the pages of v to a socket in non-blocking mode: the number of bytes or a negative errno. The calls are
// raw, since they never block.
func (p *pipe) give(fd int32, v *unix.Iovec, more bool) int32 {
	n, _, e := syscall.RawSyscall6(unix.SYS_VMSPLICE, uintptr(p.write), uintptr(unsafe.Pointer(v)), 1, unix.SPLICE_F_NONBLOCK, 0, 0)
	if e != 0 {
		return -int32(unix.EAGAIN) // the ring copies it
	}
	flags := uintptr(0)
	if more || uint64(n) < v.Len {
		flags = unix.SPLICE_F_MORE
	}
	sent, _, e := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(p.read), 0, uintptr(fd), 0, n, flags)
	if e != 0 || sent < n {
		p.close() // with what is left in it
		_ = p.open()
	}
	if e != 0 {
		return -int32(e)
	}
	return int32(sent)
}

// refers tells whether v goes by reference.
func (x *sender) refers(v *unix.Iovec) bool {
	if v.Len < byReference || x.socket.ring.pipe.write == 0 {
		return false
	}
	_, ok := x.socket.pages.region(unsafe.Slice(v.Base, v.Len))
	return ok
}

// attemptPages is attempt for a socket with pages: what does not go by reference is copied, as much at a time as can be.
func (x *sender) attemptPages() int32 {
	if n, _ := x.stretch(x.iov); n == len(x.iov) && !x.refers(&x.iov[0]) {
		return x.copy(x.iov, 0)
	}
	x.socket.setFlags(unix.O_RDWR | unix.O_NONBLOCK) // splice(2) knows no other way not to wait
	defer x.socket.setFlags(unix.O_RDWR)             // which the ring needs to wait by itself
	sent := int32(0)
	for left := x.iov; len(left) > 0; {
		n, want := x.stretch(left)
		got := x.pass(left[:n], n < len(left))
		if got < 0 && sent == 0 {
			return got
		}
		if sent += max(got, 0); uint64(max(got, 0)) < want {
			break
		}
		left = left[n:]
	}
	return sent
}

// pass sends a stretch, more of them following: the number of bytes or a negative errno.
func (x *sender) pass(v []unix.Iovec, more bool) int32 {
	switch {
	case x.refers(&v[0]):
		return x.socket.ring.pipe.give(x.socket.fd, &v[0], more)
	case more:
		return x.copy(v, unix.MSG_MORE)
	}
	return x.copy(v, 0)
}

// stretch is how many of the vectors go the same way in one call, and their bytes.
func (x *sender) stretch(left []unix.Iovec) (n int, bytes uint64) {
	if x.refers(&left[0]) {
		return 1, left[0].Len
	}
	for n < len(left) && !x.refers(&left[n]) {
		bytes += left[n].Len
		n++
	}
	return n, bytes
}

func (s *Socket) setFlags(flags uintptr) {
	//nolint:dogsled // it cannot fail on an open socket
	_, _, _ = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(s.fd), unix.F_SETFL, flags)
}
