package protocol

import (
	"slices"
	"time"

	"lunar/datapath/layout"
)

// Messages between a node and a coordinator, beside Recall and Grant.
type (
	attachMessage      struct{ incarnation uint64 }
	acknowledgeMessage struct{ epoch uint64 }
	returnMessage      struct{ number uint64 }
	requestMessage     struct {
		simRequest // as it was when it was sent
		of         *simRequest
	}
	attachedMessage struct {
		incarnation uint64
		grant       Grant
	}
	replyMessage struct {
		req   *simRequest
		from  *simCoord
		value int
		stale bool
	}
)

// simLink is a connection; each direction keeps its order. Recalls and grants outlive a break, calls
// and answers do not.
type simLink struct{ up, down []any }

// simCoord is one coordinator's term, as the package coordinator runs it.
type simCoord struct {
	s       *sim
	node    *simNode
	term    *Term
	table   Table
	mem     *simFS // the mount
	dead    bool   // unmounted, or shut down
	ending  bool   // to be handed over
	links   map[*simNode]*simLink
	holders map[HolderID]*simNode
	last    HolderID
	pending []*simCall // wait for the barrier
	running []*simCall
}

// simCall is a request at the coordinator.
type simCall struct {
	simRequest
	of    *simRequest
	from  *simNode
	op    *Op
	steps int // done
	gone  bool
	lost  []HolderID // whose return may have been lost
	value int
}

func (c *simCoord) serves() bool { return !c.dead && !c.ending && c.node.healthy() }

func (c *simCoord) clock() time.Time { return time.Unix(int64(c.s.now), 0) }

func (c *simCoord) events(can []event) []event {
	s := c.s
	if c.dead {
		return can
	}
	if s.trouble && !c.node.fenced {
		can = append(can, event{1, "flush", c.flush}) // the kernel does not stop with a process
	}
	if !c.node.runs() {
		return can
	}
	for _, n := range s.nodes {
		if l := c.links[n]; l != nil && len(l.up) > 0 {
			can = append(can, event{4, "receive", func() { c.receive(n, l) }})
		}
		if slices.Contains(c.term.Awaited(), n.id) {
			can = c.timeouts(can, n)
		}
	}
	for _, call := range c.running {
		can = c.callEvents(can, call)
	}
	for _, call := range c.pending {
		if c.term.Passed() {
			can = append(can, event{4, "passed", func() { c.pending = without(c.pending, call); c.begin(call) }})
		}
	}
	if _, kept := c.table.Oldest(); kept && !slices.ContainsFunc(c.running, func(o *simCall) bool { return o.kind == simRelease }) {
		can = append(can, event{1, "quiet", c.quiet})
	}
	if s.trouble {
		can = append(can, event{2, "term fails", c.shut}, event{3, "handover", c.handover})
	}
	return can
}

func (c *simCoord) callEvents(can []event, call *simCall) []event {
	if call.op == nil || call.op.Runnable() {
		return append(can, event{4, "execute", func() { c.execute(call) }})
	}
	for _, id := range call.op.Awaited() {
		n := c.holders[id]
		can = c.timeouts(can, n)
		if l := c.links[n]; l != nil && slices.Contains(call.lost, id) {
			can = append(can, event{4, "ask again", func() {
				call.lost = slices.DeleteFunc(call.lost, func(o HolderID) bool { return o == id })
				l.down = append(l.down, c.recallOf(call.op))
			}})
		}
	}
	return can
}

// timeouts of a node that is not heard; rarely of one that is merely slow.
func (c *simCoord) timeouts(can []event, n *simNode) []event {
	if n == c.node || c.node.fenced || n.healthy() && (!c.s.trouble || c.s.rng.IntN(4) > 0) {
		return can
	}
	return append(can, event{1, "time-out", func() {
		if !c.s.expelOnly {
			c.s.fence(n)
		}
		c.term.Expel(n.id)
		c.leave(n)
	}})
}

// leave takes what a node held as returned.
func (c *simCoord) leave(n *simNode) {
	for id, o := range c.holders {
		if o == n {
			delete(c.holders, id)
			c.table.Leave(id)
		}
	}
}

func without[T comparable](list []T, one T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o == one })
}

// flush writes the journal.
func (c *simCoord) flush() {
	s := c.s
	switch {
	case c.node.fenced:
		c.shut()
		return
	case c != s.newest():
		s.fail("OneMount: term %d wrote its journal in term %d", c.term.Epoch(), s.newest().term.Epoch())
		return
	}
	for dev := range c.mem.refs {
		if c.mem.refs[dev] == 0 && s.durable.refs[dev] > 0 {
			s.disk[dev] = foreign // somebody else has it, and fills it at once
		}
	}
	s.durable = c.mem.clone()
}

// shut ends the term and the mount, as a crash does.
func (c *simCoord) shut() {
	c.term.End()
	c.dead, c.running, c.pending = true, nil, nil
}

// handover ends the term in plan: who waits is sent away, what is executed ends first.
func (c *simCoord) handover() {
	c.ending = true
	c.term.End()
	for _, call := range slices.Concat(c.pending, c.running) {
		if call.op == nil || call.steps == 0 {
			c.giveUp(call)
		}
	}
	c.pending = nil
	c.endIfIdle()
}

func (c *simCoord) endIfIdle() {
	if c.ending && len(c.running) == 0 && !c.dead {
		c.flush()
		c.shut()
	}
}

// giveUp ends a call that waits; a recall that it began ends with it.
func (c *simCoord) giveUp(call *simCall) {
	if call.op != nil && call.op.admitted && call.op.Change {
		c.publish(call.op.Range, call.op.Number)
	}
	c.answer(call, replyMessage{stale: true})
	c.end(call)
}

func (c *simCoord) answer(call *simCall, m replyMessage) {
	if l := c.links[call.from]; l != nil && !call.gone && call.of != nil {
		m.req, m.from = call.of, c
		l.down = append(l.down, m)
	}
}

func (c *simCoord) end(call *simCall) {
	c.running = without(c.running, call)
	if call.op != nil {
		c.admitted(c.table.End(call.op))
	}
	c.endIfIdle()
}

// drop breaks the connection to a node: its calls that wait are ended, nobody hears of the others.
func (c *simCoord) drop(n *simNode) {
	l := c.links[n]
	if l == nil {
		return
	}
	l.up = nil
	if !c.s.lateTry {
		l.down = slices.DeleteFunc(l.down, func(m any) bool { _, answer := m.(replyMessage); return answer })
	}
	if !n.up {
		delete(c.links, n)
	}
	for _, call := range slices.Concat(c.pending, c.running) {
		if call.op != nil && slices.ContainsFunc(call.op.awaited, func(id HolderID) bool { return c.holders[id] == n }) {
			for id, o := range c.holders {
				if o == n {
					call.lost = append(call.lost, id)
				}
			}
		}
		if call.from != n || call.gone {
			continue
		}
		call.gone = true
		if c.pending = without(c.pending, call); call.op != nil && call.steps == 0 {
			c.giveUp(call)
		}
	}
	for _, r := range n.away {
		if r.sent == c {
			r.sent, r.retry = nil, true
		}
	}
	if n.joining == c {
		n.joining = nil
	}
	if n.home == c && !c.dead && !slices.Contains(l.up, any(acknowledgeMessage{c.term.Epoch()})) {
		l.up = append(l.up, acknowledgeMessage{c.term.Epoch()}) // again, lest it was lost
	}
}

// executes tells whether an earlier try of r is still under way.
func (c *simCoord) executes(r *simRequest) bool {
	return slices.ContainsFunc(c.running, func(o *simCall) bool { return o.of == r })
}

func (c *simCoord) receive(n *simNode, l *simLink) {
	m := l.up[0]
	l.up = l.up[1:]
	switch m := m.(type) {
	case attachMessage:
		lost, err := c.term.Hello(n.id, m.incarnation)
		if err != nil || c.term.Admit(n.id) != nil {
			return
		}
		if lost {
			c.leave(n)
		}
		c.begin(&simCall{simRequest: simRequest{kind: simAttach, began: int(m.incarnation)}, from: n})
	case acknowledgeMessage:
		_, _ = c.term.Acknowledge(n.id, m.epoch)
	case returnMessage:
		for _, call := range c.running {
			if call.op == nil || call.op.Number != m.number || !call.op.Change {
				continue
			}
			for id, o := range c.holders {
				if o == n {
					c.table.Returned(call.op, id)
				}
			}
		}
	case requestMessage:
		c.arrive(&simCall{simRequest: m.simRequest, of: m.of, from: n})
	}
}

// arrive begins a request, or lets it wait for the barrier.
func (c *simCoord) arrive(call *simCall) {
	alloc := call.kind == simWrite
	switch {
	case c.term.Check(c.term.Epoch()) != nil:
		c.answer(call, replyMessage{stale: true})
	case c.needsChange(call) && !c.term.Passed() && !c.s.noBarrier && !(alloc && c.s.allocEarly):
		c.pending = append(c.pending, call)
	default:
		c.begin(call)
	}
}

func (c *simCoord) needsChange(call *simCall) bool {
	switch call.kind {
	case simWrite:
		return !c.mem.state[call.block].Writable()
	case simUnmap, simCount, simShare, simGrow:
		return true
	}
	return false
}

func (c *simCoord) begin(call *simCall) {
	c.running = append(c.running, call)
	switch call.kind {
	case simCreate:
		return
	case simShare, simAttach:
		call.op = &Op{Range: Everywhere, Change: call.kind == simShare}
	case simGrow:
		call.op = &Op{Range: layout.Range{Off: simBlocks - 3, Len: layout.MaxSize - simBlocks}, Change: true}
	default:
		call.op = &Op{Range: call.span(), Change: c.needsChange(call)}
	}
	c.admitted(c.table.Begin(call.op))
}

func (c *simCoord) recallOf(op *Op) Recall {
	return Recall{Call: Call{Epoch: c.term.Epoch()}, Number: op.Number, Range: op.Range}
}

// admitted sends the recalls of changes that have their range.
func (c *simCoord) admitted(ops []*Op) {
	for _, op := range ops {
		i := slices.IndexFunc(c.running, func(call *simCall) bool { return call.op == op })
		for _, id := range op.Awaited() {
			if c.s.keepNoRecall && c.running[i].kind == simCount {
				c.table.Returned(op, id)
			} else if l := c.links[c.holders[id]]; l != nil {
				l.down = append(l.down, c.recallOf(op))
			} else {
				c.running[i].lost = append(c.running[i].lost, id)
			}
		}
	}
}

func (c *simCoord) grant(r layout.Range, ends uint64) Grant {
	r = r.Intersect(layout.Range{Len: c.mem.size})
	g := Grant{Call: Call{Epoch: c.term.Epoch()}, Generation: c.table.NextGeneration(), Size: c.mem.size, Range: r, Ends: ends}
	for b := r.Off; b < r.End(); b++ {
		g.Extents = append(g.Extents, layout.Extent{FileOff: b, DevOff: c.mem.where[b], Len: 1, State: c.mem.state[b]})
	}
	g.Extents = c.table.Grantable(g.Extents)
	return g
}

func (c *simCoord) publish(r layout.Range, ends uint64) {
	g := c.grant(r, ends)
	for _, n := range c.holders {
		if l := c.links[n]; l != nil {
			l.down = append(l.down, g)
		}
	}
}

// quiet lets go of the oldest range that is kept for compare and write.
func (c *simCoord) quiet() {
	if r, ok := c.table.Quiet(c.clock()); ok {
		c.begin(&simCall{simRequest: simRequest{kind: simRelease, block: r.Off}})
	}
}

// execute takes a runnable call one step on.
func (c *simCoord) execute(call *simCall) {
	call.steps++
	c.s.log("term %d on %s: kind %d of block %d, step %d, retry %v, from %v", c.term.Epoch(), c.node.id, call.kind, call.block, call.steps, call.retry, call.simRequest.value)
	switch {
	case call.kind == simAttach:
		c.attach(call)
	case call.kind == simRelease:
		if c.table.Release(call.span(), c.clock()) {
			c.publish(call.span(), 0)
		}
		c.end(call)
	case c.node.fenced: // its I/O fails
		c.shut()
	case call.op != nil && !call.op.Change:
		c.inPlace(call)
	default:
		c.change(call)
	}
}

func (c *simCoord) attach(call *simCall) {
	n := call.from
	if !call.gone && c.term.Admit(n.id) == nil && c.term.process[n.id] == uint64(call.began) {
		c.leave(n) // an attach whose answer was lost
		c.last++
		c.holders[c.last] = n
		c.table.Join(c.last)
		if l := c.links[n]; l != nil {
			l.down = append(l.down, attachedMessage{uint64(call.began), c.grant(Everywhere, 0)})
		}
	}
	c.end(call)
}

// inPlace reads, or writes where the blocks are there.
func (c *simCoord) inPlace(call *simCall) {
	b := call.block
	switch {
	case call.kind == simRead:
		c.answer(call, replyMessage{value: c.s.content(c.mem, b)})
	case !c.mem.state[b].Writable(): // it changed meanwhile: begin anew
		c.end(call)
		call.steps, call.op = 0, nil
		if !call.gone {
			c.arrive(call)
		}
		return
	default:
		c.s.disk[c.mem.where[b]] = call.simRequest.value
		c.answer(call, replyMessage{value: call.simRequest.value})
	}
	c.end(call)
}

// Steps of a change.
const (
	stepCompare = 1 + iota
	stepDo
	stepCommit
	stepPublish
)

func (c *simCoord) change(call *simCall) {
	switch call.steps {
	case stepCompare:
		call.value = call.simRequest.value
		if call.kind == simCount {
			c.table.Keep(call.span(), c.clock())
			if is := c.s.content(c.mem, 0); is != call.expect && !(call.retry && is == call.value) {
				call.value, call.steps = is, stepCommit
			}
		}
	case stepDo:
		if !c.do(call) {
			call.steps = stepCommit // refused, without effect
			call.value = foreign
		}
	case stepCommit:
		freed := call.kind == simUnmap && c.s.lazyFree
		if !c.s.noCommit && !freed {
			c.flush()
		}
	case stepPublish:
		if call.op != nil {
			c.publish(call.op.Range, call.op.Number)
		}
		c.answer(call, replyMessage{value: call.value})
		c.end(call)
	}
}

// do is what the file system does in memory, and data on the device; false when it is full.
func (c *simCoord) do(call *simCall) bool {
	f, b := c.mem, call.block
	switch call.kind {
	case simWrite, simCount:
		return c.put(b, call.simRequest.value)
	case simUnmap:
		c.release(b)
		f.state[b], f.where[b] = layout.Hole, 0
	case simGrow:
		f.size = min(f.size+1, simBlocks)
	case simCreate:
		if f.made[call.simRequest.value] == 0 || c.s.noKey {
			f.made[call.simRequest.value]++
		}
	case simShare:
		c.share()
	}
	return true
}

// put stores a value, in a new block where the image has none of its own. What the journal still has
// in use is not taken.
func (c *simCoord) put(b int64, value int) bool {
	f, s := c.mem, c.s
	if f.state[b] != layout.Written {
		var free []int64
		for dev := range f.refs {
			if f.refs[dev] == 0 && s.durable.refs[dev] == 0 {
				free = append(free, int64(dev))
			}
		}
		if len(free) == 0 {
			return false
		}
		c.release(b)
		f.state[b], f.where[b] = layout.Written, free[s.rng.IntN(len(free))]
		f.refs[f.where[b]] = 1
	}
	s.disk[f.where[b]] = value
	return true
}

func (c *simCoord) release(b int64) {
	if c.mem.state[b].Readable() {
		c.mem.refs[c.mem.where[b]]--
	}
}

// share makes a snapshot, instead of the one before.
func (c *simCoord) share() {
	f := c.mem
	for dev := range f.snap {
		f.refs[dev]--
	}
	clear(f.snap)
	for b, state := range f.state {
		if state.Readable() {
			f.state[b] = layout.Shared
			f.refs[f.where[b]]++
			f.snap[f.where[b]] = c.s.disk[f.where[b]]
		}
	}
}
