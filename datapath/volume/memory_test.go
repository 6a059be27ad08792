package volume

import (
	"runtime"
	"testing"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// heap is what is in use after a collection.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// scattered is a grant of an image in so many extents that cannot be joined.
func scattered(id protocol.ImageID, extents int) protocol.Grant {
	const size = 1 << 20
	g := protocol.Grant{Call: protocol.Call{Image: id, Epoch: 1}, Generation: 1, Size: int64(extents) * size}
	g.Range = layout.Range{Len: g.Size}
	for i := range int64(extents) {
		g.Extents = append(g.Extents, layout.Extent{FileOff: i * size, DevOff: 2 * i * size, Len: size, State: layout.Written})
	}
	return g
}

// openAt makes n open images of so many extents each, and tells what they take.
func openAt(b *testing.B, n, extents int) (images []*Image, bytes float64) {
	b.Helper()
	v := testVolume(1)
	v.desks = make([]desk, 4)
	before := heap()
	for i := range n {
		im := newImage(v, "images/of-some-length")
		if err := im.attachment(v.term.Load()).begin(scattered(protocol.ImageID(i), extents), 1); err != nil {
			b.Fatal(err)
		}
		images = append(images, im)
	}
	return images, heap() - before
}

// BenchmarkMemory prints what an open image takes at rest on 4 lanes, by its extents, and what an
// extent adds.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		name            string
		images, extents int
	}{{"100images1layout", 100, 1}, {"100images10layouts", 100, 10}, {"100images1000layouts", 100, 1000}, {"1000images10layouts", 1000, 10}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				one, empty := openAt(b, c.images, 1)
				images, all := openAt(b, c.images, c.extents)
				b.ReportMetric(all/float64(c.images), "B/image")
				if c.extents > 1 {
					b.ReportMetric((all-empty)/float64(c.images*(c.extents-1)), "B/extent")
				}
				runtime.KeepAlive(one)
				runtime.KeepAlive(images)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
