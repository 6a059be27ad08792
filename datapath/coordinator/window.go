package coordinator

import (
	"time"

	"lunar/datapath/layout"
)

// Bounds of what is allocated ahead of a write.
const (
	minChunk = 1 << 20
	maxChunk = 64 << 20
)

// A chunk grows while making one takes less than quick, and shrinks when it takes more than slow:
// the write that needs it waits for that long.
const (
	quick = 20 * time.Millisecond
	slow  = 60 * time.Millisecond
)

// window sizes an image's chunks: they grow while writes go on where the last chunk ended.
type window struct {
	chunk int64
	end   int64 // of the last chunk
}

func newWindow() window { return window{chunk: minChunk} }

// next is the range to allocate for a write of r, in an image of size bytes.
func (w *window) next(r layout.Range, size int64) layout.Range {
	if r.Off > w.end || r.Off <= w.end-minChunk {
		w.chunk = minChunk
	}
	out := r.Align(minChunk)
	out.Len = max(out.Len, w.chunk)
	return out.Intersect(layout.Range{Len: size})
}

// made notes how long a chunk took.
func (w *window) made(r layout.Range, took time.Duration) {
	w.end = r.End()
	switch {
	case took < quick:
		w.chunk = min(maxChunk, w.chunk*2)
	case took > slow:
		w.chunk = max(minChunk, w.chunk/2)
	}
}
