package scsi

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
)

// copyBuilder makes parameter lists of EXTENDED COPY(LID1).
type copyBuilder struct {
	id, usage         byte
	targets, segments []byte
}

func (l *copyBuilder) target(naa []byte) *copyBuilder {
	d := make([]byte, copyTargetLength)
	d[0], d[4], d[5], d[7] = copyTargetIdentification, codeBinary, designatorNAA, byte(len(naa))
	copy(d[8:], naa)
	d[30] = blockSize >> 8
	l.targets = append(l.targets, d...)
	return l
}

func (l *copyBuilder) blocks(src, dst, count int, from, to uint64) *copyBuilder {
	d := make([]byte, copySegmentBlocksLength)
	d[0], d[3], d[5], d[7] = copySegmentBlocks, copySegmentBlocksLength-4, byte(src), byte(dst)
	binary.BigEndian.PutUint16(d[10:], uint16(count))
	binary.BigEndian.PutUint64(d[12:], from)
	binary.BigEndian.PutUint64(d[20:], to)
	l.segments = append(l.segments, d...)
	return l
}

func (l *copyBuilder) offset(src, dst int, n uint32, from, to uint64, fromByte, toByte uint16) *copyBuilder {
	d := make([]byte, copySegmentOffsetLength)
	d[0], d[3], d[5], d[7] = copySegmentOffset, copySegmentOffsetLength-4, byte(src), byte(dst)
	binary.BigEndian.PutUint32(d[8:], n)
	binary.BigEndian.PutUint64(d[12:], from)
	binary.BigEndian.PutUint64(d[20:], to)
	binary.BigEndian.PutUint16(d[28:], fromByte)
	binary.BigEndian.PutUint16(d[30:], toByte)
	l.segments = append(l.segments, d...)
	return l
}

func (l *copyBuilder) list() []byte {
	p := make([]byte, copyHeaderLength, copyHeaderLength+len(l.targets)+len(l.segments))
	p[0], p[1] = l.id, l.usage<<3
	binary.BigEndian.PutUint16(p[2:], uint16(len(l.targets)))
	binary.BigEndian.PutUint32(p[8:], uint32(len(l.segments)))
	return slices.Concat(p, l.targets, l.segments)
}

func copyCDB(length int) [16]byte {
	c := cdb(opThirdPartyCopyOut)
	binary.BigEndian.PutUint32(c[10:], uint32(length))
	return c
}

func (b *testbed) copy(n *Nexus, list []byte) *Command {
	b.t.Helper()
	return b.run(n, copyCDB(len(list)), list, 0)
}

func (b *testbed) copyResults(action, id byte) *Command {
	return b.run(b.nexus, cdb(opThirdPartyCopyIn, action, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4), nil, 1024)
}

func (b *testbed) naa() []byte { return b.unit.opts.NAA }

func (b *testbed) fill() {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b.store.data {
		b.store.data[i] = byte(r.Uint32())
	}
	for i := range b.store.mapped {
		b.store.mapped[i] = true
	}
}

func TestExtendedCopyWithinUnit(t *testing.T) {
	b := newTestbed(t, 8192, nil)
	b.fill()
	want := bytes.Clone(b.store.data)
	copy(want[6000*512:], want[:2047*512])
	copy(want[5000*512:5003*512], want[1*512:4*512])
	list := (&copyBuilder{usage: listDiscard}).target(b.naa()).blocks(0, 0, 2047, 0, 6000).blocks(0, 0, 0, 0, 0).offset(0, 0, 3*512, 0, 4999, 512, 512).list()
	b.wantStatus(b.copy(b.nexus, list), Good)
	if !bytes.Equal(b.store.data, want) {
		t.Fatal("not copied")
	}
}

// secondUnit maps another unit at LUN 1, or gives it to the resolver.
func (b *testbed) secondUnit(blocks int, mapped bool) (*LogicalUnit, *memory) {
	m := newMemory(blocks)
	opts := testOptions()
	opts.NAA = []byte{0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	lu, err := NewLogicalUnit(m, opts)
	if err != nil {
		b.t.Fatal(err)
	}
	if !mapped {
		b.target.opts.Units = oneUnit{lu}
		return lu, m
	}
	if err := b.target.Map(1, lu); err != nil {
		b.t.Fatal(err)
	}
	b.run(b.nexus, cdb(0x00), nil, 0) // REPORTED LUNS DATA HAS CHANGED
	return lu, m
}

type oneUnit struct{ lu *LogicalUnit }

func (o oneUnit) UnitByNAA(initiator string, naa []byte) *LogicalUnit {
	if initiator != "" && bytes.Equal(naa, o.lu.opts.NAA) {
		return o.lu
	}
	return nil
}

// Between two units; holes of the source stay holes.
func TestExtendedCopyBetweenUnits(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		b := newTestbed(t, 8192, nil)
		b.fill()
		b.store.Unmap(0, 1<<20, 1<<20, func(error) {})
		lu, other := b.secondUnit(8192, mapped)
		other.store(bytes.Repeat([]byte{1}, 4<<20), 0)
		list := (&copyBuilder{}).target(b.naa()).target(lu.opts.NAA).blocks(0, 1, 8192, 0, 0).list()
		b.wantStatus(b.copy(b.nexus, list), Good)
		if !bytes.Equal(other.data, b.store.data) || other.unmapped != 1<<20 {
			t.Fatalf("mapped %v: not copied, or %d bytes unmapped", mapped, other.unmapped)
		}
	}
}

// reflinking is a backend with Copier.
type reflinking struct {
	*memory
	err    error
	copied int64
}

func (r *reflinking) CopyFrom(_ int, src any, srcOff, dstOff, n int64, done func(error)) {
	if r.err == nil {
		r.copied += n
		r.store(src.(*reflinking).data[srcOff:srcOff+n], dstOff)
	}
	r.finish('x', func(error) { done(r.err) })
}

func TestExtendedCopyOffload(t *testing.T) {
	for err, want := range map[error]struct {
		status Status
		copied int64
	}{nil: {Good, 2 << 20}, syscall.EXDEV: {Good, 0}, syscall.EIO: {CheckCondition, 0}} {
		b := newTestbed(t, 8192, nil)
		b.fill()
		r := &reflinking{memory: b.store, err: err}
		b.unit.backend = r
		list := (&copyBuilder{}).target(b.naa()).blocks(0, 0, 4096, 0, 4096).list()
		b.wantStatus(b.copy(b.nexus, list), want.status)
		if r.copied != want.copied || want.status == Good && !bytes.Equal(b.store.data[:2<<20], b.store.data[2<<20:]) {
			t.Fatalf("%v: %d bytes offloaded", err, r.copied)
		}
	}
}

func TestExtendedCopyRefused(t *testing.T) {
	b := newTestbed(t, 4096, nil)
	simple := func() *copyBuilder { return (&copyBuilder{id: 1}).target(b.naa()).blocks(0, 0, 8, 0, 64) }
	many := func(targets, segments int) []byte {
		l := &copyBuilder{}
		for range targets {
			l.target(b.naa())
		}
		for range segments {
			l.blocks(0, 0, 1, 0, 64)
		}
		return l.list()
	}
	edit := func(at int, v byte) []byte {
		p := simple().list()
		p[at] = v
		return p
	}
	for _, e := range []struct {
		what string
		list []byte
		key  senseKey
		code uint16
	}{
		{"short header", make([]byte, 15), illegalRequest, 0x1A00},
		{"cut in a CSCD descriptor", simple().list()[:47], illegalRequest, 0x1A00},
		{"cut in a segment descriptor", simple().list()[:75], illegalRequest, 0x1A00},
		{"too many targets", many(maxCopyTargets+1, 1), illegalRequest, 0x2606},
		{"too many segments", many(1, maxCopySegments+1), illegalRequest, 0x2608},
		{"descriptor lists too long", many(maxCopyTargets+1, 73), illegalRequest, 0x1A00},
		{"target type", edit(16, 0xE0), illegalRequest, 0x2607},
		{"segment type", edit(48, 3), illegalRequest, 0x2609},
		{"segment length", edit(51, 9), illegalRequest, 0x2600},
		{"list usage", edit(1, 1<<3), illegalRequest, 0x2600},
		{"no list but an identifier", edit(1, 3<<3), illegalRequest, 0x2600},
		{"block length", edit(46, 8), illegalRequest, 0x2600},
		{"inline data", append(edit(15, 4), 0, 0, 0, 0), illegalRequest, 0x260B},
		{"device type", edit(17, 1), copyAborted, 0x0D03},
		{"unknown designator", edit(24, 0x51), copyAborted, 0x0D02},
		{"target index", simple().blocks(0, 1, 8, 0, 64).list(), copyAborted, 0x0D02},
		{"source beyond the end", simple().blocks(0, 0, 8, 4090, 0).list(), copyAborted, 0x0000},
		{"destination beyond the end", simple().blocks(0, 0, 8, 0, 4095).list(), copyAborted, 0x0000},
		{"LBA beyond 2^63", simple().blocks(0, 0, 8, 1<<63, 1<<63).list(), copyAborted, 0x0000},
		{"part of a block", simple().offset(0, 0, 100, 0, 8, 0, 0).list(), copyAborted, 0x260A},
	} {
		t.Run(e.what, func(t *testing.T) {
			b.t = t
			b.wantSense(b.copy(b.nexus, e.list), e.key, e.code)
		})
	}
	b.wantStatus(b.copy(b.nexus, nil), Good)
	b.wantStatus(b.copy(b.nexus, edit(17, 0xC0)), Good) // LU ID TYPE is ignored
}

// The copy manager is refused where the initiator would be.
func TestExtendedCopyObeysUnits(t *testing.T) {
	b := newTestbed(t, 4096, nil)
	lu, _ := b.secondUnit(4096, true)
	out := (&copyBuilder{}).target(b.naa()).target(lu.opts.NAA).blocks(0, 1, 8, 0, 0).list()
	in := (&copyBuilder{}).target(b.naa()).target(lu.opts.NAA).blocks(1, 0, 8, 0, 0).list()
	other := nexusID{hostTwo, b.target.name, 1}
	s, _ := orders(t, &reservations{}, register(other, keyB), reserve(other, keyB, writeExclusive))
	lu.reservations.state.Store(s)
	b.wantSense(b.copy(b.nexus, out), copyAborted, 0x0D01)
	b.wantStatus(b.copy(b.nexus, in), Good)
	lu.reservations.state.Store(nil)
	lu.opts.ReadOnly = true
	b.wantSense(b.copy(b.nexus, out), copyAborted, 0x2700)
	b.wantStatus(b.copy(b.nexus, in), Good)
	lu.opts.ReadOnly = false
	b.fill()
	b.store.fail, b.store.failOps = syscall.ENOSPC, "wu"
	b.wantSense(b.copy(b.nexus, in), dataProtect, 0x2707)
	b.store.failOps = "r"
	b.wantSense(b.copy(b.nexus, out), copyAborted, 0x0D01)
	b.store.fail = nil
	b.buffers.exhausted = true
	b.wantStatus(b.copy(b.nexus, out), Busy)
}

func TestReceiveCopyResults(t *testing.T) {
	b := newTestbed(t, 8192, nil)
	b.wantSense(b.copyResults(actionCopyStatus, 1), illegalRequest, 0x2400)
	hold := (&copyBuilder{id: 1}).target(b.naa()).blocks(0, 0, 2048, 0, 4096).list()
	b.wantStatus(b.copy(b.nexus, hold), Good)
	c := b.copyResults(actionCopyStatus, 1)
	if want := []byte{0, 0, 0, 8, 1, 0, 1, 0, 0, 0x10, 0, 0}; !bytes.Equal(c.Data[:c.Count], want) {
		t.Fatalf("status % X", c.Data[:c.Count])
	}
	b.wantSense(b.copyResults(actionCopyStatus, 1), illegalRequest, 0x2400)
	b.wantSense(b.copyResults(actionFailedSegment, 1), illegalRequest, 0x2400)

	b.wantSense(b.copy(b.nexus, (&copyBuilder{id: 2}).target(b.naa()).blocks(0, 0, 1, 0, 1).blocks(0, 7, 1, 0, 0).list()), copyAborted, 0x0D02)
	if c = b.copyResults(actionCopyStatus, 2); c.Data[4] != 2 || be16(c.Data[5:]) != 1 || be32(c.Data[8:]) != 512 {
		t.Fatalf("status of a failed copy % X", c.Data[:c.Count])
	}
	c = b.copyResults(actionFailedSegment, 2)
	if c.Count != 78 || int(be32(c.Data)) != c.Count-4 || c.Data[56] != 2 || be16(c.Data[58:]) != 18 || c.Data[62] != byte(copyAborted) {
		t.Fatalf("failure details % X", c.Data[:c.Count])
	}
	b.wantSense(b.copyResults(actionFailedSegment, 2), illegalRequest, 0x2400)

	discard := (&copyBuilder{id: 3, usage: listDiscard}).target(b.naa()).blocks(0, 0, 1, 0, 1).list()
	b.wantStatus(b.copy(b.nexus, discard), Good)
	b.wantSense(b.copyResults(actionCopyStatus, 3), illegalRequest, 0x2400)

	c = b.copyResults(actionOperatingParameters, 0)
	want := []byte{0, 0, 0, 43, 1, 0, 0, 0, 0, maxCopyTargets, 0, maxCopySegments, 0, 0, 0x0A, 0, 0x10, 0, 0, 0}
	if !bytes.Equal(c.Data[:20], want) || !bytes.Equal(c.Data[43:c.Count], []byte{3, 2, 0x0A, 0xE4}) {
		t.Fatalf("operating parameters % X", c.Data[:c.Count])
	}
}

// A copy under way: its status, its identifier is taken, and an abort ends it between two chunks.
func TestExtendedCopyInProgress(t *testing.T) {
	b := newTestbed(t, 16384, nil)
	b.fill()
	b.store.hold = true
	list := (&copyBuilder{id: 9}).target(b.naa()).blocks(0, 0, 8192, 0, 8192).list()
	c, finished := b.start(b.nexus, 0, Simple, 77, copyCDB(len(list)), list, 0)
	if s := b.copyResults(actionCopyStatus, 9); s.Data[4] != 0 {
		t.Fatalf("status % X", s.Data[:s.Count])
	}
	b.wantSense(b.copy(b.nexus, list), illegalRequest, 0x0016)
	done := 0
	b.target.AbortTask(b.nexus, 0, 0, 77, func(ManagementResponse) { done++ })
	if done != 0 {
		t.Fatal("ABORT TASK did not wait for the backend")
	}
	b.store.release()
	if *finished != 1 || done != 1 || c.Status != TaskAborted {
		t.Fatalf("finished %d, abort done %d, %v", *finished, done, c.Status)
	}
	if bytes.Equal(b.store.data[:4<<20], b.store.data[4<<20:]) {
		t.Fatal("the copy went on after its abort")
	}
	if s := b.copyResults(actionCopyStatus, 9); s.Data[4] != 2 {
		t.Fatalf("status % X", s.Data[:s.Count])
	}
	if b.nexus.local(0).copies.running != 0 {
		t.Fatal("still counted as running")
	}
}

func TestThirdPartyCopyPage(t *testing.T) {
	b := newTestbed(t, 64, nil)
	c := b.good(cdb(0x12, 1, 0x8F, 1, 0), nil, 256)
	p := c.Data[4:c.Count]
	if len(p) != be16(c.Data[2:]) {
		t.Fatalf("page length %d of %d", be16(c.Data[2:]), len(p))
	}
	var kinds []int
	for len(p) > 0 {
		kinds = append(kinds, be16(p))
		p = p[4+be16(p[2:]):]
	}
	if len(kinds) != 5 || kinds[0] != 1 || kinds[4] != 0x8001 {
		t.Fatalf("descriptors %v", kinds)
	}
}
