package scsi

import (
	"encoding/binary"
	"testing"
)

// volume is a backend whose volume fills up.
type volume struct {
	*memory
	used, free int64
}

func (v *volume) Space() (used, free int64) { return v.used, v.free }

func thinUnit(t *testing.T) (*testbed, *volume) {
	b := newTestbed(t, 64, nil)
	v := &volume{memory: b.store, free: 100 << 20}
	b.unit.backend = v
	return b, v
}

func (b *testbed) setThreshold(i int, enabled bool, count uint32) (field int, ok bool) {
	page := b.unit.thresholdPage()
	page[16+8*i] &= 0x7F
	if enabled {
		page[16+8*i] |= 0x80
	}
	binary.BigEndian.PutUint32(page[16+8*i+4:], count)
	return b.unit.setThresholds(page)
}

// SBC-3 §4.7.3.8: one unit attention each time that a threshold is reached anew.
func TestSoftThreshold(t *testing.T) {
	for i, move := range []func(v *volume, reached bool){
		func(v *volume, reached bool) { v.free = map[bool]int64{true: 10<<20 + 5, false: 11 << 20}[reached] },
		func(v *volume, reached bool) { v.used = map[bool]int64{true: 9<<20 + 1, false: 9 << 20}[reached] },
	} {
		b, v := thinUnit(t)
		if _, ok := b.setThreshold(i, true, 10); !ok {
			t.Fatal("page refused")
		}
		for range 3 {
			b.unit.CheckSpace()
			b.good(cdb(0x00), nil, 0)
			move(v, true)
			b.unit.CheckSpace()
			b.unit.CheckSpace()
			b.bad(cdb(0x00), nil, 0, unitAttention, 0x3807)
			b.good(cdb(0x00), nil, 0)
			move(v, false)
		}
		if _, ok := b.setThreshold(i, false, 10); !ok {
			t.Fatal("page refused")
		}
		b.unit.CheckSpace()
		move(v, true)
		b.unit.CheckSpace()
		b.good(cdb(0x00), nil, 0)
	}
}

func TestThresholdPage(t *testing.T) {
	b, _ := thinUnit(t)
	page := b.unit.thresholdPage()
	if len(page) != 32 || page[0] != 0x5C || page[1] != 2 || be16(page[2:]) != 28 || page[16] != 0x80 || page[17] != 1 || page[24] != 0x01 || page[25] != 2 {
		t.Fatalf("% X", page)
	}
	mask := changeableThresholdPage()
	for i := range page {
		for bit := range 8 {
			changed := b.unit.thresholdPage()
			changed[i] ^= 1 << bit
			field, ok := b.unit.setThresholds(changed)
			want := mask[i]&(1<<bit) != 0 && i >= 16 || i == 0 && bit == 7
			if ok != want || !ok && field != i {
				t.Errorf("byte %d bit %d: field %d, ok %v", i, bit, field, ok)
			}
			b.unit.resetThresholds()
		}
	}
	if field, ok := b.unit.setThresholds(page[:31]); ok || field != 2 {
		t.Error("a short page")
	}
}
