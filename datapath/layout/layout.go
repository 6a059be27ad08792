package layout

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
)

// ErrInvalid means extents that overlap, are out of order, or reach beyond what they describe.
var ErrInvalid = errors.New("invalid extents")

// chunkLen is how many extents a chunk has at most; an update copies the chunks that it touches and
// the list of chunks.
const chunkLen = 256

// MaxSize bounds a file's size, so that sums of offsets and lengths cannot overflow.
const MaxSize = 1 << 60

// Layout maps a whole file: its extents tile [0, Size) in order, and neighbours that could be one
// extent are. It is immutable. Epoch and Generation say whose word it is, and which.
type Layout struct {
	Epoch, Generation uint64

	size   int64
	starts []int64  // starts[i] is where chunks[i] begins
	chunks []*chunk // none is empty
	count  int
	bytes  tally
}

// chunk is a run of extents, never changed once a Layout has it.
type chunk struct {
	extents []Extent
	bytes   tally
}

// tally is how many bytes have each state.
type tally [numStates]int64

// New makes a Layout of a file of size bytes. What extents leaves out is a Hole; what lies beyond
// size is clipped. extents must be in order and not overlap; the caller keeps them.
func New(size int64, extents []Extent) (*Layout, error) {
	if size < 0 || size > MaxSize {
		return nil, fmt.Errorf("layout: size %d: %w", size, ErrInvalid)
	}
	tiled, err := Tile(Range{0, size}, extents)
	if err != nil {
		return nil, err
	}
	b := builder{l: &Layout{size: size}}
	b.addAll(tiled)
	return b.finish(), nil
}

// Tile makes extents cover r exactly: clipped to it, merged, gaps filled with Hole. extents must be
// in order and not overlap.
func Tile(r Range, extents []Extent) ([]Extent, error) {
	out := make([]Extent, 0, len(extents)+2)
	at := r.Off
	for _, e := range extents {
		if err := e.check(); err != nil {
			return nil, err
		}
		e = e.normal().Clip(r.Off, r.End())
		if e.Len <= 0 {
			continue
		}
		if e.FileOff < at {
			return nil, fmt.Errorf("layout: %v begins before %d: %w", e, at, ErrInvalid)
		}
		out = appendMerged(out, Extent{FileOff: at, Len: e.FileOff - at, State: Hole})
		out = appendMerged(out, e)
		at = e.End()
	}
	return appendMerged(out, Extent{FileOff: at, Len: r.End() - at, State: Hole}), nil
}

func (e Extent) check() error {
	bounded := e.FileOff >= 0 && e.DevOff >= 0 && e.Len >= 0 &&
		e.FileOff <= MaxSize && e.DevOff <= MaxSize && e.Len <= MaxSize
	if !bounded || e.State >= numStates {
		return fmt.Errorf("layout: extent %+v: %w", e, ErrInvalid)
	}
	return nil
}

// Size is the file's size.
func (l *Layout) Size() int64 { return l.size }

// Len is the number of extents.
func (l *Layout) Len() int { return l.count }

// Bytes is how much of the file has the state.
func (l *Layout) Bytes(s State) int64 {
	if s >= numStates {
		return 0
	}
	return l.bytes[s]
}

// Allocated is how much of the file takes space on the device.
func (l *Layout) Allocated() (n int64) {
	for s := range numStates {
		if s.Allocated() {
			n += l.bytes[s]
		}
	}
	return n
}

// At is the extent that has the byte at off; ok is false outside the file. It does not allocate.
func (l *Layout) At(off int64) (e Extent, ok bool) {
	if off < 0 || off >= l.size {
		return Extent{}, false
	}
	c := l.chunkAt(off)
	extents := l.chunks[c].extents
	return extents[indexAt(extents, off)], true
}

// chunkAt is the chunk that has off, which lies in the file.
func (l *Layout) chunkAt(off int64) int {
	lo, hi := 0, len(l.starts)
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); l.starts[mid] <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// indexAt is the one of extents that has off.
func indexAt(extents []Extent, off int64) int {
	lo, hi := 0, len(extents)
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); extents[mid].FileOff <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// All yields every extent in order.
func (l *Layout) All() iter.Seq[Extent] { return l.In(Range{0, l.size}) }

// In yields the extents of r in order, clipped to it.
func (l *Layout) In(r Range) iter.Seq[Extent] {
	r = r.Intersect(Range{0, l.size})
	return func(yield func(Extent) bool) {
		if r.Len == 0 {
			return
		}
		c := l.chunkAt(r.Off)
		for i := indexAt(l.chunks[c].extents, r.Off); c < len(l.chunks); c, i = c+1, 0 {
			for _, e := range l.chunks[c].extents[i:] {
				if e.FileOff >= r.End() || !yield(e.Clip(r.Off, r.End())) {
					return
				}
			}
		}
	}
}

// Is tells whether every byte of r, as far as it lies in the file, has a state that want accepts.
func (l *Layout) Is(r Range, want func(State) bool) bool {
	for e := range l.In(r) {
		if !want(e.State) {
			return false
		}
	}
	return true
}

// Replace is l with r described by extents, which are tiled over r; r is clipped to the file.
func (l *Layout) Replace(r Range, extents []Extent) (*Layout, error) {
	r = r.Intersect(Range{0, l.size})
	tiled, err := Tile(r, extents)
	if err != nil {
		return nil, err
	}
	if r.Len == 0 {
		return l.clone(), nil
	}
	first, last := l.around(r)
	room := len(l.chunks[first].extents) + len(tiled) + 1
	if last > first {
		room += len(l.chunks[last].extents)
	}
	out := make([]Extent, 0, room)
	for e := range l.In(Range{l.starts[first], r.Off - l.starts[first]}) {
		out = append(out, e)
	}
	for _, e := range tiled {
		out = appendMerged(out, e)
	}
	for e := range l.In(Range{r.End(), l.chunkEnd(last) - r.End()}) {
		out = appendMerged(out, e)
	}
	return l.splice(first, last+1, chunksOf(out)), nil
}

// around is the chunks that r and what touches it lie in, and one more where these would leave a small one.
func (l *Layout) around(r Range) (first, last int) {
	first, last = l.chunkAt(max(0, r.Off-1)), l.chunkAt(min(l.size-1, r.End()))
	n := 0
	for _, c := range l.chunks[first : last+1] {
		n += len(c.extents)
	}
	switch {
	case n >= chunkLen/4:
	case last+1 < len(l.chunks):
		last++
	case first > 0:
		first--
	}
	return first, last
}

// chunksOf divides extents evenly, so that a chunk which overflowed has room in both halves. They keep extents.
func chunksOf(extents []Extent) (out []*chunk) {
	parts := (len(extents) + chunkLen - 1) / chunkLen
	for i := range parts {
		part := extents[len(extents)*i/parts : len(extents)*(i+1)/parts]
		c := &chunk{extents: slices.Clip(part)}
		for _, e := range part {
			c.bytes[e.State] += e.Len
		}
		out = append(out, c)
	}
	return out
}

// splice is l with chunks [from, to) replaced by others that cover the same range.
func (l *Layout) splice(from, to int, by []*chunk) *Layout {
	out := l.clone()
	out.starts = make([]int64, 0, len(l.starts)+len(by))
	out.chunks = slices.Concat(l.chunks[:from], by, l.chunks[to:])
	out.starts = append(out.starts, l.starts[:from]...)
	for _, c := range l.chunks[from:to] {
		out.tell(c, -1)
	}
	for _, c := range by {
		out.starts = append(out.starts, c.extents[0].FileOff)
		out.tell(c, 1)
	}
	out.starts = append(out.starts, l.starts[to:]...)
	return out
}

// tell counts a chunk in or out.
func (l *Layout) tell(c *chunk, sign int) {
	l.count += sign * len(c.extents)
	for s, n := range c.bytes {
		l.bytes[s] += int64(sign) * n
	}
}

func (l *Layout) clone() *Layout {
	c := *l
	return &c
}

// chunkEnd is the first offset behind chunk i.
func (l *Layout) chunkEnd(i int) int64 {
	if i+1 < len(l.starts) {
		return l.starts[i+1]
	}
	return l.size
}

// Resize is l with the file's size changed: clipped, or grown by a Hole.
func (l *Layout) Resize(size int64) (*Layout, error) {
	if size < 0 || size > MaxSize {
		return nil, fmt.Errorf("layout: size %d: %w", size, ErrInvalid)
	}
	if size == l.size {
		return l.clone(), nil
	}
	b := builder{l: &Layout{Epoch: l.Epoch, Generation: l.Generation, size: size}}
	keep := max(0, sort.Search(len(l.chunks), func(i int) bool { return l.chunkEnd(i) > size })-1)
	b.adopt(l, 0, min(keep, len(l.chunks)))
	from := b.end()
	for e := range l.In(Range{from, min(size, l.size) - from}) {
		b.add(e)
	}
	b.add(Extent{FileOff: b.end(), Len: size - b.end(), State: Hole})
	return b.finish(), nil
}

// With is l under another epoch and generation.
func (l *Layout) With(epoch, generation uint64) *Layout {
	c := l.clone()
	c.Epoch, c.Generation = epoch, generation
	return c
}

// Change is a range whose description differs between two layouts.
type Change struct{ Before, After Extent }

// Diff yields, in order, the ranges where the files' descriptions differ; beyond the end of the
// shorter one it counts as Withheld. Both extents of a Change cover the same range.
func Diff(before, after *Layout) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		end := max(before.size, after.size)
		for off := int64(0); off < end; {
			a, b := before.orWithheld(off, end), after.orWithheld(off, end)
			to := min(a.End(), b.End())
			a, b = a.Clip(off, to), b.Clip(off, to)
			if a != b && !yield(Change{a, b}) {
				return
			}
			off = to
		}
	}
}

func (l *Layout) orWithheld(off, end int64) Extent {
	if e, ok := l.At(off); ok {
		return e
	}
	return Extent{FileOff: off, Len: end - off, State: Withheld}
}

// Extents is a copy of all extents.
func (l *Layout) Extents() []Extent { return slices.Collect(l.All()) }
