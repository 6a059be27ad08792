package layout

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// naive is the model: one entry per byte.
type naive []cell

type cell struct {
	state State
	dev   int64
}

func (m naive) set(e Extent) {
	for i := range e.Len {
		if at := e.FileOff + i; at < int64(len(m)) {
			m[at] = cell{state: e.State}
			if e.State.located() {
				m[at].dev = e.DevOff + i
			}
		}
	}
}

func (m naive) resize(n int64) naive {
	for int64(len(m)) < n {
		m = append(m, cell{state: Hole})
	}
	return m[:n:n]
}

func (m naive) extents() (out []Extent) {
	for off, c := range m {
		out = appendMerged(out, Extent{FileOff: int64(off), DevOff: c.dev, Len: 1, State: c.state})
	}
	return out
}

// check compares everything that a Layout answers with the model.
func check(t *testing.T, l *Layout, m naive) {
	t.Helper()
	if got, want := l.Extents(), m.extents(); !slices.Equal(got, want) {
		t.Fatalf("extents\n got %v\nwant %v", got, want)
	}
	if l.Size() != int64(len(m)) || l.Len() != len(m.extents()) {
		t.Fatalf("size %d, %d extents; want %d, %d", l.Size(), l.Len(), len(m), len(m.extents()))
	}
	var bytes tally
	for off, c := range m {
		bytes[c.state]++
		e, ok := l.At(int64(off))
		if !ok || e.State != c.state || e.State.located() && e.DevOff+int64(off)-e.FileOff != c.dev {
			t.Fatalf("At(%d) = %v, %v; want %+v", off, e, ok, c)
		}
	}
	if bytes != l.bytes {
		t.Fatalf("bytes %v, want %v", l.bytes, bytes)
	}
	for i, c := range l.chunks {
		if len(c.extents) == 0 || len(c.extents) > chunkLen || c.extents[0].FileOff != l.starts[i] {
			t.Fatalf("chunk %d: %d extents from %d", i, len(c.extents), l.starts[i])
		}
	}
}

// randomRun makes extents in order inside r, with gaps.
func randomRun(rng *rand.Rand, r Range) (out []Extent) {
	for at := r.Off; at < r.End(); {
		at += rng.Int64N(4)
		e := Extent{FileOff: at, DevOff: rng.Int64N(1000), Len: 1 + rng.Int64N(6), State: State(rng.IntN(int(numStates)))}
		if rng.IntN(2) == 0 {
			e.DevOff = at // so that some merge
		}
		out = append(out, e.normal())
		at = e.End()
	}
	return out
}

func randomRange(rng *rand.Rand, size int64) Range {
	off := rng.Int64N(size + 1)
	return Range{off, rng.Int64N(size - off + 1)}
}

func TestAgainstNaiveModel(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 1))
		size := rng.Int64N(3000)
		run := randomRun(rng, Range{0, size})
		l, err := New(size, run)
		if err != nil {
			t.Fatal(seed, err)
		}
		m := naive{}.resize(size)
		for _, e := range run {
			m.set(e)
		}
		check(t, l, m)
		for range 40 {
			before, model := l, slices.Clone(m)
			l, m = step(t, rng, l, m)
			check(t, l, m)
			check(t, before, model) // immutable
			checkDiff(t, before, l)
		}
	}
}

func step(t *testing.T, rng *rand.Rand, l *Layout, m naive) (*Layout, naive) {
	if rng.IntN(5) == 0 {
		size := rng.Int64N(3000)
		next, err := l.Resize(size)
		if err != nil {
			t.Fatal(err)
		}
		return next, m.resize(size)
	}
	r := randomRange(rng, l.Size())
	r.Len = min(r.Len, rng.Int64N(300))
	run := randomRun(rng, r)
	next, err := l.Replace(r, run)
	if err != nil {
		t.Fatal(err)
	}
	m.set(Extent{FileOff: r.Off, Len: r.Len, State: Hole})
	for _, e := range run {
		if e = e.Clip(r.Off, r.End()); e.Len > 0 {
			m.set(e)
		}
	}
	return next, m
}

// checkDiff applies the differences to before and expects after.
func checkDiff(t *testing.T, before, after *Layout) {
	t.Helper()
	got, err := before.Resize(after.Size())
	if err != nil {
		t.Fatal(err)
	}
	for c := range Diff(before, after) {
		if c.Before.FileOff != c.After.FileOff || c.Before.Len != c.After.Len {
			t.Fatalf("uneven change %v, %v", c.Before, c.After)
		}
		if got, err = got.Replace(Range{c.After.FileOff, c.After.Len}, []Extent{c.After}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got.Extents(), after.Extents()) {
		t.Fatalf("diff misses something:\n got %v\nwant %v", got.Extents(), after.Extents())
	}
}

func TestRefusesBadExtents(t *testing.T) {
	for name, extents := range map[string][]Extent{
		"overlap":      {{FileOff: 0, Len: 10, State: Written}, {FileOff: 5, Len: 10, State: Written}},
		"out of order": {{FileOff: 10, Len: 10, State: Hole}, {FileOff: 0, Len: 10, State: Written}},
		"negative":     {{FileOff: -1, Len: 10, State: Written}},
		"state":        {{FileOff: 0, Len: 10, State: numStates}},
		"overflow":     {{FileOff: 1 << 62, Len: 1 << 62, State: Written}},
	} {
		if _, err := New(100, extents); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := New(-1, nil); err == nil {
		t.Error("negative size was accepted")
	}
}

func TestSplitAndRange(t *testing.T) {
	e := Extent{FileOff: 100, DevOff: 1000, Len: 50, State: Written}
	head, tail := e.Split(120)
	if head != (Extent{100, 1000, 20, Written}) || tail != (Extent{120, 1020, 30, Written}) {
		t.Fatalf("split: %v %v", head, tail)
	}
	if r := (Range{5, 10}).Align(8); r != (Range{0, 16}) {
		t.Fatalf("align: %v", r)
	}
	if (Range{0, 10}).Overlaps(Range{10, 5}) || !(Range{0, 10}).Contains(Range{0, 10}) {
		t.Fatal("ranges are half open")
	}
	if r := (Range{0, 10}).Intersect(Range{20, 5}); r.Len != 0 {
		t.Fatalf("intersect: %v", r)
	}
}

// fragmented has n extents that cannot merge.
func fragmented(tb testing.TB, n int) *Layout {
	extents := make([]Extent, n)
	for i := range extents {
		extents[i] = Extent{FileOff: int64(i) * 4096, DevOff: int64(n-i) * 8192, Len: 4096, State: Written}
	}
	l, err := New(int64(n)*4096, extents)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func TestManyExtentsUpdatedPiecewise(t *testing.T) {
	const n = 25_000
	l, err := New(n*4096, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(n) {
		e := Extent{FileOff: int64(i) * 4096, DevOff: int64(n-i) * 8192, Len: 4096, State: Written}
		if l, err = l.Replace(Range{e.FileOff, e.Len}, []Extent{e}); err != nil {
			t.Fatal(err)
		}
	}
	if l.Len() != n || l.Bytes(Written) != n*4096 {
		t.Fatalf("%d extents, %d bytes", l.Len(), l.Bytes(Written))
	}
	if full := n / len(l.chunks); full < chunkLen/3 {
		t.Fatalf("chunks hold only %d extents each", full)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	l := fragmented(t, 10_000)
	if n := testing.AllocsPerRun(100, func() { l.At(l.Size() / 3) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkLookup100000(b *testing.B) {
	l := fragmented(b, 100_000)
	rng := rand.New(rand.NewPCG(1, 2))
	offs := make([]int64, 4096)
	for i := range offs {
		offs[i] = rng.Int64N(l.Size())
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if e, _ := l.At(offs[i%len(offs)]); e.Len == 0 {
			b.Fatal("empty extent")
		}
	}
}

func BenchmarkReplace100000(b *testing.B) {
	l := fragmented(b, 100_000)
	rng := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		off := rng.Int64N(l.Size()) / 4096 * 4096
		next, err := l.Replace(Range{off, 4096}, []Extent{{FileOff: off, DevOff: off, Len: 4096, State: Written}})
		if err != nil {
			b.Fatal(err)
		}
		l = next
	}
}
