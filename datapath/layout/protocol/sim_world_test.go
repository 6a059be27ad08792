package protocol

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"lunar/datapath/layout"
)

const (
	simBlocks = 8 // of the image; a block is one byte long
	simDevice = 24
	simNodes  = 3
	simLanes  = 2
	simSteps  = 600
	simQuiet  = 60 // steps before the first fault
	// One step in so many may have a fault.
	simTrouble = 12
	simQueue   = 4       // commands of initiators that a node has at once
	foreign    = -1      // what a block holds that is not the image's
	never      = 1 << 60 // when something ends that may still happen
	token      = 1000    // a compare and write stores its count times token, plus who it is
)

// mutant leaves one rule out, to show that the simulation misses it.
type mutant struct {
	noCommit     bool // CommitBeforeGrant: grants what the journal does not have
	lazyFree     bool // frees blocks without a commit
	mountFirst   bool // OneMount: mounts without fencing the older coordinator
	noBarrier    bool // changes before every node has left the older epochs
	allocEarly   bool // allocates before the barrier, as nothing is freed, moved or shared by that
	noDrain      bool // NoLateWrite: returns a range while I/O is under way
	expelOnly    bool // takes a silent node as fenced
	noAbort      bool // a fence that lets I/O land which was under way
	noEpoch      bool // EpochOrder: takes grants of older terms
	earlyHello   bool // a new process says Hello while I/O of the old one is under way
	noLease      bool // a fenced node goes on to answer what needs no I/O
	readsPass    bool // a fence that stops writes alone
	noKey        bool // Once: a retry does not look for its own work
	lateTry      bool // an answer outlives its connection, and ends a call that is being tried again
	keepNoRecall bool // Atomic: compares and writes without a recall
}

// simFS is a file system: what is in its journal, or in a mount's memory.
type simFS struct {
	state [simBlocks]layout.State
	where [simBlocks]int64 // device block by image block
	size  int64
	refs  [simDevice]int
	snap  map[int64]int // content by device block that a snapshot has
	made  map[int]int   // times that a file was made, by key
}

func (f *simFS) clone() *simFS {
	c := *f
	c.snap, c.made = maps.Clone(f.snap), maps.Clone(f.made)
	return &c
}

// sim is the whole world. Block 0 is a counter that only compare and write touches.
type sim struct {
	mutant
	rng     *rand.Rand
	now     int
	disk    [simDevice]int
	durable *simFS // what the journal on the device has
	nodes   []*simNode
	coords  []*simCoord // of all terms; the last one is the newest
	calm    bool        // no more faults, no more requests
	trouble bool        // faults may happen in this step

	history []simEvent
	added   int // compare and writes that succeeded
	unsure  int // of which nobody knows
	created map[int]bool
	values  int
	failure error
	can     []event // memory of step
	tally   map[string]int
	trace   func(format string, args ...any) // nil: none
}

func (s *sim) log(format string, args ...any) {
	if s.trace != nil {
		s.trace("%d: "+format, append([]any{s.now}, args...)...)
	}
}

// simEvent is a read or write of a block: the value, and when it was under way.
type simEvent struct {
	read       bool
	block      int64
	value      int
	from, till int
}

func newSim(seed uint64, m mutant) *sim {
	s := &sim{mutant: m, rng: rand.New(rand.NewPCG(seed, 0x52)), created: map[int]bool{}, tally: map[string]int{},
		durable: &simFS{size: simBlocks - 2, snap: map[int64]int{}, made: map[int]int{}}}
	for i := range s.disk {
		s.disk[i] = foreign
	}
	for i := range s.durable.state {
		s.durable.state[i] = layout.Hole
	}
	for i := range simNodes {
		s.nodes = append(s.nodes, &simNode{s: s, id: NodeID(fmt.Sprint("n", i)), incarnation: 1, up: true})
	}
	s.elect()
	return s
}

func (s *sim) fail(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf(format, args...)
	}
}

// event is what may happen now, and how often it does beside others.
type event struct {
	weight int
	name   string
	do     func()
}

// step lets one thing happen; false when nothing is left to happen.
func (s *sim) step() bool {
	s.now++
	s.trouble = !s.calm && s.now > simQuiet && s.rng.IntN(simTrouble) == 0
	can := s.can[:0]
	for _, n := range s.nodes {
		can = n.events(can)
	}
	for _, c := range s.coords {
		can = c.events(can)
	}
	can = append(can, s.elections()...)
	s.can = can
	total := 0
	for _, e := range can {
		total += e.weight
	}
	if total == 0 {
		return false
	}
	dice := s.rng.IntN(total)
	for _, e := range can {
		if dice -= e.weight; dice < 0 {
			s.tally[e.name]++
			s.log("%s", e.name)
			e.do()
			return true
		}
	}
	return true
}

func (s *sim) newest() *simCoord { return s.coords[len(s.coords)-1] }

// elections are rare while the coordinator is well, but they happen.
func (s *sim) elections() []event {
	c := s.newest()
	weight := 4
	if c.serves() {
		if weight = 0; s.trouble {
			weight = 2
		}
	}
	if weight == 0 || !slices.ContainsFunc(s.nodes, (*simNode).healthy) {
		return nil
	}
	return []event{{weight, "elect", s.elect}}
}

// elect makes a healthy node the coordinator of the next epoch: the older one is fenced, then it mounts.
func (s *sim) elect() {
	var healthy []*simNode
	for _, n := range s.nodes {
		if n.healthy() {
			healthy = append(healthy, n)
		}
	}
	n := healthy[s.rng.IntN(len(healthy))]
	if len(s.coords) > 0 {
		if old := s.newest(); !old.dead && old.node != n && !s.mountFirst {
			s.fence(old.node)
		} else if !old.dead && old.node == n {
			old.shut() // a node knows that its own mount is dead
		}
	}
	for _, c := range s.coords {
		if !c.dead && !c.node.fenced {
			s.fail("OneMount: %s is mounted on %s, and on %s", "the volume", c.node.id, n.id)
		}
	}
	var members []NodeID
	for _, m := range s.nodes {
		if !m.fenced {
			members = append(members, m.id)
		}
	}
	epoch := uint64(len(s.coords) + 1)
	s.coords = append(s.coords, &simCoord{s: s, node: n, term: NewTerm(epoch, members), table: Table{Epoch: epoch},
		mem: s.durable.clone(), links: map[*simNode]*simLink{}, holders: map[HolderID]*simNode{}})
}

// fence lets nothing of a node reach the device any more. Its lease is over too: it answers nobody.
func (s *sim) fence(n *simNode) {
	n.fenced = true
	if s.noAbort {
		return
	}
	for _, d := range n.direct {
		if s.readsPass && d.req.kind == simRead {
			continue
		}
		n.flights[d.lane].End(&d.Flight)
		n.again(d.req)
	}
	n.direct = slices.DeleteFunc(n.direct, func(d *simDirect) bool { return !s.readsPass || d.req.kind != simRead })
	n.ghosts = nil
}

// now is the file system that a reader finds.
func (s *sim) current() *simFS {
	if c := s.newest(); !c.dead {
		return c.mem
	}
	return s.durable
}

// check looks at the invariants that hold at every moment.
func (s *sim) check() error {
	if s.failure != nil {
		return s.failure
	}
	f := s.current()
	for dev, value := range f.snap {
		if s.disk[dev] != value {
			return fmt.Errorf("SnapshotFixed: device block %d holds %d, %d when it was shared", dev, s.disk[dev], value)
		}
	}
	for key, times := range f.made {
		if times > 1 {
			return fmt.Errorf("Once: key %d made %d files", key, times)
		}
	}
	for _, n := range s.nodes {
		for _, d := range slices.Concat(n.direct, n.ghosts) {
			if n.fenced && !s.noAbort {
				continue
			}
			b := d.req.block
			if !f.state[b].Readable() || f.where[b] != d.dev {
				return fmt.Errorf("RecallBeforeChange: I/O of %s under way on device block %d, image block %d is %v at %d", n.id, d.dev, b, f.state[b], f.where[b])
			}
			if d.req.kind == simWrite && f.refs[d.dev] != 1 {
				return fmt.Errorf("ExclusiveWrite: a write of %s is under way on device block %d, which is not the image's alone", n.id, d.dev)
			}
		}
		if n.view != nil && n.up && !n.fenced {
			if err := s.checkView(n, f); err != nil {
				return err
			}
		}
	}
	return s.checkChanges()
}

func (s *sim) checkView(n *simNode, f *simFS) error {
	for b := range int64(simBlocks) {
		if n.view.Waits(layout.Range{Off: b, Len: 1}) {
			continue
		}
		e, direct := n.view.Direct(b, true)
		dev := e.DevOff + b - e.FileOff
		if direct && (f.state[b] != layout.Written || f.where[b] != dev || f.refs[dev] != 1) {
			return fmt.Errorf("ExclusiveWrite: %s may write block %d at %d; it is %v at %d", n.id, b, dev, f.state[b], f.where[b])
		}
		if direct && (s.durable.state[b] != layout.Written || s.durable.where[b] != dev) {
			return fmt.Errorf("CommitBeforeGrant: %s may write block %d at %d, which is not committed", n.id, b, dev)
		}
	}
	return nil
}

// checkChanges wants nobody beside a change that has begun.
func (s *sim) checkChanges() error {
	c := s.newest()
	if c.dead {
		return nil
	}
	for _, call := range c.running {
		if call.op == nil || !call.op.Change || call.steps == 0 {
			continue
		}
		for _, n := range s.nodes {
			for _, d := range n.direct {
				if !n.fenced && call.op.Range.Overlaps(d.Range) {
					return fmt.Errorf("Atomic: I/O of %s beside a change of block %d", n.id, d.req.block)
				}
			}
		}
	}
	return nil
}

// ended looks at what must hold when nothing is under way any more.
func (s *sim) ended() error {
	c := s.newest()
	if !c.serves() || len(c.running)+len(c.pending) > 0 || !c.term.Passed() {
		return fmt.Errorf("Progress: term %d: %d operations run, %d wait, barrier %v", c.term.Epoch(), len(c.running), len(c.pending), c.term.Awaited())
	}
	for _, n := range s.nodes {
		if n.home != c || len(n.direct)+len(n.parked)+len(n.away) > 0 || n.view.Recalls() > 0 {
			return fmt.Errorf("Progress: %s has %d direct, %d parked, %d redirected I/Os, %d recalls", n.id, len(n.direct), len(n.parked), len(n.away), n.view.Recalls())
		}
	}
	for b := range c.mem.size {
		s.history = append(s.history, simEvent{true, b, s.content(c.mem, b), s.now, s.now})
	}
	if got := s.content(c.mem, 0) / token; got < s.added || got > s.added+s.unsure {
		return fmt.Errorf("Atomic: counted %d of %d, and %d that are unsure", got, s.added, s.unsure)
	}
	for key := range s.created {
		if c.mem.made[key] != 1 {
			return fmt.Errorf("Once: key %d was acknowledged, and made %d files", key, c.mem.made[key])
		}
	}
	for _, e := range s.history {
		if e.read && e.block > 0 {
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

func (s *sim) content(f *simFS, b int64) int {
	if !f.state[b].Readable() {
		return 0
	}
	return s.disk[f.where[b]]
}
