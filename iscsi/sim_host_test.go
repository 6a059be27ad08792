package iscsi

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"
	"unsafe"
)

// The host of the simulation: lanes, sockets, buffers and disks that share one goroutine. What real
// ones leave open (how much one receive brings, when a write completes) the seed decides.

type simLane struct {
	world   *world
	index   int
	posted  []func()
	batches []func()
	ticks   []func(time.Time)
	sockets []*simSocket
	flights []*simFlight // backend calls under way
}

func (l *simLane) Index() int                    { return l.index }
func (l *simLane) Post(fn func()) error          { l.posted = append(l.posted, fn); return nil }
func (l *simLane) OnBatch(fn func())             { l.batches = append(l.batches, fn) }
func (l *simLane) OnTick(fn func(now time.Time)) { l.ticks = append(l.ticks, fn) }

func (l *simLane) Attach(fd int) (Socket, error) {
	s := l.world.sockets[fd-simDescriptor]
	s.lane = l
	l.sockets = append(l.sockets, s)
	return s, nil
}

// ready lists what could happen next on the lane.
func (l *simLane) ready() (all []func()) {
	if len(l.posted) > 0 {
		all = append(all, l.runPosted)
	}
	for _, s := range l.sockets {
		all = s.ready(all)
	}
	for _, f := range l.flights {
		if !l.world.slow {
			all = append(all, f.land)
		}
	}
	return all
}

func (l *simLane) runPosted() {
	fn := l.posted[0]
	l.posted = l.posted[1:]
	fn()
}

// run is one batch of at most n events; it tells whether anything happened.
func (l *simLane) run(n int) (busy bool) {
	for range n {
		all := l.ready()
		if len(all) == 0 {
			break
		}
		busy = true
		all[l.world.rnd.IntN(len(all))]()
	}
	l.flush()
	return busy
}

func (l *simLane) flush() {
	for _, fn := range l.batches {
		fn()
	}
}

func (l *simLane) tick(now time.Time) {
	for _, fn := range l.ticks {
		fn(now)
	}
	l.flush()
}

// simDescriptor is the first number of the sockets' descriptors: the kernel knows none of them.
const simDescriptor = 1 << 30

// simSocket is a TCP connection: two byte streams.
type simSocket struct {
	world       *world
	number      int
	lane        *simLane
	rnd         *rand.Rand // its own: the lane may serve sockets in any order
	toTarget    []byte
	toInitiator []byte
	room        int // for toInitiator
	moved, read int // bytes that went into toInitiator and out of it
	lends       bool
	pages       *simPages
	cut         error // what the target finds behind toTarget: io.EOF is the orderly close

	into, rest []byte
	received   func(int, error)
	out        [][]byte
	sent       func(error)
	ended      func()
	closing    bool
	gone       bool
}

func (s *simSocket) Recv(p, rest []byte, done func(int, error)) {
	if s.received != nil || len(p) == 0 {
		s.world.fail("OneRecv", "a second Recv, or one of %d bytes", len(p))
	}
	s.into, s.rest, s.received = p, rest, done
}

func (s *simSocket) Send(bufs [][]byte, done func(error)) {
	if s.sent != nil || len(bufs) > MaxSendBuffers {
		s.world.fail("OneSend", "a second Send, or one of %d vectors", len(bufs))
	}
	s.out, s.sent = slices.Clone(bufs), done
	if s.rnd.IntN(4) == 0 && s.writable() {
		s.push(s.room)
	}
}

func (s *simSocket) Pages(n int) (Pages, error) {
	if s.pages != nil || s.closing {
		s.world.fail("OnePages", "pages for a socket that has some, or is closed")
	}
	if !s.lends {
		return nil, errNoPages
	}
	s.pages = &simPages{simPool: newSimPool(s.world), sock: s}
	s.pages.limit = min(n, 16<<10)
	return s.pages, nil
}

// simPages are a socket's Pages: what went out of them has to have been read before it comes back, and something behind it.
type simPages struct {
	*simPool
	sock *simSocket
	refs []simRef
}

// simRef is a piece that the stream refers to, up to byte end.
type simRef struct {
	p   []byte
	end int
}

func (b *simPages) Put(p []byte) {
	b.refs = slices.DeleteFunc(b.refs, func(r simRef) bool {
		if !overlap(r.p, p) {
			return false
		}
		if r.end >= b.sock.read {
			b.world.fail("PagesRead", "%d bytes came back before the initiator had read them", len(p))
		}
		return true
	})
	b.simPool.Put(p)
}

func (b *simPages) Close() error {
	if b.sock.pages != b {
		b.world.fail("OnePages", "pages closed twice")
	}
	b.sock.pages = nil
	return nil
}

// shows notes that p was moved into the stream.
func (b *simPages) shows(p []byte, end int) {
	if b == nil || len(p) == 0 {
		return
	}
	for start, n := range b.out {
		if overlap(unsafe.Slice(start, n), p) {
			b.refs = append(b.refs, simRef{p, end})
		}
	}
}

func (s *simSocket) Close(closed func()) {
	s.closing, s.ended = true, closed
	s.world.closedByTarget(s)
}

func (s *simSocket) writable() bool {
	return s.closing || s.cut != nil || len(s.toInitiator) < s.room
}

func (s *simSocket) ready(all []func()) []func() {
	if s.received != nil && (s.closing || s.cut != nil || len(s.toTarget) > 0) {
		all = append(all, s.deliver)
	}
	if s.sent != nil && s.writable() {
		all = append(all, func() { s.push(1 + s.rnd.IntN(4096)) })
	}
	if s.closing && s.received == nil && s.sent == nil && !s.gone {
		all = append(all, s.finish)
	}
	return all
}

// deliver completes the Recv with as many bytes as the seed wants.
func (s *simSocket) deliver() {
	done := s.received
	s.received = nil
	switch {
	case s.closing:
		done(0, net.ErrClosed)
	case len(s.toTarget) > 0:
		n := min(len(s.toTarget), len(s.into)+len(s.rest))
		if s.rnd.IntN(3) == 0 {
			n = 1 + s.rnd.IntN(n)
		}
		k := copy(s.into, s.toTarget[:n])
		copy(s.rest, s.toTarget[k:n])
		s.toTarget = s.toTarget[n:]
		done(n, nil)
	case s.cut == io.EOF: //nolint:errorlint // a mark, never wrapped
		done(0, nil)
	default:
		done(0, s.cut)
	}
}

// push moves up to n bytes of the Send and completes it when all are out.
func (s *simSocket) push(n int) {
	var err error
	switch {
	case s.closing:
		err = net.ErrClosed
	case s.cut != nil:
		err = syscall.EPIPE
	default:
		s.move(min(n, s.room-len(s.toInitiator)))
		if len(s.out) > 0 {
			return
		}
	}
	done := s.sent
	s.sent, s.out = nil, nil
	done(err)
}

func (s *simSocket) move(n int) {
	for n > 0 && len(s.out) > 0 {
		k := min(n, len(s.out[0]))
		s.toInitiator = append(s.toInitiator, s.out[0][:k]...)
		s.moved += k
		s.pages.shows(s.out[0][:k], s.moved)
		s.out[0] = s.out[0][k:]
		n -= k
		if len(s.out[0]) == 0 {
			s.out = s.out[1:]
		}
	}
}

func (s *simSocket) finish() {
	s.gone = true
	s.lane.sockets = slices.DeleteFunc(s.lane.sockets, func(o *simSocket) bool { return o == s })
	s.ended()
}

// uses tells whether a call under way refers to memory of p.
func (s *simSocket) uses(p []byte) bool {
	if s.received != nil && (overlap(s.into, p) || overlap(s.rest, p)) {
		return true
	}
	return slices.ContainsFunc(s.out, func(o []byte) bool { return overlap(o, p) })
}

func overlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	x, y := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&b[0]))
	return x < y+uintptr(len(b)) && y < x+uintptr(len(a))
}

// simPool is the host's buffers, with a limit that the seed moves. A buffer has guard bytes behind
// it and is poisoned when it comes back.
type simPool struct {
	world *world
	out   map[*byte]int
	free  map[int][][]byte
	used  int
	limit int
}

const (
	simGuard    = 64
	guardByte   = 0xc7
	poisonByte  = 0xa5
	noPoolLimit = 1 << 30
)

func newSimPool(w *world) *simPool {
	return &simPool{world: w, out: map[*byte]int{}, free: map[int][][]byte{}, limit: noPoolLimit}
}

func (b *simPool) Get(n int) []byte {
	if b.used+n > b.limit {
		return nil
	}
	var p []byte
	if list := b.free[n]; len(list) > 0 {
		p, b.free[n] = list[len(list)-1], list[:len(list)-1]
	} else {
		p = bytes.Repeat([]byte{guardByte}, n+simGuard)[:n]
	}
	b.out[&p[0]] = n
	b.used += n
	return p
}

func (b *simPool) Put(p []byte) {
	n, ok := b.out[&p[0]]
	if !ok || n != len(p) {
		b.world.fail("BufferOwned", "%d bytes came back that were not out", len(p))
		return
	}
	if b.world.uses(p) {
		b.world.fail("BufferIdle", "%d bytes came back during I/O on them", n)
	}
	if behind := p[n : n+simGuard]; bytes.Count(behind, []byte{guardByte}) != simGuard {
		b.world.fail("BufferBounds", "written beyond the buffer's %d bytes", n)
	}
	delete(b.out, &p[0])
	b.used -= n
	for i := range p {
		p[i] = poisonByte
	}
	b.free[n] = append(b.free[n], p)
}

// simDisk is a scsi.Backend whose calls complete at once, or later and in any order. A call takes
// effect when it completes.
type simDisk struct {
	world *world
	lun   int
	data  []byte
}

// simFlight is a backend call under way.
type simFlight struct {
	disk  *simDisk
	lane  *simLane
	write bool
	p     []byte
	was   []byte // the content of a write when it was handed over
	off   int64
	done  func(error)
	cmd   *simCommand // whose data a write carries
}

func (d *simDisk) Size() int64 { return int64(len(d.data)) }

func (d *simDisk) Read(lane int, p []byte, off int64, done func(error)) {
	d.start(&simFlight{disk: d, lane: d.world.lanes[lane], p: p, off: off, done: done})
}

func (d *simDisk) Write(lane int, p []byte, off int64, _ bool, done func(error)) {
	d.start(&simFlight{
		disk: d, lane: d.world.lanes[lane], p: p, off: off, done: done,
		write: true, was: bytes.Clone(p), cmd: d.world.claim(d.lun, p, off),
	})
}

func (d *simDisk) start(f *simFlight) {
	f.lane.flights = append(f.lane.flights, f)
	if !d.world.slow && d.world.rnd.IntN(3) == 0 {
		f.land()
	}
}

func (f *simFlight) land() {
	w := f.disk.world
	f.lane.flights = slices.DeleteFunc(f.lane.flights, func(o *simFlight) bool { return o == f })
	var err error
	switch at := f.disk.data[f.off : f.off+int64(len(f.p))]; {
	case w.faulty && w.rnd.IntN(8) == 0:
		err = syscall.EIO
	case !f.write:
		copy(f.p, at)
	default:
		if !bytes.Equal(f.p, f.was) {
			w.fail("BufferLent", "a write's data changed under way")
		}
		copy(at, f.p)
	}
	f.done(err)
}

func (d *simDisk) Flush(_ int, done func(error))             { done(nil) }
func (d *simDisk) Unmap(_ int, _, _ int64, done func(error)) { done(syscall.EOPNOTSUPP) }
func (d *simDisk) Mapped(off int64) (mapped bool, n int64)   { return true, d.Size() - off }
func (d *simDisk) Space() (used, free int64)                 { return d.Size(), 1 << 40 }
func (d *simDisk) CompareAndWrite(_ int, _, _ []byte, _ int64, _ bool, done func(int, error)) {
	done(-1, syscall.EOPNOTSUPP)
}
