package layout

import "slices"

// builder puts a Layout together from front to back.
type builder struct {
	l    *Layout
	open []Extent // the chunk being filled, owned; not yet in l
}

// end is the first offset of the file that was not added yet.
func (b *builder) end() int64 {
	if n := len(b.open); n > 0 {
		return b.open[n-1].End()
	}
	if n := len(b.l.chunks); n > 0 {
		last := b.l.chunks[n-1].extents
		return last[len(last)-1].End()
	}
	return 0
}

func (b *builder) addAll(extents []Extent) {
	for _, e := range extents {
		b.add(e)
	}
}

// add appends one extent, which begins at end. The last one stays open: what follows may continue it.
func (b *builder) add(e Extent) {
	b.open = appendMerged(b.open, e)
	if len(b.open) == chunkLen {
		b.emit(chunkLen - 1)
	}
}

// emit closes the first n of the open extents into a chunk.
func (b *builder) emit(n int) {
	c := &chunk{extents: slices.Clip(b.open[:n])}
	for _, e := range c.extents {
		c.bytes[e.State] += e.Len
	}
	b.take(c)
	b.open = append(make([]Extent, 0, chunkLen), b.open[n:]...)
}

// take appends a finished chunk, which begins at end.
func (b *builder) take(c *chunk) {
	b.l.starts = append(b.l.starts, c.extents[0].FileOff)
	b.l.chunks = append(b.l.chunks, c)
	b.l.count += len(c.extents)
	for s, n := range c.bytes {
		b.l.bytes[s] += n
	}
}

// adopt shares chunks [first, last) of another Layout; they begin at end and do not continue what
// is open.
func (b *builder) adopt(from *Layout, first, last int) {
	if first >= last {
		return
	}
	b.flush()
	b.l.starts = slices.Grow(b.l.starts, last-first+4)
	b.l.chunks = slices.Grow(b.l.chunks, last-first+4)
	for _, c := range from.chunks[first:last] {
		b.take(c)
	}
}

func (b *builder) flush() {
	if len(b.open) > 0 {
		b.emit(len(b.open))
	}
}

func (b *builder) finish() *Layout {
	b.flush()
	return b.l
}
