package scsi

import (
	"bytes"
	"testing"
)

// FuzzCommand throws any CDB with any Data-Out at a unit. Whatever it is: Done is called once, the
// backend is called inside its contract, lengths and sense data are sane, the buffers come back.
func FuzzCommand(f *testing.F) {
	for _, r := range commands.rows {
		seed := make([]byte, 16)
		copy(seed, r.usage)
		f.Add(seed, []byte{}, uint16(64), byte(Simple))
		if r.action != noServiceAction {
			f.Add([]byte{r.opcode, byte(r.action), 15: 0}, []byte{0, 0, 0, 4}, uint16(512), byte(Ordered))
		} else {
			f.Add([]byte{r.opcode, 15: 0}, []byte{0, 0, 0, 4}, uint16(512), byte(HeadOfQueue))
		}
	}
	x := write10(3, 1)
	f.Add(x[:], fill(1, 9), uint16(0), byte(Simple))
	x = cdb(0x15, 0x10, 0, 0, 24)
	f.Add(x[:], caching(0), uint16(0), byte(Simple))
	x = cdb10(0x42, 0, 0, 24)
	f.Add(x[:], []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0}, uint16(0), byte(Simple))
	f.Fuzz(func(t *testing.T, raw, out []byte, in uint16, attr byte) {
		b := newTestbed(t, 256, nil)
		var x [16]byte
		copy(x[:], raw)
		if len(out) > 0 {
			in = 0
		}
		before := bytes.Clone(b.store.data)
		c, done := b.start(b.nexus, 0, TaskAttribute(attr), 1, x, out, int(in))
		b.checkEnded(c, *done)
		if c.Status == CheckCondition && c.Direction != DataOut && !bytes.Equal(before, b.store.data) {
			t.Errorf("% X changed the disk", x)
		}
	})
}

func (b *testbed) checkEnded(c *Command, done int) {
	b.t.Helper()
	switch {
	case done != 1:
		b.t.Fatalf("% X: Done was called %d times", c.CDB, done)
	case c.Count > len(c.Data) || c.Length > MaxData || c.Length < 0:
		b.t.Fatalf("% X: count %d of %d, length %d", c.CDB, c.Count, len(c.Data), c.Length)
	case (c.Status == CheckCondition) != (len(c.Sense) >= 8):
		b.t.Fatalf("% X: %v with sense % X", c.CDB, c.Status, c.Sense)
	}
	if n := c.Nexus.itls[0].count; n != 0 {
		b.t.Fatalf("% X: %d tasks left", c.CDB, n)
	}
}

// FuzzModeSelect: a parameter list is taken whole or changes nothing, and MODE SENSE reads back a
// list that MODE SELECT takes.
func FuzzModeSelect(f *testing.F) {
	f.Add(caching(4), false)
	f.Add(control(4, 8, 0x40), false)
	f.Add(append(control(4, 8, 0x40), caching(0)[4:]...), true)
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 2, 0, 0x1C, 0x0A, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, list []byte, long bool) {
		b := newTestbed(t, 64, nil)
		if len(list) > 255 {
			return
		}
		before := *b.unit.modes.Load()
		x := cdb(0x15, 0x10, 0, 0, byte(len(list)))
		if long {
			x = cdb(0x55, 0x10, 0, 0, 0, 0, 0, 0, byte(len(list)))
		}
		c, done := b.start(b.nexus, 0, Simple, 1, x, list, 0)
		b.checkEnded(c, *done)
		if c.Status != Good && *b.unit.modes.Load() != before {
			t.Error("a refused list changed something")
		}
		now := *b.unit.modes.Load()
		read := b.good(cdb(0x1A, 0x08, 0x3F, 0, 255), nil, 255)
		again := read.Data[:read.Count]
		b.good(cdb(0x15, 0x10, 0, 0, byte(len(again))), again, 0)
		if *b.unit.modes.Load() != now {
			t.Error("what MODE SENSE said was not what is")
		}
	})
}

// FuzzUnmap: a list unmaps exactly its ranges, or nothing.
func FuzzUnmap(f *testing.F) {
	f.Add([]byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0})
	f.Add([]byte{0, 6, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 0xFFFF {
			return
		}
		b := newTestbed(t, 256, nil)
		copy(b.store.data, fill(256, 1))
		c, done := b.start(b.nexus, 0, Simple, 1, cdb10(0x42, 0, 0, uint16(len(list))), list, 0)
		b.checkEnded(c, *done)
		want := fill(256, 1)
		if c.Status == Good && len(list) >= 8 {
			for p := list[8 : 8+be16(list[2:])/16*16]; len(p) > 0; p = p[16:] {
				clear(want[be64(p)*blockSize : (be64(p)+uint64(be32(p[8:])))*blockSize])
			}
		}
		if !bytes.Equal(want, b.store.data) {
			t.Errorf("%v: the wrong blocks were unmapped", c.Status)
		}
	})
}
