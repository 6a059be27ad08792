package layout

import (
	"slices"
	"testing"
)

// FuzzLayout builds and changes a layout from bytes, four to an extent, and compares with the model.
func FuzzLayout(f *testing.F) {
	f.Add(uint16(100), []byte{0, 10, 4, 0, 10, 10, 4, 10})
	f.Add(uint16(4096), []byte{1, 2, 3, 4, 5, 6, 7, 8, 255, 255, 2, 1})
	f.Add(uint16(0), []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, size uint16, data []byte) {
		n := int64(size) % 5000
		l, err := New(n, nil)
		if err != nil {
			t.Fatal(err)
		}
		m := naive{}.resize(n)
		for ; len(data) >= 4; data = data[4:] {
			e := Extent{FileOff: int64(data[0]) * 19, Len: int64(data[1]), State: State(data[2] % 6), DevOff: int64(data[3]) * 19}
			next, err := l.Replace(Range{e.FileOff, e.Len}, []Extent{e})
			if err != nil {
				if e.State < numStates {
					t.Fatalf("%v: %v", e, err)
				}
				continue
			}
			if e = e.normal(); e.State < numStates {
				m.set(e)
			}
			l = next
		}
		check(t, l, m)
		again, err := New(n, l.Extents())
		if err != nil || !slices.Equal(again.Extents(), l.Extents()) {
			t.Fatalf("extents do not make the same layout: %v", err)
		}
	})
}
