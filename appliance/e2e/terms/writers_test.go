package terms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// slotSize is what a writer writes at once. Every slot belongs to one writer, and is read by all.
const slotSize = 4096

// slot is what is known of a slot: the version that was begun last, and the one acknowledged last.
// Version 0 is that of a hole.
type slot struct {
	begun, acked atomic.Uint64
	unmaps       sync.Map // versions that are an unmap
}

// writers write, read, unmap and swap slots of one image through all nodes, and check each read against
// what was acknowledged before it began and begun before it ended (ReadAfterWrite).
type writers struct {
	s     *san
	ims   []*volume.Image
	slots []slot
	quit  chan struct{}
	all   sync.WaitGroup

	mixed   bool // unmaps and swaps too
	count   atomic.Int64
	longest atomic.Int64 // ns; of all operations
	failed  atomic.Pointer[error]
}

// writers starts so many of them on each node.
func (s *san) writers(ims []*volume.Image, each int) *writers {
	return s.start(&writers{ims: ims}, each)
}

func (s *san) start(w *writers, each int) *writers {
	s.t.Helper()
	w.s, w.quit = s, make(chan struct{})
	w.slots = make([]slot, int(w.ims[0].Size()/slotSize))
	for i := range each * len(s.nodes) {
		w.all.Go(func() { w.run(i, each*len(s.nodes)) })
	}
	return w
}

// stop ends them, and reads every slot on every node.
func (w *writers) stop() {
	w.s.t.Helper()
	close(w.quit)
	w.all.Wait()
	if err := w.failed.Load(); err != nil {
		w.s.t.Fatal(*err)
	}
	for i, n := range w.s.nodes {
		if err := w.readAll(n, w.ims[i]); err != nil {
			w.s.t.Fatal(err)
		}
	}
	if w.count.Load() == 0 {
		w.s.t.Error("nothing was done")
	}
}

func (w *writers) run(i, of int) {
	rng := rand.New(rand.NewPCG(uint64(i), 0x7e))
	n, im := w.s.nodes[i%len(w.s.nodes)], w.ims[i%len(w.ims)]
	for {
		select {
		case <-w.quit:
			return
		default:
		}
		own, other := rng.IntN(len(w.slots)/of)*of+i, rng.IntN(len(w.slots))
		began := time.Now()
		err := w.step(rng, n, im, own, other)
		took := time.Since(began)
		for was := w.longest.Load(); int64(took) > was && !w.longest.CompareAndSwap(was, int64(took)); was = w.longest.Load() {
		}
		if err != nil {
			err = fmt.Errorf("%s: after %v: %w", n.name, took, err)
			w.failed.CompareAndSwap(nil, &err)
			return
		}
		w.count.Add(1)
	}
}

func (w *writers) step(rng *rand.Rand, n *node, im *volume.Image, own, other int) error {
	dice := rng.IntN(100)
	switch {
	case dice < 50:
		return w.read(n, im, other)
	case !w.mixed || dice < 85:
		return w.write(n, im, own)
	case dice < 90:
		return w.swap(n, im, own)
	case dice < 97:
		return w.unmap(im, own)
	}
	return im.Sync()
}

// content is a slot's content, recognisable in each sector.
func content(k int, version uint64) []byte {
	p := make([]byte, slotSize)
	if version == 0 {
		return p
	}
	for s := 0; s < len(p); s += 512 {
		binary.LittleEndian.PutUint64(p[s:], uint64(k)<<16|uint64(s)|1<<63)
		binary.LittleEndian.PutUint64(p[s+8:], version)
	}
	return p
}

func (w *writers) write(n *node, im *volume.Image, k int) error {
	v := w.slots[k].begun.Add(1)
	err := n.write(im, content(k, v), int64(k)*slotSize)
	w.slots[k].acked.Store(v)
	return err
}

func (w *writers) unmap(im *volume.Image, k int) error {
	v := w.slots[k].begun.Load() + 1
	w.slots[k].unmaps.Store(v, true)
	w.slots[k].begun.Store(v)
	err := im.Discard(int64(k)*slotSize, slotSize)
	w.slots[k].acked.Store(v)
	return err
}

// swap compares with what this writer wrote last, and so has to match.
func (w *writers) swap(n *node, im *volume.Image, k int) error {
	v := w.slots[k].acked.Load()
	now := content(k, v)
	if _, unmapped := w.slots[k].unmaps.Load(v); unmapped {
		now = content(k, 0)
	}
	w.slots[k].begun.Store(v + 1)
	at, err := n.swap(im, now, content(k, v+1), int64(k)*slotSize)
	if errors.Is(err, protocol.ErrOutcome) {
		p, err := n.read(im, int64(k)*slotSize, slotSize)
		switch {
		case err != nil:
			return err
		case bytes.Equal(p, now):
			return nil
		case !bytes.Equal(p, content(k, v+1)):
			return fmt.Errorf("Once: slot %d, version %d: neither what was there nor what was written", k, v)
		}
		w.slots[k].acked.Store(v + 1)
		return nil
	}
	if err == nil && at >= 0 {
		err = fmt.Errorf("Atomic: slot %d, version %d differs at %d", k, v, at)
	}
	w.slots[k].acked.Store(v + 1)
	return err
}

func (w *writers) read(n *node, im *volume.Image, k int) error {
	low := w.slots[k].acked.Load()
	p, err := n.read(im, int64(k)*slotSize, slotSize)
	high := w.slots[k].begun.Load()
	if err != nil {
		return err
	}
	return w.check(n, k, p, low, high)
}

// readAll checks every slot, when nothing is written any more.
func (w *writers) readAll(n *node, im *volume.Image) error {
	const step = 64
	for first := 0; first < len(w.slots); first += step {
		p, err := n.read(im, int64(first)*slotSize, step*slotSize)
		for k := first; err == nil && k < first+step; k++ {
			err = w.check(n, k, p[(k-first)*slotSize:][:slotSize], w.slots[k].acked.Load(), w.slots[k].begun.Load())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// check wants a version of slot k from low to high.
func (w *writers) check(n *node, k int, p []byte, low, high uint64) error {
	for v := low; v <= high; v++ {
		want := content(k, v)
		if _, unmapped := w.slots[k].unmaps.Load(v); unmapped {
			want = content(k, 0)
		}
		if bytes.Equal(p, want) {
			return nil
		}
	}
	return fmt.Errorf("ReadAfterWrite: slot %d on %s has version %d (%x), may have %d to %d", k, n.name,
		binary.LittleEndian.Uint64(p[8:]), p[:16], low, high)
}

// reset forgets the longest time so far.
func (w *writers) reset() time.Duration { return time.Duration(w.longest.Swap(0)) }

// fill writes all of an image, so that all I/O may be direct.
func (n *node) fill(im *volume.Image) {
	n.s.t.Helper()
	zero := make([]byte, mib)
	for off := int64(0); off < im.Size(); off += mib {
		n.s.must(n.write(im, zero, off))
	}
}

// TestFailoverDoesNotStallDirectIO takes the coordinator's power every 200 ms, while writers on three
// nodes go on directly, and others through the coordinator. LUNAR_RUNS holds the bar of 100 ms; CI may be busy with
// other things, and only looks for a stall that no machine explains.
func TestFailoverDoesNotStallDirectIO(t *testing.T) {
	s := newSAN(t, 3, coordinator.XFS)
	s.begin(0)
	s.nodes[0].create("direct", 8*mib)
	s.nodes[0].create("thin", 32*mib)
	direct, thin := s.openAll("direct"), s.openAll("thin")
	s.nodes[0].fill(direct[0])
	d, m := s.writers(direct, 1), s.start(&writers{ims: thin, mixed: true}, 1)
	time.Sleep(500 * time.Millisecond)
	calm, calmMixed := d.reset(), m.reset()
	var elections, gap time.Duration
	const terms = 15
	for i := range terms {
		began := time.Now()
		s.kill()
		s.begin((i + 1) % 3)
		took := time.Since(began)
		elections += took
		gap = max(gap, took)
		time.Sleep(200*time.Millisecond - min(took, 150*time.Millisecond))
	}
	stall, stallMixed := d.reset(), m.reset()
	t.Logf("%d terms, %v without a coordinator on average, %v at most; longest direct I/O %v (%v before), longest other %v (%v before); %d and %d operations",
		terms, (elections / terms).Round(time.Millisecond), gap, stall, calm, stallMixed, calmMixed, d.count.Load(), m.count.Load())
	d.stop()
	m.stop()
	limit := 5*time.Second + calm
	if os.Getenv("LUNAR_RUNS") != "" && !raceEnabled {
		limit = 100*time.Millisecond + calm
	}
	if stall > limit {
		t.Errorf("direct I/O stalled for %v", stall)
	}
}
