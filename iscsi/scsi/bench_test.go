package scsi

import "testing"

// nullBackend completes everything at once.
type nullBackend struct {
	size int64
	fua  bool
}

func (n *nullBackend) Size() int64                                     { return n.size }
func (n *nullBackend) Read(_ int, _ []byte, _ int64, done func(error)) { done(nil) }
func (n *nullBackend) Flush(_ int, done func(error))                   { done(nil) }
func (n *nullBackend) Unmap(_ int, _, _ int64, done func(error))       { done(nil) }
func (n *nullBackend) Mapped(off int64) (bool, int64)                  { return true, n.size - off }
func (n *nullBackend) Space() (used, free int64)                       { return n.size, n.size }
func (n *nullBackend) Write(_ int, _ []byte, _ int64, fua bool, done func(error)) {
	n.fua = fua
	done(nil)
}

func (n *nullBackend) CompareAndWrite(_ int, _, _ []byte, _ int64, _ bool, done func(int, error)) {
	done(-1, nil)
}

// prepare makes a command that can be executed again and again, and takes the POWER ON attention.
func prepare(tb testing.TB, x [16]byte, data int) (*Target, *Command) {
	lu, err := NewLogicalUnit(&nullBackend{size: 1 << 40}, testOptions())
	if err != nil {
		tb.Fatal(err)
	}
	target := NewTarget("iqn.2026-01.org.example:bench", TargetOptions{})
	if err := target.Map(0, lu); err != nil {
		tb.Fatal(err)
	}
	c := &Command{CDB: x, Nexus: target.NewNexus("host", 1), Attr: Simple, Expected: data, Data: make([]byte, data)}
	c.Done = func(*Command) {}
	target.Decode(c)
	target.Execute(c)
	return target, c
}

func BenchmarkCommand(b *testing.B) {
	for _, x := range []struct {
		name string
		cdb  [16]byte
		data int
	}{
		{"READ(10)", read10(8, 8), 8 * blockSize},
		{"READ(16)", cdb16(0x88, 0, 8, 8), 8 * blockSize},
		{"WRITE(10)", write10(8, 8), 8 * blockSize},
		{"WRITE(16)", cdb16(0x8A, 0, 8, 8), 8 * blockSize},
		{"SYNCHRONIZE CACHE(10)", cdb10(0x35, 0, 0, 0), 0},
		{"TEST UNIT READY", cdb(0x00), 0},
	} {
		b.Run(x.name, func(b *testing.B) {
			target, c := prepare(b, x.cdb, x.data)
			b.ReportAllocs()
			for b.Loop() {
				target.Decode(c)
				target.Execute(c)
			}
			if c.Status != Good {
				b.Fatalf("%v", c.Status)
			}
		})
	}
}

// TestFastPathAllocatesNothing is the benchmark's claim as a test.
func TestFastPathAllocatesNothing(t *testing.T) {
	for _, x := range [][16]byte{read10(8, 8), cdb16(0x88, 0, 8, 8), write10(8, 8), cdb16(0x8A, 0x08, 8, 8)} {
		target, c := prepare(t, x, 8*blockSize)
		n := testing.AllocsPerRun(100, func() {
			target.Decode(c)
			target.Execute(c)
		})
		if n != 0 || c.Status != Good {
			t.Errorf("% X: %v allocations, %v", x, n, c.Status)
		}
	}
}
