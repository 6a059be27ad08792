package protocol

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"lunar/datapath/layout"
)

var (
	simSeed  = flag.Uint64("seed", 0, "replay this seed of TestSimulation alone")
	simSeeds = flag.Uint64("seeds", 400, "seeds that TestSimulation runs")
)

// TestSimulation runs the coordinator's and the holders' state machines over a model of file system,
// device and network; one seed decides everything that happens.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		simulate(t, *simSeed)
		return
	}
	for seed := uint64(1); seed <= *simSeeds && !t.Failed(); seed++ {
		simulate(t, seed)
	}
}

func simulate(t *testing.T, seed uint64) {
	s := newSim(seed)
	for step := range simSteps {
		s.step(step < simSteps*3/4)
		if err := s.check(); err != nil {
			t.Errorf("seed %d, step %d: %v", seed, step, err)
			return
		}
	}
	for range 100_000 {
		if !s.step(false) {
			break
		}
		if err := s.check(); err != nil {
			t.Errorf("seed %d, at the end: %v", seed, err)
			return
		}
	}
	if err := s.ended(); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
}

const (
	simBlocks  = 8 // of the image; a block is one byte long
	simHolders = 3
	simLanes   = 2
	simSteps   = 300
	foreign    = -1 // what a block holds that is not the image's
)

// sim is the whole world. Block 0 is a counter that only compare and write touches.
type sim struct {
	rng     *rand.Rand
	now     int
	holders []*simHolder

	table    Table
	disk     []int // content by device block
	state    []layout.State
	where    []int64       // device block by image block
	owner    []bool        // device block is the image's alone
	snapshot map[int64]int // content by device block that a snapshot has
	pending  []bool        // image block's mapping is not committed
	requests []*simRequest
	running  []*simRequest // begun at the coordinator
	outbox   [][]any       // to each holder, in order: Recall or Grant
	old      []Grant       // some that were sent, to be sent again

	history []simEvent
	added   int // successful compare and writes
	values  int
	failure error
}

type simHolder struct {
	id      HolderID
	view    *View
	flights [simLanes]Flights
	direct  []*simDirect
	parked  []*simRequest
	asked   map[uint64]*simRequest // recall number → the change that waits for it
}

// simDirect is a direct I/O under way.
type simDirect struct {
	Flight
	req  *simRequest
	lane int
	dev  int64
}

type simKind uint8

const (
	simRead simKind = iota
	simWrite
	simUnmap
	simCount // compare and write, plus one
	simShare // a snapshot
)

type simRequest struct {
	kind   simKind
	block  int64
	value  int
	began  int
	holder int
	op     *Op
	steps  int // done at the coordinator
}

// simEvent is a finished read or write of a block: the value, and when it was under way.
type simEvent struct {
	read       bool
	block      int64
	value      int
	from, till int
}

func newSim(seed uint64) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 0x51)), disk: make([]int, 1024), owner: make([]bool, 1024), snapshot: map[int64]int{},
		state: make([]layout.State, simBlocks), where: make([]int64, simBlocks), pending: make([]bool, simBlocks),
		outbox: make([][]any, simHolders), table: Table{Epoch: 1}}
	for i := range s.disk {
		s.disk[i] = foreign
	}
	for i := range s.state {
		s.state[i] = layout.Hole
	}
	for i := range simHolders {
		h := &simHolder{id: HolderID(i), asked: map[uint64]*simRequest{}}
		s.holders = append(s.holders, h)
		s.table.Join(h.id)
		h.view, _ = NewView(s.grant(layout.Range{Len: simBlocks}, 0))
	}
	return s
}

func (s *sim) grant(r layout.Range, ends uint64) Grant {
	g := Grant{Call: Call{Epoch: 1}, Generation: s.table.NextGeneration(), Size: simBlocks, Range: r, Ends: ends}
	for b := r.Off; b < r.End(); b++ {
		g.Extents = append(g.Extents, layout.Extent{FileOff: b, DevOff: s.where[b], Len: 1, State: s.state[b]})
	}
	return g
}

// step lets one thing happen; false when nothing is left to happen.
func (s *sim) step(more bool) bool {
	s.now++
	var can []func()
	if more {
		can = append(can, s.submit, s.submit)
	}
	for i, h := range s.holders {
		if len(s.outbox[i]) > 0 {
			can = append(can, func() { s.deliver(i, h) })
		}
		for _, d := range h.direct {
			can = append(can, func() { s.land(h, d) })
		}
	}
	for _, r := range s.requests {
		can = append(can, func() { s.arrive(r) })
	}
	for _, r := range s.running {
		if r.op.Runnable() {
			can = append(can, func() { s.execute(r) })
		}
	}
	if len(s.old) > 0 && more {
		can = append(can, s.repeat)
	}
	if len(can) == 0 {
		return false
	}
	can[s.rng.IntN(len(can))]()
	return true
}

// submit begins an I/O of an initiator at some holder.
func (s *sim) submit() {
	r := &simRequest{block: 1 + s.rng.Int64N(simBlocks-1), began: s.now, holder: s.rng.IntN(simHolders)}
	switch dice := s.rng.IntN(20); {
	case dice < 8:
		r.kind = simRead
	case dice < 15:
		s.values++
		r.kind, r.value = simWrite, s.values
	case dice < 17:
		r.kind = simUnmap
	case dice < 19:
		r.kind, r.block = simCount, 0
	default:
		r.kind = simShare
	}
	s.route(r)
}

// route does what volume.Image does with an I/O.
func (s *sim) route(r *simRequest) {
	h, at := s.holders[r.holder], layout.Range{Off: r.block, Len: 1}
	if r.kind > simWrite {
		s.requests = append(s.requests, r)
		return
	}
	if h.view.Waits(at) {
		h.parked = append(h.parked, r)
		return
	}
	e, direct := h.view.Direct(r.block, r.kind == simWrite)
	switch {
	case !direct:
		s.requests = append(s.requests, r)
	case e.State.Zero():
		s.finish(r, 0)
	default:
		d := &simDirect{req: r, lane: s.rng.IntN(simLanes), dev: e.DevOff + r.block - e.FileOff}
		h.flights[d.lane].Begin(&d.Flight, at)
		h.direct = append(h.direct, d)
	}
}

// land ends a direct I/O; it takes effect at this moment.
func (s *sim) land(h *simHolder, d *simDirect) {
	h.direct = slices.DeleteFunc(h.direct, func(o *simDirect) bool { return o == d })
	value := s.disk[d.dev]
	if d.req.kind == simWrite {
		s.disk[d.dev], value = d.req.value, d.req.value
	}
	h.flights[d.lane].End(&d.Flight)
	s.finish(d.req, value)
}

func (s *sim) finish(r *simRequest, value int) {
	switch r.kind {
	case simRead:
		s.history = append(s.history, simEvent{true, r.block, value, r.began, s.now})
	case simWrite, simUnmap:
		s.history = append(s.history, simEvent{false, r.block, value, r.began, s.now})
	}
}

// deliver gives a holder the next message of the coordinator.
func (s *sim) deliver(i int, h *simHolder) {
	m := s.outbox[i][0]
	s.outbox[i] = s.outbox[i][1:]
	switch m := m.(type) {
	case Recall:
		s.recalled(h, m)
	case Grant:
		next, err := h.view.Granted(m)
		if err != nil {
			s.failure = fmt.Errorf("a grant in order was refused: %w", err)
			return
		}
		h.view = next
		waiting := h.parked
		h.parked = nil
		for _, r := range waiting {
			s.route(r)
		}
	}
}

func (s *sim) recalled(h *simHolder, m Recall) {
	h.view, _ = h.view.Recalled(m)
	left := simLanes
	for lane := range simLanes {
		h.flights[lane].Drain(m.Range, func() {
			if left--; left == 0 {
				s.table.Returned(h.asked[m.Number].op, h.id)
			}
		})
	}
}

// repeat sends an old grant again: EpochOrder refuses it.
func (s *sim) repeat() {
	h, g := s.holders[s.rng.IntN(simHolders)], s.old[s.rng.IntN(len(s.old))]
	if g.Generation > h.view.Layout.Generation {
		return // not old for this one
	}
	if _, err := h.view.Granted(g); !errors.Is(err, ErrStale) {
		s.failure = fmt.Errorf("EpochOrder: generation %d was taken after %d", g.Generation, h.view.Layout.Generation)
	}
}

// arrive begins a redirected request at the coordinator.
func (s *sim) arrive(r *simRequest) {
	s.requests = slices.DeleteFunc(s.requests, func(o *simRequest) bool { return o == r })
	r.op = &Op{Range: layout.Range{Off: r.block, Len: 1}}
	switch {
	case r.kind == simShare:
		r.op.Range, r.op.Change = layout.Range{Len: simBlocks}, true
	case r.kind != simRead && (r.kind != simWrite || !s.state[r.block].Writable()):
		r.op.Change = true
	}
	s.running = append(s.running, r)
	s.admitted(s.table.Begin(r.op))
}

// admitted sends the recalls of changes that have their range.
func (s *sim) admitted(ops []*Op) {
	for _, op := range ops {
		i := slices.IndexFunc(s.running, func(r *simRequest) bool { return r.op == op })
		for _, id := range op.Awaited() {
			s.holders[id].asked[op.Number] = s.running[i]
			s.outbox[id] = append(s.outbox[id], Recall{Call: Call{Epoch: 1}, Number: op.Number, Range: op.Range})
		}
	}
}

// execute takes a runnable request one step on: compare, do it, then commit and publish it.
func (s *sim) execute(r *simRequest) {
	r.steps++
	switch {
	case r.kind == simCount && r.steps == 1:
		r.value = s.content(0)
		return
	case r.steps == 1 || r.kind == simCount && r.steps == 2:
		s.do(r)
		return
	}
	if r.op.Change {
		clear(s.pending[r.op.Range.Off:r.op.Range.End()])
		g := s.grant(r.op.Range, r.op.Number)
		for i := range s.outbox {
			s.outbox[i] = append(s.outbox[i], g)
		}
		s.old = append(s.old, g)
	}
	s.running = slices.DeleteFunc(s.running, func(o *simRequest) bool { return o == r })
	s.admitted(s.table.End(r.op))
}

// do is what the file system does. The history notes the earliest moment at which a write may count as
// acknowledged, the strictest for the reads that follow.
func (s *sim) do(r *simRequest) {
	b := r.block
	switch r.kind {
	case simRead:
		s.finish(r, s.content(b))
	case simWrite:
		if !r.op.Change && !s.state[b].Writable() { // it changed meanwhile: begin anew
			r.steps = 0
			s.restart(r)
			return
		}
		s.put(b, r.value)
		s.finish(r, r.value)
	case simUnmap:
		s.release(b)
		s.state[b], s.where[b], s.pending[b] = layout.Hole, 0, true
		s.finish(r, 0)
	case simCount:
		s.put(b, r.value+1)
		s.added++
	case simShare:
		for i, state := range s.state {
			if state == layout.Written {
				s.state[i], s.owner[s.where[i]], s.pending[i] = layout.Shared, false, true
				s.snapshot[s.where[i]] = s.disk[s.where[i]]
			}
		}
	}
}

func (s *sim) restart(r *simRequest) {
	s.running = slices.DeleteFunc(s.running, func(o *simRequest) bool { return o == r })
	s.requests = append(s.requests, r)
	s.admitted(s.table.End(r.op))
}

func (s *sim) content(b int64) int {
	if !s.state[b].Readable() {
		return 0
	}
	return s.disk[s.where[b]]
}

// put stores a value, in a new block where the image has none of its own.
func (s *sim) put(b int64, value int) {
	if s.state[b] != layout.Written {
		s.release(b)
		free := s.rng.IntN(len(s.disk))
		for s.disk[free] != foreign {
			free = (free + 1) % len(s.disk)
		}
		s.owner[free] = true
		s.state[b], s.where[b], s.pending[b] = layout.Written, int64(free), true
	}
	s.disk[s.where[b]] = value
}

// release gives a block to somebody else, who fills it at once; a snapshot keeps what it shares.
func (s *sim) release(b int64) {
	if s.state[b] == layout.Written {
		s.disk[s.where[b]], s.owner[s.where[b]] = foreign, false
	}
}

// check looks at the invariants that hold at every moment.
func (s *sim) check() error {
	if s.failure != nil {
		return s.failure
	}
	for dev, value := range s.snapshot {
		if s.disk[dev] != value {
			return fmt.Errorf("SnapshotFixed: device block %d holds %d, %d when it was shared", dev, s.disk[dev], value)
		}
	}
	for _, h := range s.holders {
		for _, d := range h.direct {
			b := d.req.block
			if !s.state[b].Readable() || s.where[b] != d.dev {
				return fmt.Errorf("RecallBeforeChange: I/O under way on device block %d, image block %d is %v at %d", d.dev, b, s.state[b], s.where[b])
			}
			if d.req.kind == simWrite && !s.owner[d.dev] {
				return fmt.Errorf("ExclusiveWrite: a write is under way on device block %d, which is not the image's alone", d.dev)
			}
		}
		if err := s.checkView(h); err != nil {
			return err
		}
	}
	return nil
}

func (s *sim) checkView(h *simHolder) error {
	for b := range int64(simBlocks) {
		if h.view.Waits(layout.Range{Off: b, Len: 1}) {
			continue
		}
		e, direct := h.view.Direct(b, true)
		dev := e.DevOff + b - e.FileOff
		if direct && (s.state[b] != layout.Written || s.where[b] != dev || !s.owner[dev]) {
			return fmt.Errorf("ExclusiveWrite: holder %d may write block %d at %d; it is %v at %d", h.id, b, dev, s.state[b], s.where[b])
		}
		if direct && s.pending[b] {
			return fmt.Errorf("CommitBeforeGrant: holder %d may write block %d, which is not committed", h.id, b)
		}
	}
	return nil
}

// ended looks at what must hold when nothing is under way any more.
func (s *sim) ended() error {
	for _, h := range s.holders {
		if len(h.direct) > 0 || len(h.parked) > 0 || h.view.Recalls() > 0 {
			return fmt.Errorf("Progress: holder %d has %d direct, %d parked I/Os, %d recalls", h.id, len(h.direct), len(h.parked), h.view.Recalls())
		}
	}
	if len(s.running) > 0 {
		return fmt.Errorf("Progress: %d operations never ended", len(s.running))
	}
	if got := s.content(0); got != s.added {
		return fmt.Errorf("Atomic: counted %d of %d", got, s.added)
	}
	for _, e := range s.history {
		if e.read {
			if err := s.readIsRight(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// readIsRight wants a write of the value that began before the read ended, and no other write wholly
// between that and the read.
func (s *sim) readIsRight(r simEvent) error {
	if r.value == foreign {
		return fmt.Errorf("NoLeak: block %d read as another's, from %d to %d", r.block, r.from, r.till)
	}
	writes := []simEvent{{block: r.block, from: -1, till: -1}}
	for _, e := range s.history {
		if !e.read && e.block == r.block {
			writes = append(writes, e)
		}
	}
	for _, w := range writes {
		over := func(o simEvent) bool { return o.from > w.till && o.till < r.from }
		if w.value == r.value && w.from <= r.till && !slices.ContainsFunc(writes, over) {
			return nil
		}
	}
	return fmt.Errorf("ReadAfterWrite: block %d read as %d, from %d to %d", r.block, r.value, r.from, r.till)
}
