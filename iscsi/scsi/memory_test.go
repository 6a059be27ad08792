package scsi

import (
	"bytes"
	"testing"
)

// memory is a Backend on the heap. With hold set, completions wait until release.
type memory struct {
	data     []byte
	mapped   []bool // per 4 KiB
	fail     error  // of the next calls
	failOps  string // which: r w f u c
	hold     bool
	waiting  []func()
	flushes  int
	fuas     int
	unmapped int64
	unmaps   int
	interfer func() // runs before a CompareAndWrite compares
}

const memoryPage = 4096

func newMemory(blocks int) *memory {
	return &memory{data: make([]byte, blocks*blockSize), mapped: make([]bool, (blocks*blockSize+memoryPage-1)/memoryPage)}
}

func (m *memory) finish(op byte, done func(error)) {
	var err error
	if m.fail != nil && bytes.IndexByte([]byte(m.failOps), op) >= 0 {
		err = m.fail
	}
	if m.hold {
		m.waiting = append(m.waiting, func() { done(err) })
		return
	}
	done(err)
}

// release completes what waits, in order.
func (m *memory) release() {
	for len(m.waiting) > 0 {
		next := m.waiting[0]
		m.waiting = m.waiting[1:]
		next()
	}
}

func (m *memory) failing(op byte) bool {
	return m.fail != nil && bytes.IndexByte([]byte(m.failOps), op) >= 0
}

func (m *memory) check(off, n int64) {
	if off < 0 || n <= 0 || off%blockSize != 0 || n%blockSize != 0 || off+n > int64(len(m.data)) {
		panic("backend called outside its contract")
	}
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) Read(_ int, p []byte, off int64, done func(error)) {
	m.check(off, int64(len(p)))
	copy(p, m.data[off:])
	m.finish('r', done)
}

func (m *memory) Write(_ int, p []byte, off int64, fua bool, done func(error)) {
	m.check(off, int64(len(p)))
	if fua {
		m.fuas++
	}
	if !m.failing('w') {
		m.store(p, off)
	}
	m.finish('w', done)
}

func (m *memory) store(p []byte, off int64) {
	copy(m.data[off:], p)
	for i := off / memoryPage; i*memoryPage < off+int64(len(p)); i++ {
		m.mapped[i] = true
	}
}

func (m *memory) Flush(_ int, done func(error)) {
	m.flushes++
	m.finish('f', done)
}

func (m *memory) Unmap(_ int, off, n int64, done func(error)) {
	m.check(off, n)
	m.unmapped += n
	m.unmaps++
	if !m.failing('u') {
		clear(m.data[off : off+n])
		for i := (off + memoryPage - 1) / memoryPage; (i+1)*memoryPage <= off+n; i++ {
			m.mapped[i] = false
		}
	}
	m.finish('u', done)
}

func (m *memory) CompareAndWrite(_ int, expect, data []byte, off int64, fua bool, done func(int, error)) {
	m.check(off, int64(len(expect)))
	if m.interfer != nil {
		m.interfer()
	}
	if fua {
		m.fuas++
	}
	i := mismatch(m.data[off:off+int64(len(expect))], expect)
	if i < 0 && !m.failing('c') {
		m.store(data, off)
	}
	m.finish('c', func(err error) { done(i, err) })
}

func (m *memory) Mapped(off int64) (bool, int64) {
	page := off / memoryPage
	end := page
	for end < int64(len(m.mapped)) && m.mapped[end] == m.mapped[page] {
		end++
	}
	return m.mapped[page], min(end*memoryPage, int64(len(m.data))) - off
}

func (m *memory) Space() (used, free int64) {
	for _, mapped := range m.mapped {
		if mapped {
			used += memoryPage
		}
	}
	return used, 1 << 40
}

// countingBuffers sees that every buffer comes back.
type countingBuffers struct {
	out       int
	exhausted bool
}

func (b *countingBuffers) Get(n int) []byte {
	if b.exhausted {
		return nil
	}
	if n > MaxData {
		panic("buffer beyond MaxData")
	}
	b.out++
	return make([]byte, n)
}

func (b *countingBuffers) Put([]byte) { b.out-- }

// bench is a target with one unit at LUN 0 and an initiator that has seen its unit attentions.
type testbed struct {
	t       *testing.T
	target  *Target
	unit    *LogicalUnit
	store   *memory
	buffers *countingBuffers
	nexus   *Nexus
}

func testOptions() UnitOptions {
	return UnitOptions{NAA: []byte{0x50, 1, 2, 3, 4, 5, 6, 7}, Serial: "0123456789ABCDEF", Thin: true}
}

func newTestbed(t *testing.T, blocks int, change func(*UnitOptions)) *testbed {
	t.Helper()
	b := &testbed{t: t, store: newMemory(blocks), buffers: &countingBuffers{}}
	opts := testOptions()
	if change != nil {
		change(&opts)
	}
	var err error
	if b.unit, err = NewLogicalUnit(b.store, opts); err != nil {
		t.Fatal(err)
	}
	b.target = NewTarget("iqn.2026-01.org.example:test", TargetOptions{Buffers: b.buffers})
	if err := b.target.Map(0, b.unit); err != nil {
		t.Fatal(err)
	}
	b.nexus = b.login("iqn.2026-01.org.example:host,i,0x800000000001")
	t.Cleanup(func() {
		if b.buffers.out != 0 {
			t.Errorf("%d buffers were not given back", b.buffers.out)
		}
	})
	return b
}

// login makes a nexus and takes its POWER ON unit attention.
func (b *testbed) login(name string) *Nexus {
	b.t.Helper()
	n := b.target.NewNexus(name, 1)
	c := b.run(n, cdb(0x00), nil, 0)
	b.wantSense(c, unitAttention, 0x2900)
	return n
}

func cdb(bytes ...byte) (out [16]byte) {
	copy(out[:], bytes)
	return out
}

// start prepares and executes a command; finished tells whether Done was called.
func (b *testbed) start(n *Nexus, lun uint64, attr TaskAttribute, tag uint32, cdb [16]byte, out []byte, in int) (c *Command, finished *int) {
	finished = new(int)
	c = &Command{CDB: cdb, LUN: lun, Nexus: n, Attr: attr, Tag: tag, Expected: max(len(out), in)}
	c.Done = func(*Command) { *finished++ }
	b.target.Decode(c)
	size := min(c.Length, c.Expected)
	c.Data = make([]byte, size)
	if c.Direction == DataOut {
		copy(c.Data, out)
	}
	b.target.Execute(c)
	return c, finished
}

// run executes a command on LUN 0 to its end; out is its Data-Out, in the room for its Data-In.
func (b *testbed) run(n *Nexus, cdb [16]byte, out []byte, in int) *Command {
	b.t.Helper()
	c, finished := b.start(n, 0, Simple, 1, cdb, out, in)
	if *finished != 1 {
		b.t.Fatalf("% X: Done was called %d times", cdb, *finished)
	}
	return c
}

func (b *testbed) good(cdb [16]byte, out []byte, in int) *Command {
	b.t.Helper()
	c := b.run(b.nexus, cdb, out, in)
	if c.Status != Good {
		b.t.Fatalf("% X: %v, sense % X", cdb, c.Status, c.Sense)
	}
	return c
}

func (b *testbed) bad(cdb [16]byte, out []byte, in int, key senseKey, code uint16) *Command {
	b.t.Helper()
	c := b.run(b.nexus, cdb, out, in)
	b.wantSense(c, key, code)
	return c
}

func (b *testbed) wantSense(c *Command, key senseKey, code uint16) {
	b.t.Helper()
	if c.Status != CheckCondition {
		b.t.Fatalf("% X: %v, want CHECK CONDITION %X %04X", c.CDB, c.Status, key, code)
	}
	gotKey, gotCode := senseOf(c)
	if gotKey != key || gotCode != code {
		b.t.Fatalf("% X: sense %X %04X, want %X %04X", c.CDB, gotKey, gotCode, key, code)
	}
}

func senseOf(c *Command) (senseKey, uint16) {
	if c.Sense[0]&0x7F == 0x72 {
		return senseKey(c.Sense[1]), uint16(be16(c.Sense[2:]))
	}
	return senseKey(c.Sense[2]), uint16(be16(c.Sense[12:]))
}

func read10(lba uint32, count uint16) [16]byte  { return cdb10(0x28, 0, lba, count) }
func write10(lba uint32, count uint16) [16]byte { return cdb10(0x2A, 0, lba, count) }

func cdb10(op, flags byte, lba uint32, count uint16) [16]byte {
	return cdb(op, flags, byte(lba>>24), byte(lba>>16), byte(lba>>8), byte(lba), 0, byte(count>>8), byte(count))
}

func cdb16(op, flags byte, lba uint64, count uint32) [16]byte {
	return cdb(op, flags, byte(lba>>56), byte(lba>>48), byte(lba>>40), byte(lba>>32), byte(lba>>24), byte(lba>>16), byte(lba>>8), byte(lba),
		byte(count>>24), byte(count>>16), byte(count>>8), byte(count))
}

func fill(blocks int, v byte) []byte { return bytes.Repeat([]byte{v}, blocks*blockSize) }
