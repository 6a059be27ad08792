package device

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m.b[off:]), nil }
func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.b[off:], p), nil }
func (m *memory) Sync() error                              { return nil }

func TestFaultsFollowTheSeed(t *testing.T) {
	trace := func(seed uint64) (out []bool) {
		f, err := NewFaults(FaultOptions{Seed: seed, ReadError: 0.3, WriteError: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			out = append(out, f.Next(Kind(i%3)).Err != nil)
		}
		return out
	}
	a, b, c := trace(1), trace(1), trace(2)
	same := func(x, y []bool) bool {
		for i := range x {
			if x[i] != y[i] {
				return false
			}
		}
		return true
	}
	if !same(a, b) || same(a, c) {
		t.Fatal("decisions must depend on the seed alone")
	}
	for i := 2; i < len(a); i += 3 {
		if a[i] {
			t.Fatal("a sync failed although its share is 0")
		}
	}
}

func TestFaultyCutAndAfterTheFact(t *testing.T) {
	f, err := NewFaults(FaultOptions{WriteError: 1, AfterTheFact: 1})
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{make([]byte, 16)}
	d := NewFaulty(m, f)
	if _, err := d.WriteAt([]byte{7}, 3); !errors.Is(err, unix.EIO) || !errors.Is(err, ErrInjected) || m.b[3] != 7 {
		t.Fatalf("%v, %v", err, m.b)
	}
	f.Cut()
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, unix.EIO) || d.Sync() == nil {
		t.Fatal("the path is cut", err)
	}
	f.Mend()
	p := make([]byte, 4)
	if _, err := d.ReadAt(p, 0); err != nil || !bytes.Equal(p, []byte{0, 0, 0, 7}) {
		t.Fatal(p, err)
	}
	if _, err := NewFaults(FaultOptions{ReadError: 2}); err == nil {
		t.Fatal("a share over 1")
	}
}

func TestPage83(t *testing.T) {
	page := []byte{0, 0x83, 0, 0,
		2, 1, 0, 4, 'L', 'N', 'R', '1',
		1, 0x13, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, // a target port's NAA: not the unit's
		1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7}
	page[3] = byte(len(page) - 4)
	if got := wwidOfPage83(page); got != "naa.6001020304050607" {
		t.Fatal(got)
	}
	if got := wwidOfPage83(page[:12]); got != "t10.LNR1" {
		t.Fatal(got)
	}
}

func FuzzPage83(f *testing.F) {
	f.Add([]byte{0, 0x83, 0, 12, 1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7})
	f.Fuzz(func(_ *testing.T, page []byte) { wwidOfPage83(page) })
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("XFSB"), []byte{})
	f.Add(append(make([]byte, 1080), 0x53, 0xef), []byte("EFI PART"))
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		found := identifyContent(head, tail)
		if len(found) == 0 && (!zero(head) || !zero(tail)) {
			t.Fatal("something there was called nothing")
		}
	})
}
