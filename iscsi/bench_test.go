package iscsi

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// pumpLane is a Lane without threads: pump runs what is due.
type pumpLane struct {
	due   []func()
	spare []func()
	batch func()
	sock  *pumpSocket
}

func (l *pumpLane) Index() int                    { return 0 }
func (l *pumpLane) Post(fn func()) error          { l.due = append(l.due, fn); return nil }
func (l *pumpLane) OnBatch(fn func())             { l.batch = fn }
func (l *pumpLane) OnTick(func(time.Time))        {}
func (l *pumpLane) Attach(fd int) (Socket, error) { return l.sock, syscall.Close(fd) }

// pump runs callbacks until there is nothing left to do.
func (l *pumpLane) pump() {
	for len(l.due) > 0 {
		now := l.due
		l.due = l.spare[:0]
		for _, fn := range now {
			fn()
		}
		l.spare = now
		if l.batch != nil {
			l.batch()
		}
	}
}

// pumpSocket is a socket whose other end is the benchmark.
type pumpSocket struct {
	lane     *pumpLane
	dst      []byte
	rest     []byte
	received func(int, error)
	sent     func(error)
	sentDone func()
	out      int // bytes that the target sent
	closed   bool
	conn     *conn
	buffers  *arena
	room     int // bytes of Pages, 0 for none
	pages    *testPages
}

func newPumpSocket(l *pumpLane) *pumpSocket {
	s := &pumpSocket{lane: l, buffers: &arena{}}
	s.sentDone = func() { s.sent(nil) }
	return s
}

func (s *pumpSocket) Recv(p, rest []byte, done func(int, error)) {
	s.dst, s.rest, s.received = p, rest, done
}

// take is what the target's receive takes of p.
func (s *pumpSocket) take(p []byte) int {
	n := copy(s.dst, p)
	return n + copy(s.rest, p[n:])
}

func (s *pumpSocket) Send(bufs [][]byte, done func(error)) {
	for _, b := range bufs {
		s.out += len(b)
	}
	s.sent = done
	_ = s.lane.Post(s.sentDone)
}

func (s *pumpSocket) Pages(int) (Pages, error) {
	if s.room == 0 {
		return nil, errNoPages
	}
	s.pages = newTestPages(s.room)
	return s.pages, nil
}

func (s *pumpSocket) Close(closed func()) {
	s.closed = true
	_ = s.lane.Post(closed)
}

// feedOpen is feed for a stream that may end the connection, or have the target stop to listen.
func (s *pumpSocket) feedOpen(p []byte) {
	for len(p) > 0 && !s.closed && s.received != nil {
		received := s.received
		s.received = nil
		n := s.take(p)
		p = p[n:]
		received(n, nil)
		s.lane.batch()
		s.lane.pump()
	}
}

// feed hands the target as much of p as it takes at a time.
func (s *pumpSocket) feed(p []byte) {
	for len(p) > 0 {
		n := s.take(p)
		p = p[n:]
		s.received(n, nil)
		s.lane.batch()
		s.lane.pump()
	}
}

// arena lends buffers, and allocates none while all are of one size.
type arena struct {
	free [][]byte
	gets int
}

func (a *arena) Get(n int) []byte {
	a.gets++
	last := len(a.free) - 1
	if last < 0 || cap(a.free[last]) < n {
		return make([]byte, n)
	}
	p := a.free[last]
	a.free = a.free[:last]
	return p[:n]
}

func (a *arena) Put(p []byte) { a.free = append(a.free, p) }

// null is a scsi.Backend that does nothing, at once.
type null struct{ memory }

func (n *null) Size() int64                                           { return 1 << 26 }
func (n *null) Read(_ int, _ []byte, _ int64, done func(error))       { done(nil) }
func (n *null) Write(_ int, _ []byte, _ int64, _ bool, d func(error)) { d(nil) }

// newBarePump connects to a server with a null disk on a pumpLane.
func newBarePump(t testing.TB) *pumpSocket {
	t.Helper()
	l := &pumpLane{}
	l.sock = newPumpSocket(l)
	s, err := New(Options{Lanes: []Lane{l}, Buffers: l.sock.buffers})
	if err != nil {
		t.Fatal(err)
	}
	l.pump()
	lu, err := scsi.NewLogicalUnit(&null{}, scsi.UnitOptions{NAA: []byte("\x61lunar-test-0001"), Serial: "1"})
	if err != nil {
		t.Fatal(err)
	}
	target := scsi.NewTarget(testTarget, scsi.TargetOptions{})
	if err := target.Map(0, lu); err != nil {
		t.Fatal(err)
	}
	if err := s.AddTarget(Export{Name: testTarget, Target: target}); err != nil {
		t.Fatal(err)
	}
	l.sock.conn = newConn(s.reactors[0], &portal{server: s}, &net.TCPAddr{}, &net.TCPAddr{})
	fd, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	l.sock.conn.open(fd)
	return l.sock
}

// newPump logs in as well, and returns the next CmdSN.
func newPump(t testing.TB, pairs ...string) (*pumpSocket, uint32) {
	t.Helper()
	s := newBarePump(t)
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	h.SetImmediate()
	keys := append([]string{"InitiatorName", testInitiator, "TargetName", testTarget}, pairs...)
	s.feed((&client{}).encode(&h, text(keys...)))
	h = *scsiHeader(cdb(0), 0, 0)
	for sn := range uint32(3) {
		h.SetCmdSN(sn)
		s.feed((&client{}).encode(&h, nil))
	}
	if s.conn.session == nil {
		t.Fatal("not logged in")
	}
	return s, 3
}

func scsiHeader(cdb []byte, flags byte, edtl int) *pdu.Header {
	h := new(pdu.Header)
	h.Reset(pdu.OpSCSICommand, flags|pdu.FlagFinal|1)
	v := pdu.SCSICommand{Header: h}
	v.SetEDTL(uint32(edtl))
	copy(v.CDB(), cdb)
	return h
}

const benchDepth = 32

// commands encodes a batch of benchDepth commands.
func commandBatch(h *pdu.Header, data []byte) (batch []byte, size int) {
	for i := range uint32(benchDepth) {
		h.SetITT(i)
		batch = append(batch, (&client{}).encode(h, data)...)
	}
	return batch, len(batch) / benchDepth
}

func number32(batch []byte, size int, sn *uint32) {
	for i := range benchDepth {
		be.PutUint32(batch[i*size+24:], *sn)
		*sn++
	}
}

func acknowledge32(batch []byte, size int, exp uint32) {
	for i := range benchDepth {
		be.PutUint32(batch[i*size+28:], exp)
	}
}

func benchCommands(b *testing.B, h *pdu.Header, data []byte, pairs ...string) {
	s, sn := newPump(b, pairs...)
	batch, size := commandBatch(h, data)
	run := func() {
		number32(batch, size, &sn)
		s.feed(batch)
	}
	run()
	run()
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		run()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchDepth, "ns/command")
}

func BenchmarkRead4K(b *testing.B) {
	benchCommands(b, scsiHeader(read10(0, 8), pdu.FlagRead, 4096), nil, "MaxRecvDataSegmentLength", "262144")
}

func BenchmarkRead128K(b *testing.B) {
	benchCommands(b, scsiHeader(read10(0, 256), pdu.FlagRead, 128<<10), nil, "MaxRecvDataSegmentLength", "65536")
}

func BenchmarkWrite4K(b *testing.B) {
	benchCommands(b, scsiHeader(write10(0, 8), pdu.FlagWrite, 4096), make([]byte, 4096))
}

func BenchmarkWrite64K(b *testing.B) {
	benchCommands(b, scsiHeader(write10(0, 128), pdu.FlagWrite, 64<<10), make([]byte, 64<<10))
}

func BenchmarkRead4KDigests(b *testing.B) {
	s := scsiHeader(read10(0, 8), pdu.FlagRead, 4096)
	benchCommands(b, s, nil, "MaxRecvDataSegmentLength", "262144", "DataDigest", "CRC32C")
}

// TestNoAllocation holds the steady state to no allocation per command.
func TestNoAllocation(t *testing.T) {
	for _, c := range []struct {
		name string
		head *pdu.Header
		data []byte
	}{
		{"read", scsiHeader(read10(0, 8), pdu.FlagRead, 4096), nil},
		{"large read", scsiHeader(read10(0, 256), pdu.FlagRead, 128<<10), nil},
		{"write", scsiHeader(write10(0, 8), pdu.FlagWrite, 4096), make([]byte, 4096)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, sn := newPump(t, "MaxRecvDataSegmentLength", "262144")
			s.room = lendSize
			batch, size := commandBatch(c.head, c.data)
			before := s.out
			got := testing.AllocsPerRun(100, func() {
				number32(batch, size, &sn)
				acknowledge32(batch, size, s.conn.tx.statSN)
				s.feed(batch)
			})
			if got > 0 {
				t.Errorf("%v allocations per %d commands", got, benchDepth)
			}
			if s.out-before < 100*benchDepth*pdu.HeaderLen {
				t.Errorf("the target sent %d bytes only", s.out-before)
			}
		})
	}
}
