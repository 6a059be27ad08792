package datapath

import (
	"errors"
	"runtime"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// stream keeps a fixed number of I/Os under way on lane 0.
type stream struct {
	n    *node
	bufs [][]byte
}

func newStream(n *node, depth int) *stream {
	s := &stream{n: n}
	for range depth {
		s.bufs = append(s.bufs, n.engine.Pool().Get(4096))
	}
	return s
}

func (s *stream) close() {
	for _, b := range s.bufs {
		s.n.engine.Pool().Put(b)
	}
}

// run does count I/Os and waits for them.
func (s *stream) run(tb testing.TB, count int, issue func(i int, p []byte, done func(error))) {
	ended := make(chan struct{})
	begun, finished := 0, 0
	begin := func(d int) {
		var next func(error)
		next = func(err error) {
			if err != nil {
				tb.Error(err)
			}
			if finished++; finished == count {
				close(ended)
			} else if begun < count {
				begun++
				issue(begun, s.bufs[d], next)
			}
		}
		if begun < count {
			begun++
			issue(begun, s.bufs[d], next)
		}
	}
	err := s.n.engine.Ring(0).Post(func() {
		for d := range s.bufs {
			begin(d)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	<-ended
}

// written is an image whose first 16 MiB are there.
func written(tb testing.TB) (*node, *volume.Image) {
	n := start(tb, scratchDevice(tb, coordinator.XFS, 400*mib).Path, 1)
	im := n.create("a", 64*mib)
	for off := int64(0); off < 16*mib; off += mib {
		write(tb, im, pattern(mib, 1), off)
	}
	if !im.Layout().Is(layout.Range{Len: 16 * mib}, layout.State.Writable) {
		tb.Fatal("not written")
	}
	return n, im
}

func scattered(i int) int64 { return int64(uint32(i)*2654435761%(16*mib/4096)) * 4096 }

func TestDirectIODoesNotAllocate(t *testing.T) {
	n, im := written(t)
	s := newStream(n, 16)
	defer s.close()
	read := func(i int, p []byte, done func(error)) { im.Read(0, p, scattered(i), done) }
	write := func(i int, p []byte, done func(error)) { im.Write(0, p, scattered(i), false, done) }
	for name, issue := range map[string]func(int, []byte, func(error)){"read": read, "write": write} {
		s.run(t, 200, issue) // fills the free lists
		const count = 2000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.run(t, count, issue)
		runtime.ReadMemStats(&after)
		if per := float64(after.Mallocs-before.Mallocs) / count; per > 0.2 {
			t.Errorf("%s: %.2f allocations per I/O", name, per)
		}
	}
}

func BenchmarkDirect4K(b *testing.B) {
	n, im := written(b)
	s := newStream(n, 32)
	b.Cleanup(s.close)
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		s.run(b, b.N, func(i int, p []byte, done func(error)) { im.Read(0, p, scattered(i), done) })
	})
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		s.run(b, b.N, func(i int, p []byte, done func(error)) { im.Write(0, p, scattered(i), false, done) })
	})
}

// BenchmarkSequential1M writes an image from front to back: what a thin image costs over one whose
// blocks are there.
func BenchmarkSequential1M(b *testing.B) {
	for _, eager := range []bool{false, true} {
		b.Run(map[bool]string{false: "thin", true: "eager"}[eager], func(b *testing.B) {
			n := start(b, scratchDevice(b, coordinator.XFS, 800*mib).Path, 1)
			const size = 512 * mib
			p := pattern(mib, 1)
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				if err := n.vol.Create(ctx, "a", protocol.CreateOptions{Size: size, Eager: eager}); err != nil {
					b.Fatal(err)
				}
				im := n.open("a")
				b.StartTimer()
				for off := int64(0); off < size; off += mib {
					write(b, im, p, off)
				}
				b.StopTimer()
				if err := errors.Join(im.Close(ctx), n.vol.Delete(ctx, "a")); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			n.stop()
		})
	}
}
