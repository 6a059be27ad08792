package iscsi

import (
	"errors"
	"testing"
	"time"

	"lunar/iscsi/pdu"
)

// testPages lends up to limit bytes and allocates only what it has not had before.
type testPages struct {
	arena
	limit  int
	out    map[*byte]int
	closed bool
}

var errNoPages = errors.New("no pages")

func newTestPages(limit int) *testPages { return &testPages{limit: limit, out: map[*byte]int{}} }

func (p *testPages) Get(n int) []byte {
	used := 0
	for _, size := range p.out {
		used += size
	}
	if p.closed || used+n > p.limit {
		return nil
	}
	b := p.arena.Get(n)
	p.out[&b[0]] = n
	return b
}

func (p *testPages) Put(b []byte) {
	if _, ok := p.out[&b[0]]; !ok || p.closed {
		panic("a buffer came back that was not out")
	}
	delete(p.out, &b[0])
	p.arena.Put(b)
}

func (p *testPages) Close() error {
	if p.closed {
		panic("closed twice")
	}
	p.closed = true
	return nil
}

// lender is a session whose large reads are lent.
type lender struct {
	*pumpSocket
	sn uint32
}

func newLender(t *testing.T, room int) *lender {
	s, sn := newPump(t, "MaxRecvDataSegmentLength", "262144")
	s.room = room
	return &lender{s, sn}
}

// read sends reads of 128 KiB, with what the initiator says it has.
func (l *lender) read(n int, exp uint32) {
	h := scsiHeader(read10(0, 256), pdu.FlagRead, 128<<10)
	for range n {
		h.SetITT(l.sn)
		h.SetCmdSN(l.sn)
		h.SetExpStatSN(exp)
		l.sn++
		l.feed((&client{}).encode(h, nil))
	}
}

// next is the StatSN of the next response.
func (l *lender) next() uint32 { return l.conn.tx.statSN }

func (l *lender) holds(t *testing.T, when string, lent, copied int) {
	t.Helper()
	if got := len(l.pages.out); got != lent {
		t.Errorf("%s: %d buffers are lent, want %d", when, got, lent)
	}
	if got := len(l.conn.lending.lent); got != lent {
		t.Errorf("%s: %d loans are known, want %d", when, got, lent)
	}
	if l.conn.bytes != 0 || l.conn.lending.taken != 0 {
		t.Errorf("%s: commands still hold %d bytes", when, l.conn.bytes)
	}
	if got := l.buffers.gets; got != copied {
		t.Errorf("%s: %d reads took other buffers, want %d", when, got, copied)
	}
}

// TestLending: a buffer is used anew only after the acknowledgement of the response after its own; without acknowledgements,
// or with one of what was not sent, copies are sent.
func TestLending(t *testing.T) {
	l := newLender(t, 4*128<<10)
	first := l.next()
	l.read(3, first)
	l.holds(t, "three reads", 3, 0)
	l.read(1, first+1)
	l.holds(t, "the first response acknowledged, not the one after it", 4, 0)
	l.read(2, first+1)
	l.holds(t, "no room", 4, 2)
	l.read(1, l.next()+1)
	l.holds(t, "an acknowledgement of what was not sent", 4, 3)
	l.read(1, first+3)
	l.holds(t, "two read", 3, 3)
	l.read(1, first+2)
	l.holds(t, "an old acknowledgement", 4, 3)
	l.read(1, l.next())
	l.holds(t, "all but this one and the one before", 2, 3)
	l.conn.close(errDropped)
	l.lane.pump()
	if !l.pages.closed || l.conn.reactor.server.lent.Load() != 0 {
		t.Error("the pages outlived the connection")
	}
}

// TestLendingEnds: an idle connection gives the memory up, and gets it again.
func TestLendingEnds(t *testing.T) {
	l := newLender(t, lendSize)
	c := l.conn
	l.read(2, l.next())
	old := l.pages
	c.tick(c.reactor.now.Add(c.opts().IdleTime))
	if old.closed {
		t.Fatal("closed too early")
	}
	c.tick(c.reactor.now.Add(c.opts().IdleTime + time.Second))
	if !old.closed || c.reactor.server.lent.Load() != 0 {
		t.Fatal("an idle connection keeps its pages")
	}
	l.read(1, l.next())
	if l.pages == old || len(l.pages.out) != 1 {
		t.Fatal("no pages for a connection that reads again")
	}
}

// TestLendingBound: LendBytes holds for all connections together, and reads go on without.
func TestLendingBound(t *testing.T) {
	l := newLender(t, lendSize)
	s := l.conn.reactor.server
	s.lent.Store(int64(s.opts.LendBytes) - lendSize + 1)
	l.read(1, l.next())
	if l.pages != nil || l.buffers.gets != 1 {
		t.Fatal("more was lent than is allowed")
	}
	s.lent.Store(int64(s.opts.LendBytes) - lendSize)
	l.read(1, l.next())
	l.holds(t, "within the bound", 1, 1)
}

// TestLendingSmall: what is short, or goes out in short segments, is copied, and so is everything on a socket without pages.
func TestLendingSmall(t *testing.T) {
	l := newLender(t, lendSize)
	h := scsiHeader(read10(0, 120), pdu.FlagRead, 60<<10)
	h.SetCmdSN(l.sn)
	l.feed((&client{}).encode(h, nil))
	if l.pages != nil {
		t.Error("60 KiB are lent")
	}
	s, sn := newPump(t, "MaxRecvDataSegmentLength", "8192")
	short := &lender{s, sn}
	short.room = lendSize
	short.read(1, short.next())
	if short.pages != nil {
		t.Error("segments of 8 KiB are lent")
	}
	none := newLender(t, 0)
	none.read(2, none.next())
	if none.buffers.gets != 2 || none.conn.reactor.server.lent.Load() != 0 {
		t.Error("reads without pages took none of the other buffers")
	}
}
