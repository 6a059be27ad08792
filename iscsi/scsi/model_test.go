package scsi

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// model is what the disk has to hold after a sequence of commands.
type model struct {
	data []byte
	rng  *rand.Rand
}

func (m *model) span(limit int) (lba uint64, count uint32, part []byte) {
	blocks := len(m.data) / blockSize
	n := 1 + m.rng.IntN(limit)
	at := m.rng.IntN(blocks - n + 1)
	return uint64(at), uint32(n), m.data[at*blockSize : (at+n)*blockSize]
}

// random is n bytes, a multiple of 512, with zeroes among them.
func (m *model) random(n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		binary.NativeEndian.PutUint64(p[i:], m.rng.Uint64()>>(m.rng.UintN(2)*32))
	}
	return p
}

// modelSteps each do one random command on the device server and the same on the model.
var modelSteps = map[string]func(m *model, b *testbed){
	"write": func(m *model, b *testbed) {
		lba, n, part := m.span(64)
		copy(part, m.random(len(part)))
		op := []byte{0x8A, 0x8E}[m.rng.IntN(2)]
		b.good(cdb16(op, 0, lba, n), bytes.Clone(part), 0)
	},
	"short write": func(m *model, b *testbed) {
		lba, n, part := m.span(30)
		sent := m.random(m.rng.IntN(int(n)+1) * blockSize)
		copy(part, sent)
		b.good(cdb16(0x8A, 0, lba, n), sent, 0)
	},
	"read": func(m *model, b *testbed) {
		lba, n, part := m.span(64)
		c := b.good(cdb16(0x88, 0, lba, n), nil, m.rng.IntN(len(part)+1))
		if !bytes.Equal(c.Data[:c.Count], part[:c.Expected]) {
			b.t.Fatalf("read of %d blocks at %d differs", n, lba)
		}
	},
	"verify": func(m *model, b *testbed) {
		lba, n, part := m.span(64)
		want := bytes.Clone(part)
		at := m.rng.IntN(len(want))
		if m.rng.IntN(2) == 0 {
			b.good(cdb16(0x8F, 0x02, lba, n), want, 0)
			return
		}
		want[at] ^= 0x10
		b.bad(cdb16(0x8F, 0x02, lba, n), want, 0, miscompare, 0x1D00)
	},
	"compare and write": func(m *model, b *testbed) {
		lba, n, part := m.span(8)
		x := cdb16(0x89, 0, lba, 0)
		x[13] = byte(n)
		data := m.random(len(part))
		list := append(bytes.Clone(part), data...)
		if m.rng.IntN(3) == 0 {
			list[m.rng.IntN(len(part))] ^= 1
			b.bad(x, list, 0, miscompare, 0x1D00)
			return
		}
		copy(part, data)
		b.good(x, list, 0)
	},
	"write same": func(m *model, b *testbed) {
		lba, n, part := m.span(2500)
		block := m.random(blockSize)
		if m.rng.IntN(2) == 0 {
			clear(block)
		}
		for i := range int(n) {
			copy(part[i*blockSize:], block)
		}
		b.good(cdb16(0x93, byte(m.rng.IntN(2)<<3), lba, n), block, 0)
	},
	"unmap": func(m *model, b *testbed) {
		list := []byte{0, 0, 0, 0, 0, 0, 0, 0}
		for range m.rng.IntN(5) {
			lba, n, part := m.span(500)
			clear(part)
			x := cdb16(0, 0, lba, n)
			list = append(append(list, x[2:14]...), 0, 0, 0, 0)
			list[3] += unmapDescriptor
		}
		b.good(cdb10(0x42, 0, 0, uint16(len(list))), list, 0)
	},
	"or": func(m *model, b *testbed) {
		lba, n, part := m.span(50)
		data := m.random(len(part))
		b.good(cdb16(0x8B, 0, lba, n), bytes.Clone(data), 0)
		or(part, bytes.Clone(part), data)
	},
	"status": func(m *model, b *testbed) {
		lba, _, _ := m.span(1)
		c := b.good(cdb16(0x9E, 0x12, lba, 8+16*64), nil, 8+16*64)
		for d := c.Data[8:c.Count]; len(d) > 0; d = d[16:] {
			from, n := be64(d), uint64(be32(d[8:]))
			if from != lba || n == 0 {
				b.t.Fatalf("descriptor % X, want LBA %d", d[:16], lba)
			}
			if d[12] == lbaDeallocated && !allZero(m.data[from*blockSize:(from+n)*blockSize]) {
				b.t.Fatalf("blocks %d+%d hold data and are called deallocated", from, n)
			}
			lba += n
		}
	},
}

// TestRandomCommands runs seeded sequences against the model; the seed is in the name of a failure.
func TestRandomCommands(t *testing.T) {
	names := []string{"write", "short write", "read", "verify", "compare and write", "write same", "unmap", "or", "status"}
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		b := newTestbed(t, 4096, nil)
		m := &model{data: make([]byte, 4096*blockSize), rng: rng}
		for i := range 305 {
			name := names[rng.IntN(len(names))]
			modelSteps[name](m, b)
			if i%16 == 0 && !bytes.Equal(m.data, b.store.data) {
				t.Fatalf("seed %d, command %d (%s): the disk differs from the model", seed, i, name)
			}
		}
	}
}
