package scsi

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// mediaCommand builds a media command of any CDB length.
type mediaCommand struct {
	name  string
	build func(flags byte, lba uint64, count uint32) [16]byte
	write bool
	limit uint64 // highest LBA that the CDB can name
}

func cdb6of(op byte) func(byte, uint64, uint32) [16]byte {
	return func(_ byte, lba uint64, count uint32) [16]byte {
		return cdb(op, byte(lba>>16)&0x1F, byte(lba>>8), byte(lba), byte(count))
	}
}

func cdb10of(op byte) func(byte, uint64, uint32) [16]byte {
	return func(flags byte, lba uint64, count uint32) [16]byte {
		return cdb10(op, flags, uint32(lba), uint16(count))
	}
}

func cdb12of(op byte) func(byte, uint64, uint32) [16]byte {
	return func(f byte, lba uint64, n uint32) [16]byte {
		return cdb(op, f, byte(lba>>24), byte(lba>>16), byte(lba>>8), byte(lba), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
}

func cdb16of(op byte) func(byte, uint64, uint32) [16]byte {
	return func(flags byte, lba uint64, count uint32) [16]byte { return cdb16(op, flags, lba, count) }
}

var mediaCommands = []mediaCommand{
	{"READ(6)", cdb6of(0x08), false, 0x1FFFFF},
	{"READ(10)", cdb10of(0x28), false, 1<<32 - 1},
	{"READ(12)", cdb12of(0xA8), false, 1<<32 - 1},
	{"READ(16)", cdb16of(0x88), false, 1<<64 - 1},
	{"WRITE(6)", cdb6of(0x0A), true, 0x1FFFFF},
	{"WRITE(10)", cdb10of(0x2A), true, 1<<32 - 1},
	{"WRITE(12)", cdb12of(0xAA), true, 1<<32 - 1},
	{"WRITE(16)", cdb16of(0x8A), true, 1<<64 - 1},
	{"WRITE AND VERIFY(10)", cdb10of(0x2E), true, 1<<32 - 1},
	{"WRITE AND VERIFY(12)", cdb12of(0xAE), true, 1<<32 - 1},
	{"WRITE AND VERIFY(16)", cdb16of(0x8E), true, 1<<64 - 1},
	{"ORWRITE(16)", cdb16of(0x8B), true, 1<<64 - 1},
}

func TestMediaCommands(t *testing.T) {
	for _, m := range mediaCommands {
		t.Run(m.name, func(t *testing.T) {
			b := newTestbed(t, 1024, nil)
			copy(b.store.data, fill(1024, 0x11))
			want := fill(3, 0x11)
			if m.write {
				want = fill(3, 0x33)
				b.good(m.build(0, 1021, 3), want, 0)
			} else if c := b.good(m.build(0, 1021, 3), nil, len(want)); !bytes.Equal(c.Data[:c.Count], want) {
				t.Error("wrong data")
			}
			if !bytes.Equal(b.store.data[1021*blockSize:], want) || b.store.data[1021*blockSize-1] != 0x11 {
				t.Error("wrong blocks on the backend")
			}
		})
	}
}

func TestMediaCommandsBadFields(t *testing.T) {
	for _, m := range mediaCommands {
		t.Run(m.name, func(t *testing.T) {
			b := newTestbed(t, 1024, nil)
			data := func(n int) []byte {
				if m.write {
					return fill(n, 1)
				}
				return nil
			}
			b.bad(m.build(0, 1024, 1), data(1), blockSize, illegalRequest, 0x2100)
			b.bad(m.build(0, 1023, 2), data(2), 2*blockSize, illegalRequest, 0x2100)
			b.bad(m.build(0, m.limit, 1), data(1), blockSize, illegalRequest, 0x2100)
			if m.build(0, 0, 0)[0]>>5 == 0 {
				return
			}
			b.bad(m.build(0, 1025, 0), nil, 0, illegalRequest, 0x2100)
			b.good(m.build(0, 1024, 0), nil, 0)
			for protect := 1; protect < 8; protect++ {
				c := b.bad(m.build(byte(protect<<5), 0, 1), data(1), blockSize, illegalRequest, 0x2400)
				if c.Sense[15]&0xC8 != 0xC8 || c.Sense[17] != 1 {
					t.Errorf("field pointer % X", c.Sense[15:18])
				}
			}
			c := b.bad(m.build(0, 0, MaxData/blockSize+1), data(1), blockSize, illegalRequest, 0x2400)
			if c.Length != 0 {
				t.Errorf("Length %d of a refused command", c.Length)
			}
		})
	}
}

func TestMediaCommandsFailures(t *testing.T) {
	failures := []struct {
		err  error
		key  senseKey
		code uint16
		side uint16 // of a read, 0: the same
	}{
		{syscall.ENOSPC, dataProtect, 0x2707, 0},
		{syscall.EIO, mediumError, 0x0C00, 0x1100},
		{fmt.Errorf("lane 3: %w", syscall.EROFS), dataProtect, 0x2700, 0},
		{syscall.ENODEV, notReady, 0x0412, 0},
		{syscall.ECONNABORTED, abortedCommand, 0x0800, 0},
		{errors.New("anything"), hardwareError, 0x4400, 0},
	}
	for _, f := range failures {
		b := newTestbed(t, 64, nil)
		b.store.fail, b.store.failOps = f.err, "rwc"
		b.bad(write10(0, 1), fill(1, 1), 0, f.key, f.code)
		code := f.code
		if f.side != 0 {
			code = f.side
		}
		b.bad(read10(0, 1), nil, blockSize, f.key, code)
	}
}

func TestReservationConflictFromBackend(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.store.fail, b.store.failOps = syscall.EBADE, "w"
	if c := b.run(b.nexus, write10(0, 1), fill(1, 1), 0); c.Status != ReservationConflict || c.Sense != nil {
		t.Errorf("%v, sense % X", c.Status, c.Sense)
	}
}

// TestShortTransfers: the initiator expects less or more than the CDB says.
func TestShortTransfers(t *testing.T) {
	b := newTestbed(t, 64, nil)
	copy(b.store.data, fill(64, 7))
	for _, x := range []struct{ expect, count, residual int }{
		{0, 0, 512}, {200, 200, 312}, {512, 512, 0}, {10000, 512, 512 - 10000},
	} {
		c := b.good(read10(0, 1), nil, x.expect)
		if c.Count != x.count || c.Residual(x.expect) != x.residual || !bytes.Equal(c.Data[:c.Count], fill(1, 7)[:x.count]) {
			t.Errorf("expected %d: count %d, residual %d", x.expect, c.Count, c.Residual(x.expect))
		}
	}
	c := b.good(write10(0, 2), fill(1, 9), 0)
	if c.Residual(blockSize) != blockSize || b.store.data[blockSize-1] != 9 || b.store.data[blockSize] != 7 {
		t.Errorf("residual %d", c.Residual(blockSize))
	}
	c = b.bad(write10(0, 1), fill(1, 5)[:200], 0, illegalRequest, 0x0E03)
	if c.Residual(200) != 312 || b.store.data[0] != 9 {
		t.Error("part of a block was written")
	}
}

func TestForceUnitAccess(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.good(write10(0, 1), fill(1, 1), 0)
	if b.store.fuas != 0 {
		t.Error("FUA without being asked")
	}
	b.good(cdb10(0x2A, 0x08, 0, 1), fill(1, 1), 0)
	b.good(cdb16(0x8A, 0x08, 0, 1), fill(1, 1), 0)
	b.good(cdb10(0x2E, 0, 0, 1), fill(1, 1), 0)
	if b.store.fuas != 3 {
		t.Errorf("%d durable writes, want 3", b.store.fuas)
	}
}

func TestWrite6HasNoForceUnitAccess(t *testing.T) {
	b := newTestbed(t, 64, nil)
	null := &nullBackend{size: 1 << 30}
	b.unit.backend = null
	b.good(cdb(0x0A, 0x08, 0, 0, 1), fill(1, 1), 0)
	if null.fua {
		t.Error("a bit of the LBA was taken for FUA")
	}
}

func TestWithoutWriteCacheEveryWriteIsDurable(t *testing.T) {
	b := newTestbed(t, 64, func(o *UnitOptions) { o.NoWriteCache = true })
	b.good(cdb(0x0A, 0, 0, 0, 1), fill(1, 1), 0)
	b.good(cdb16(0x93, 0, 0, 4), fill(1, 1), 0)
	if b.store.fuas != 2 {
		t.Errorf("%d durable writes, want 2", b.store.fuas)
	}
}

func TestVerify(t *testing.T) {
	for name, build := range map[string]func(byte, uint64, uint32) [16]byte{
		"10": cdb10of(0x2F), "12": cdb12of(0xAF), "16": cdb16of(0x8F),
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestbed(t, 4096, nil)
			copy(b.store.data, bytes.Repeat([]byte("pattern!"), len(b.store.data)/8))
			same := bytes.Clone(b.store.data[:4*blockSize])
			b.good(build(0, 0, 4096), nil, 0)
			b.good(build(0x12, 8, 4), same, 0)
			b.good(build(0x06, 0, 4000), same[:blockSize], 0)
			b.good(build(0x02, 0, 0), nil, 0)
			b.bad(build(0x02, 4097, 0), nil, 0, illegalRequest, 0x2100)
			b.bad(build(0x04, 0, 1), same[:blockSize], 0, illegalRequest, 0x2400)
			same[3*blockSize+5] ^= 1
			c := b.bad(build(0x02, 8, 4), same, 0, miscompare, 0x1D00)
			if c.Sense[0] != 0xF0 || be32(c.Sense[3:]) != 11 {
				t.Errorf("information % X, want LBA 11", c.Sense[:7])
			}
			b.store.data[3500*blockSize+7] ^= 1
			b.bad(build(0x06, 0, 4000), same[:blockSize], 0, miscompare, 0x1D00)
			b.store.fail, b.store.failOps = syscall.EIO, "r"
			b.bad(build(0, 0, 1), nil, 0, mediumError, 0x1100)
			b.buffers.exhausted = true
			if c := b.run(b.nexus, build(0, 0, 1), nil, 0); c.Status != Busy {
				t.Errorf("%v without buffers", c.Status)
			}
		})
	}
}

func TestCompareAndWrite(t *testing.T) {
	b := newTestbed(t, 1024, nil)
	caw := func(lba uint64, n byte) [16]byte {
		x := cdb16(0x89, 0, lba, 0)
		x[13] = n
		return x
	}
	b.good(caw(5, 2), append(fill(2, 0), fill(2, 8)...), 0)
	if !bytes.Equal(b.store.data[5*blockSize:7*blockSize], fill(2, 8)) {
		t.Error("not written")
	}
	wrong := append(fill(2, 8), fill(2, 9)...)
	wrong[600] = 0
	c := b.bad(caw(5, 2), wrong, 0, miscompare, 0x1D00)
	if be32(c.Sense[3:]) != 600 {
		t.Errorf("offset % X, want 600", c.Sense[3:7])
	}
	b.good(caw(5, 0), nil, 0)
	b.good(caw(0, 255), append(b.store.data[:255*blockSize:255*blockSize], fill(255, 1)...), 0)
	b.bad(caw(1023, 2), fill(4, 0), 0, illegalRequest, 0x2100)
	for _, blocks := range []byte{0, 1, 3} {
		c := b.bad(caw(0, blocks), fill(4, 0), 0, illegalRequest, 0x2400)
		if field := be16(c.Sense[16:]); field != 13 {
			t.Errorf("%d blocks with the data of two: the sense points at byte %d", blocks, field)
		}
	}
}

func TestORWriteIsAtomic(t *testing.T) {
	b := newTestbed(t, 64, nil)
	raced := 0
	b.store.interfer = func() {
		if raced++; raced < 3 {
			b.store.data[raced] = 0x40
		}
	}
	b.good(cdb16(0x8B, 0, 0, 2), fill(2, 0x03), 0)
	if raced != 3 || b.store.data[0] != 0x03 || b.store.data[1] != 0x43 || b.store.data[2] != 0x43 {
		t.Errorf("after %d tries % X", raced, b.store.data[:4])
	}
	b.store.interfer = func() { b.store.data[0]++ }
	if c := b.run(b.nexus, cdb16(0x8B, 0, 0, 2), fill(2, 0x03), 0); c.Status != Busy {
		t.Errorf("%v, want BUSY", c.Status)
	}
}

func TestWriteSame(t *testing.T) {
	for name, build := range map[string]func(byte, uint64, uint32) [16]byte{"10": cdb10of(0x41), "16": cdb16of(0x93)} {
		t.Run(name, func(t *testing.T) {
			b := newTestbed(t, 8192, nil)
			b.good(build(0, 100, 5000), fill(1, 0xA6), 0)
			if !bytes.Equal(b.store.data[100*blockSize:5100*blockSize], fill(5000, 0xA6)) || b.store.data[5100*blockSize] != 0 || b.store.data[100*blockSize-1] != 0 {
				t.Error("wrong blocks written")
			}
			b.good(build(0x08, 104, 8), fill(1, 0xFF), 0)
			if b.store.unmapped != 0 || b.store.data[104*blockSize] != 0xFF {
				t.Error("UNMAP with data that is not zero must write it")
			}
			b.good(build(0x08, 104, 8), fill(1, 0), 0)
			if b.store.unmapped != 8*blockSize {
				t.Error("UNMAP with zeroes does not unmap")
			}
			b.bad(build(0, 8190, 0), fill(1, 3), 0, illegalRequest, 0x2400)
			b.bad(build(0x10, 0, 1), fill(1, 0), 0, illegalRequest, 0x2400)
			b.bad(build(0x20, 0, 1), fill(1, 0), 0, illegalRequest, 0x2400)
			b.bad(build(0, 8192, 1), fill(1, 0), 0, illegalRequest, 0x2100)
			b.bad(build(0, 8193, 1), fill(1, 0), 0, illegalRequest, 0x2100)
			b.bad(build(0x08, 0, 1), fill(1, 0)[:256], 0, illegalRequest, 0x0E03)
			b.bad(build(0x08, 0, 1), fill(2, 0), 0, illegalRequest, 0x0E03)
		})
	}
}

func TestWriteSameLimits(t *testing.T) {
	b := newTestbed(t, maxWriteSameBlocks+8, nil)
	b.bad(cdb16(0x93, 0, 0, maxWriteSameBlocks+1), fill(1, 0), 0, illegalRequest, 0x2400)
	b.bad(cdb16(0x93, 0, 0, 0), fill(1, 0), 0, illegalRequest, 0x2400)
	b.good(cdb16(0x93, 0x01, 0, maxWriteSameBlocks), nil, 0)
	b.store.fail, b.store.failOps = syscall.ENOSPC, "w"
	b.bad(cdb16(0x93, 0, 0, 8), fill(1, 1), 0, dataProtect, 0x2707)
	thick := newTestbed(t, 64, func(o *UnitOptions) { o.Thin = false })
	thick.bad(cdb16(0x93, 0x09, 0, 8), nil, 0, illegalRequest, 0x2400)
}

func TestSynchronizeCacheAlwaysFlushes(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.good(cdb10(0x35, 0, 0, 0), nil, 0)
	b.good(cdb10(0x35, 0x06, 3, 5), nil, 0)
	b.good(cdb16(0x91, 0, 0, 0), nil, 0)
	if b.store.flushes != 3 {
		t.Errorf("%d flushes, want 3", b.store.flushes)
	}
	b.bad(cdb10(0x35, 0, 60, 5), nil, 0, illegalRequest, 0x2100)
	b.store.fail, b.store.failOps = syscall.EIO, "f"
	b.bad(cdb10(0x35, 0, 0, 0), nil, 0, mediumError, 0x0C00)
}

func TestPreFetch(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.good(cdb10(0x34, 0x02, 0, 64), nil, 0)
	b.good(cdb16(0x90, 0, 0, 0), nil, 0)
	b.bad(cdb10(0x34, 0, 64, 1), nil, 0, illegalRequest, 0x2100)
	b.bad(cdb16(0x90, 0, 1<<63, 0), nil, 0, illegalRequest, 0x2100)
}

func TestWriteProtection(t *testing.T) {
	b := newTestbed(t, 64, func(o *UnitOptions) { o.ReadOnly = true })
	caw := cdb16(0x89, 0, 0, 0)
	caw[13] = 1
	unmap := []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}
	for _, x := range []struct {
		cdb [16]byte
		out []byte
	}{
		{write10(0, 1), fill(1, 1)}, {cdb(0x0A, 0, 0, 0, 1), fill(1, 1)}, {cdb16(0x8A, 0, 0, 1), fill(1, 1)},
		{cdb10(0x2E, 0, 0, 1), fill(1, 1)}, {cdb16(0x8B, 0, 0, 1), fill(1, 1)}, {cdb10(0x41, 0, 0, 1), fill(1, 1)},
		{cdb16(0x93, 9, 0, 1), nil}, {caw, fill(2, 1)}, {cdb10(0x42, 0, 0, 24), unmap},
	} {
		b.bad(x.cdb, x.out, 0, dataProtect, 0x2700)
	}
	if !allZero(b.store.data) {
		t.Error("a write-protected unit was written")
	}
	b.good(read10(0, 1), nil, blockSize)
}
