package scsi

import (
	"bytes"
	"slices"
	"testing"
)

func TestInquiry(t *testing.T) {
	b := newTestbed(t, 64, nil)
	c := b.good(cdb(0x12, 0, 0, 0x02, 0), nil, 512)
	if c.Count < 74 || c.Data[0] != 0 || c.Data[2] != 6 || c.Data[3]&0x0F != 2 || int(c.Data[4]) != c.Count-5 {
		t.Errorf("% X", c.Data[:c.Count])
	}
	if got := string(c.Data[8:36]); got != "LUNAR   Virtual Disk    1   " {
		t.Errorf("identification %q", got)
	}
	for n := range 80 {
		c := b.good(cdb(0x12, 0, 0, 0, byte(n)), nil, n)
		if c.Count != min(n, 74) || c.Residual(n) != min(n, 74)-n {
			t.Fatalf("allocation length %d: count %d, residual %d", n, c.Count, c.Residual(n))
		}
	}
	b.bad(cdb(0x12, 0, 0x80, 0, 255), nil, 255, illegalRequest, 0x2400)
	b.bad(cdb(0x12, 1, 0x89, 0, 255), nil, 255, illegalRequest, 0x2400)
	b.bad(cdb(0x12, 2, 0, 0, 255), nil, 255, illegalRequest, 0x2400)
}

// page reads a VPD page and checks its header.
func (b *testbed) page(code byte) []byte {
	b.t.Helper()
	c := b.good(cdb(0x12, 1, code, 4, 0), nil, 1024)
	if c.Data[1] != code || be16(c.Data[2:]) != c.Count-4 {
		b.t.Fatalf("page %02X: header % X, %d bytes", code, c.Data[:4], c.Count)
	}
	return c.Data[:c.Count]
}

func TestVitalProductData(t *testing.T) {
	b := newTestbed(t, 64, nil)
	codes := b.page(0)[4:]
	if !slices.Equal(codes, []byte{0, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2}) {
		t.Errorf("supported pages % X", codes)
	}
	for _, code := range codes {
		b.page(code)
	}
	if got := string(b.page(0x80)[4:]); got != "0123456789ABCDEF" {
		t.Errorf("serial %q", got)
	}
	if !bytes.Contains(b.page(0x83), []byte{1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7}) {
		t.Error("page 83h lacks the NAA name")
	}
	limits := b.page(0xB0)
	if len(limits) != 64 || limits[5] != 255 || be32(limits[8:]) != 2048 || be32(limits[20:]) != 1<<20 || be32(limits[24:]) != 256 ||
		be32(limits[28:]) != 8 || be32(limits[32:]) != 0x80000000 || be64(limits[36:]) != maxWriteSameBlocks || limits[4] != 1 {
		t.Errorf("block limits % X", limits)
	}
	if p := b.page(0xB2); p[5] != 0xE4 || p[6] != 2 {
		t.Errorf("provisioning % X", p)
	}
	thick := newTestbed(t, 64, func(o *UnitOptions) { o.Thin = false })
	if p := thick.page(0xB2); !allZero(p[4:]) {
		t.Errorf("provisioning of a thick unit % X", p)
	}
	thick.bad(cdb10(0x42, 0, 0, 0), nil, 0, illegalRequest, 0x2000)
}

func TestNoLogicalUnit(t *testing.T) {
	b := newTestbed(t, 64, nil)
	on := func(lun uint64, x [16]byte) *Command {
		c, done := b.start(b.nexus, lun, Simple, 1, x, nil, 255)
		if *done != 1 {
			t.Fatal("not done")
		}
		return c
	}
	for _, lun := range []uint64{EncodeLUN(1), EncodeLUN(300), 1, 0xC1FF << 48, 2 << 62} {
		b.wantSense(on(lun, cdb(0x00)), illegalRequest, 0x2500)
		if c := on(lun, cdb(0x12, 0, 0, 0, 255)); c.Status != Good || c.Data[0] != 0x7F {
			t.Errorf("INQUIRY: %v % X", c.Status, c.Data[:1])
		}
		if c := on(lun, cdb(0x03, 0, 0, 0, 255)); c.Status != Good || c.Data[12] != 0x25 {
			t.Errorf("REQUEST SENSE: %v % X", c.Status, c.Data[:18])
		}
	}
	if c := on(reportLUNsWellKnown, cdb(0x12, 0, 0, 0, 255)); c.Data[0] != 0x1E {
		t.Errorf("well-known unit is % X", c.Data[:1])
	}
	if c := on(reportLUNsWellKnown, cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 255)); c.Status != Good || c.Count != 16 {
		t.Errorf("REPORT LUNS by the well-known unit: %v", c.Status)
	}
}

func TestReportLUNs(t *testing.T) {
	b := newTestbed(t, 64, nil)
	for _, lun := range []uint16{300, 7, MaxLUN} {
		lu, err := NewLogicalUnit(newMemory(8), testOptions())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.target.Map(lun, lu); err != nil {
			t.Fatal(err)
		}
	}
	c := b.good(cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0), nil, 256)
	want := []byte{
		0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0,
		0x41, 0x2C, 0, 0, 0, 0, 0, 0, 0x7F, 0xFF, 0, 0, 0, 0, 0, 0,
	}
	if !bytes.Equal(c.Data[:c.Count], want) {
		t.Errorf("% X", c.Data[:c.Count])
	}
	if c := b.good(cdb(0xA0, 0, 2, 0, 0, 0, 0, 0, 1, 0), nil, 256); c.Count != 48 || c.Data[8] != 0xC1 {
		t.Errorf("all: % X", c.Data[:c.Count])
	}
	if c := b.good(cdb(0xA0, 0, 1, 0, 0, 0, 0, 0, 1, 0), nil, 256); c.Count != 16 {
		t.Errorf("well-known: % X", c.Data[:c.Count])
	}
	b.bad(cdb(0xA0, 0, 3, 0, 0, 0, 0, 0, 1, 0), nil, 256, illegalRequest, 0x2400)
	d, _ := b.start(b.nexus, EncodeLUN(300), Simple, 1, cdb(0x00), nil, 0)
	b.wantSense(d, unitAttention, 0x2900)
	d, _ = b.start(b.nexus, EncodeLUN(300), Simple, 1, cdb(0x00), nil, 0)
	if d.Status != Good {
		t.Errorf("LUN 300: %v", d.Status)
	}
}

func TestReadCapacity(t *testing.T) {
	b := newTestbed(t, 64, nil)
	c := b.good(cdb(0x25), nil, 8)
	if be32(c.Data) != 63 || be32(c.Data[4:]) != 512 {
		t.Errorf("% X", c.Data)
	}
	c = b.good(cdb16(0x9E, 0x10, 0, 32), nil, 32)
	if be64(c.Data) != 63 || be32(c.Data[8:]) != 512 || c.Data[13] != 3 || c.Data[14] != 0xC0 {
		t.Errorf("% X", c.Data)
	}
	for n := range uint32(16) {
		b.good(cdb16(0x9E, 0x10, 0, n), nil, int(n))
	}
	b.bad(cdb(0x25, 0, 0, 0, 0, 1), nil, 8, illegalRequest, 0x2400)
	b.unit.backend = &nullBackend{size: 3 << 40}
	b.unit.CapacityChanged()
	b.bad(cdb(0x25), nil, 8, unitAttention, 0x2A09)
	if c := b.good(cdb(0x25), nil, 8); be32(c.Data) != 0xFFFFFFFF {
		t.Errorf("READ CAPACITY(10) of 3 TiB: % X", c.Data)
	}
}

func TestUnknownCommands(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.bad(cdb(0xFF), nil, 0, illegalRequest, 0x2000)
	b.bad(cdb(0x02), nil, 0, illegalRequest, 0x2000)
	c := b.bad(cdb(0x9E, 0x1F), nil, 0, illegalRequest, 0x2400)
	if c.Sense[15] != 0xCC || c.Sense[17] != 1 {
		t.Errorf("field pointer % X", c.Sense[15:18])
	}
	b.bad(cdb(0x00, 0, 0, 0, 0, 0x08), nil, 0, illegalRequest, 0x2400)
	d, _ := b.start(b.nexus, 0, ACA, 1, cdb(0x00), nil, 0)
	b.wantSense(d, illegalRequest, 0x2400)
	b.bad(cdb(0x00, 0, 0, 0, 0, 0x04), nil, 0, illegalRequest, 0x2400) // NACA
}

func TestSupportedOperationCodes(t *testing.T) {
	b := newTestbed(t, 64, nil)
	report := func(option, opcode byte, action uint16) [16]byte {
		return cdb(0xA3, 0x0C, option, opcode, byte(action>>8), byte(action), 0, 0, 0xFF, 0xFF)
	}
	all := b.good(report(0, 0, 0), nil, 65535)
	if int(be32(all.Data)) != all.Count-4 || all.Count != 4+8*len(commands.rows) {
		t.Fatalf("%d bytes for %d commands", all.Count, len(commands.rows))
	}
	for d := all.Data[4:all.Count]; len(d) > 0; d = d[8:] {
		option, other := byte(1), byte(2)
		if d[5]&1 != 0 {
			option, other = 2, 1
		}
		one := b.good(report(option, d[0], uint16(be16(d[2:]))), nil, 65535)
		if one.Data[1] != 3 || be16(one.Data[2:]) != be16(d[6:]) || one.Data[4] != d[0] {
			t.Errorf("opcode %02X: % X", d[0], one.Data[:one.Count])
		}
		b.bad(report(other, d[0], uint16(be16(d[2:]))), nil, 65535, illegalRequest, 0x2400)
		b.good(report(3, d[0], uint16(be16(d[2:]))), nil, 65535)
	}
	timed := b.good(report(0x80, 0, 0), nil, 65535)
	if timed.Count != 4+20*len(commands.rows) || timed.Data[4+5]&2 == 0 || timed.Data[4+9] != 0x0A {
		t.Errorf("with timeouts: % X", timed.Data[:24])
	}
	if one := b.good(report(0x81, 0x28, 0), nil, 64); one.Data[1] != 0x83 || one.Count != 14+12 || one.Data[5] != 0x1A {
		t.Errorf("READ(10): % X", one.Data[:one.Count])
	}
	if none := b.good(report(1, 0xFE, 0), nil, 64); none.Data[1] != 1 {
		t.Errorf("unsupported: % X", none.Data[:none.Count])
	}
	b.bad(report(4, 0, 0), nil, 64, illegalRequest, 0x2400)
	if c := b.good(cdb(0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16), nil, 16); c.Count != 4 || c.Data[0] != 0xDA {
		t.Errorf("task management: % X", c.Data[:c.Count])
	}
}

func TestUnmapAndLBAStatus(t *testing.T) {
	b := newTestbed(t, 4096, nil)
	b.good(write10(0, 1024), fill(1024, 1), 0)
	list := func(ranges ...uint64) []byte {
		p := []byte{0, 0, byte(len(ranges) * 8 >> 8), byte(len(ranges) * 8), 0, 0, 0, 0}
		for i := 0; i < len(ranges); i += 2 {
			x := cdb16(0, 0, ranges[i], uint32(ranges[i+1]))
			p = append(append(p, x[2:14]...), 0, 0, 0, 0)
		}
		return p
	}
	unmap := func(p []byte) [16]byte { return cdb10(0x42, 0, 0, uint16(len(p))) }
	p := list(8, 8, 0, 0, 100, 1, 32, 16)
	b.good(unmap(p), p, 0)
	for lba, want := range map[int]byte{0: 1, 7: 1, 8: 0, 15: 0, 16: 1, 99: 1, 100: 0, 101: 1, 32: 0, 47: 0, 48: 1} {
		if b.store.data[lba*blockSize] != want {
			t.Errorf("block %d: %d", lba, b.store.data[lba*blockSize])
		}
	}
	status := func(lba uint64, n uint32) [16]byte { return cdb16(0x9E, 0x12, lba, n) }
	c := b.good(status(4, 8+16*3), nil, 8+16*3)
	want := []byte{
		0, 0, 0, 52, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0,
	}
	if !bytes.Equal(c.Data[:c.Count], want) {
		t.Errorf("% X", c.Data[:c.Count])
	}
	b.good(status(4095, 24), nil, 24)
	b.good(status(0, 0), nil, 0)
	b.bad(status(4096, 24), nil, 24, illegalRequest, 0x2100)
	b.bad(status(1<<63, 24), nil, 24, illegalRequest, 0x2100)

	b.good(cdb10(0x42, 0, 0, 0), nil, 0)
	for _, good := range [][]byte{list(), list(4096, 0)} {
		b.good(unmap(good), good, 0)
	}
	before := b.store.unmapped
	for _, x := range []struct {
		list []byte
		code uint16
	}{
		{[]byte{0, 0, 0}, 0x1A00},
		{list(0, 1)[:20], 0x1A00},
		{list(0, 1, 4096, 1), 0x2100},
		{list(0, 1, 1<<63, 1<<31), 0x2600},
		{list(0, maxUnmapBlocks+1), 0x2600},
		{list(make([]uint64, 2*(maxUnmapDescriptors+1))...), 0x2600},
	} {
		b.bad(unmap(x.list), x.list, 0, illegalRequest, x.code)
	}
	b.bad(cdb10(0x42, 1, 0, 0), nil, 0, illegalRequest, 0x2400)
	if b.store.unmapped != before {
		t.Error("a bad list unmapped something")
	}
	b.store.unmaps = 0
	p = list(8, 1, 9, 1, 10, 0, 10, 6, 0, 8, 64, 8)
	b.good(unmap(p), p, 0)
	if b.store.unmaps != 3 || b.store.unmapped-before != 24*blockSize {
		t.Errorf("%d unmaps of %d bytes, want 3 of 24 blocks", b.store.unmaps, b.store.unmapped-before)
	}
}

func TestModePages(t *testing.T) {
	b := newTestbed(t, 64, nil)
	sense6 := func(page, sub byte) [16]byte { return cdb(0x1A, 0, page, sub, 255) }
	all := b.good(sense6(0x3F, 0), nil, 255)
	if int(all.Data[0]) != all.Count-1 || all.Data[2] != 0x10 || all.Data[3] != 8 {
		t.Errorf("header % X", all.Data[:4])
	}
	long := b.good(cdb(0x5A, 0x10, 0x3F, 0xFF, 0, 0, 0, 4, 0), nil, 1024)
	if be16(long.Data) != long.Count-2 || be16(long.Data[6:]) != 16 || long.Data[4] != 1 || be64(long.Data[8:]) != 64 {
		t.Errorf("header % X", long.Data[:24])
	}
	caching := b.good(sense6(0x08, 0), nil, 255)
	if caching.Data[12] != 0x08 || caching.Data[14] != 0x04 {
		t.Errorf("caching page % X", caching.Data[12:caching.Count])
	}
	change := b.good(sense6(0x40|0x0A, 0), nil, 255)
	if change.Data[14] != 0x04 || change.Data[16] != 0x08 || change.Data[17] != 0x40 {
		t.Errorf("changeable control page % X", change.Data[12:change.Count])
	}
	b.bad(sense6(0xC0|0x08, 0), nil, 255, illegalRequest, 0x3900)
	b.bad(sense6(0x07, 0), nil, 255, illegalRequest, 0x2400)
	b.bad(sense6(0x08, 1), nil, 255, illegalRequest, 0x2400)
	if c := b.good(cdb(0x1A, 0x08, 0x08, 0, 255), nil, 255); c.Data[3] != 0 || c.Count != 4+20 {
		t.Errorf("DBD: % X", c.Data[:c.Count])
	}
}

// selectList is a MODE SELECT(6) parameter list of one page.
func selectList(page ...byte) []byte { return append([]byte{0, 0, 0, 0}, page...) }

func (b *testbed) modeSelect(n *Nexus, list []byte) *Command {
	return b.run(n, cdb(0x15, 0x10, 0, 0, byte(len(list))), list, 0)
}

func control(flags2, flags4, flags5 byte) []byte {
	return selectList(0x0A, 0x0A, 0x02|flags2, 0x10, flags4, flags5, 0, 0, 0xFF, 0xFF, 0, 0)
}

func caching(flags byte) []byte { return append(selectList(0x08, 0x12, flags), make([]byte, 17)...) }

func TestModeSelect(t *testing.T) {
	b := newTestbed(t, 64, nil)
	other := b.login("other")
	if c := b.modeSelect(b.nexus, control(0x04, 0, 0)); c.Status != Good {
		t.Fatalf("%v % X", c.Status, c.Sense)
	}
	c := b.run(other, cdb(0x00), nil, 0)
	b.wantSense(c, unitAttention, 0x2A01)
	if c.Sense[0] != 0x72 {
		t.Errorf("D_SENSE 1, sense % X", c.Sense)
	}
	b.good(cdb(0x00), nil, 0) // whoever changed it is not told
	d := b.bad(read10(64, 1), nil, blockSize, illegalRequest, 0x2100)
	if len(d.Sense) != 20 || be64(d.Sense[12:]) != 64 {
		t.Errorf("descriptor sense % X", d.Sense)
	}
	b.modeSelect(b.nexus, control(0, 0x08, 0))
	b.bad(write10(0, 1), fill(1, 1), 0, dataProtect, 0x2702)
	if c := b.good(cdb(0x1A, 0, 0x3F, 0, 255), nil, 255); c.Data[2] != 0x90 {
		t.Errorf("WP: % X", c.Data[:4])
	}
	b.modeSelect(b.nexus, control(0, 0, 0))
	b.good(write10(0, 1), fill(1, 1), 0)
}

func TestModeSelectWriteCache(t *testing.T) {
	b := newTestbed(t, 64, nil)
	if c := b.modeSelect(b.nexus, caching(0)); c.Status != Good || b.store.flushes != 1 {
		t.Fatalf("%v, %d flushes", c.Status, b.store.flushes)
	}
	b.good(write10(0, 1), fill(1, 1), 0)
	if b.store.fuas != 1 {
		t.Error("WCE 0: a write was not durable")
	}
}

func TestModeSelectRefuses(t *testing.T) {
	b := newTestbed(t, 64, nil)
	descriptor := func(blocks byte, length uint16) []byte {
		return append([]byte{0, 0, 0, 8, 0, 0, 0, blocks, 0, 0, byte(length >> 8), byte(length)}, caching(4)[4:]...)
	}
	b.modeSelect(b.nexus, descriptor(64, 512))
	b.modeSelect(b.nexus, descriptor(0, 512))
	for _, x := range []struct {
		list []byte
		code uint16
	}{
		{selectList()[:3], 0x1A00},
		{descriptor(63, 512), 0x2600},
		{descriptor(64, 4096), 0x2600},
		{[]byte{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0}, 0x2600},
		{[]byte{0, 0, 0, 8, 0}, 0x1A00},
		{caching(4)[:10], 0x1A00},
		{selectList(0x08), 0x1A00},
		{append(selectList(0x08, 0x11), make([]byte, 17)...), 0x2600},
		{caching(0x05), 0x2600},
		{control(0x20, 0, 0), 0x2600},
		{selectList(0x3E, 0), 0x2600},
		{append(control(4, 0, 0), caching(1)[4:]...), 0x2600},
	} {
		b.wantSense(b.modeSelect(b.nexus, x.list), illegalRequest, x.code)
	}
	if *b.unit.modes.Load() != *defaultModes(&b.unit.opts) {
		t.Error("a refused list changed something")
	}
	b.bad(cdb(0x15, 0x11, 0, 0, 24), caching(4), 0, illegalRequest, 0x2400)
	b.bad(cdb(0x15, 0x00, 0, 0, 24), caching(4), 0, illegalRequest, 0x2400)
	b.bad(cdb(0x15, 0x10, 0, 0, 25), caching(4), 0, illegalRequest, 0x1A00)
}

func TestLogPages(t *testing.T) {
	b := newTestbed(t, 8192, nil)
	b.good(write10(0, 2048), fill(2048, 1), 0)
	logSense := func(page, sub byte) [16]byte { return cdb(0x4D, 0, 0x40|page, sub, 0, 0, 0, 1, 0) }
	if c := b.good(logSense(0, 0), nil, 256); !bytes.Equal(c.Data[:c.Count], []byte{0, 0, 0, 2, 0, 0x0C}) {
		t.Errorf("% X", c.Data[:c.Count])
	}
	c := b.good(logSense(0x0C, 0), nil, 256)
	if c.Count != 28 || be32(c.Data[8:]) != 1<<20 || be32(c.Data[20:]) != 1 {
		t.Errorf("% X", c.Data[:c.Count])
	}
	b.bad(logSense(0x0D, 0), nil, 256, illegalRequest, 0x2400)
	b.bad(logSense(0x0C, 1), nil, 256, illegalRequest, 0x2400)
}

func TestStartStop(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.good(cdb(0x1B, 0, 0, 0, 0), nil, 0)
	if b.store.flushes != 1 {
		t.Error("stopped without a flush")
	}
	b.bad(cdb(0x00), nil, 0, notReady, 0x0402)
	b.bad(read10(0, 1), nil, 512, notReady, 0x0402)
	b.good(cdb(0x12, 0, 0, 0, 255), nil, 255)
	if c := b.good(cdb(0x03, 0, 0, 0, 18), nil, 18); c.Data[2] != 2 || c.Data[12] != 4 {
		t.Errorf("REQUEST SENSE % X", c.Data)
	}
	b.good(cdb(0x1B, 0, 0, 0, 1), nil, 0)
	b.good(cdb(0x00), nil, 0)
	b.bad(cdb(0x1B, 0, 0, 0, 2), nil, 0, illegalRequest, 0x2400)
	b.good(cdb(0x1E, 0, 0, 0, 1), nil, 0)
	b.bad(cdb(0x1E, 0, 0, 0, 2), nil, 0, illegalRequest, 0x2400)
}

func TestRemovableMedium(t *testing.T) {
	b := newTestbed(t, 64, func(o *UnitOptions) { o.Removable = true })
	other := b.login("other")
	b.good(cdb(0x1E, 0, 0, 0, 1), nil, 0)
	b.wantSense(b.run(other, cdb(0x1B, 0, 0, 0, 2), nil, 0), illegalRequest, 0x5302)
	b.good(cdb(0x00), nil, 0)
	b.nexus.Close()
	if c := b.run(other, cdb(0x1B, 0, 0, 0, 2), nil, 0); c.Status != Good {
		t.Fatalf("eject: %v % X", c.Status, c.Sense)
	}
	b.wantSense(b.run(other, read10(0, 1), nil, 512), notReady, 0x3A00)
	b.run(other, cdb(0x1B, 0, 0, 0, 3), nil, 0)
	if c := b.run(other, read10(0, 1), nil, 512); c.Status != Good {
		t.Errorf("after loading: %v", c.Status)
	}
	if c := b.run(other, cdb(0x1B, 0, 0, 0, 0), nil, 0); c.Status != Good || b.run(other, cdb(0x00), nil, 0).Status != Good {
		t.Error("stopping without LOEJ took the medium away")
	}
}

func TestDiagnostics(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.good(cdb(0x1D, 0x04), nil, 0)
	b.good(cdb(0x1D, 0x10, 0, 0, 4), []byte{0, 0, 0, 0}, 0)
	b.bad(cdb(0x1D, 0x20), nil, 0, illegalRequest, 0x2400)
	b.bad(cdb(0x1D, 0x10, 0, 0, 4), []byte{0x40, 0, 0, 0}, 0, illegalRequest, 0x2600)
	b.good(cdb(0x1C, 1, 0, 0, 255), nil, 255)
	b.bad(cdb(0x1C, 1, 0x40, 0, 255), nil, 255, illegalRequest, 0x2400)
	b.good(cdb(0x37, 0, 0x1D, 0, 0, 0, 0, 0, 32), nil, 32)
	b.good(cdb(0xB7, 0x1D, 0, 0, 0, 0, 0, 0, 0, 32), nil, 32)
	b.good(cdb(0xA3, 0x05, 0, 0, 0, 0, 0, 0, 0, 64), nil, 64)
}
