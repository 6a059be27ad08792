package protocol

import (
	"slices"

	"lunar/datapath/layout"
)

type simKind uint8

const (
	simRead simKind = iota
	simWrite
	simUnmap
	simCount   // compare and write, plus one
	simShare   // a snapshot
	simGrow    // the image
	simCreate  // a file, by key
	simAttach  // a holder
	simRelease // what was kept for compare and write
)

// simRequest is a command of an initiator, for as long as its node tries it.
type simRequest struct {
	kind   simKind
	block  int64
	value  int // that is written, or the key of a file
	expect int
	began  int
	retry  bool
	sent   *simCoord // has it, or had it
}

func (r *simRequest) span() layout.Range { return layout.Range{Off: r.block, Len: 1} }

// simDirect is a direct I/O under way.
type simDirect struct {
	Flight
	req  *simRequest
	lane int
	dev  int64
}

// simNode is a machine with one process that has the image open.
type simNode struct {
	s           *sim
	id          NodeID
	incarnation uint64
	up          bool // the process lives
	paused      bool
	fenced      bool

	view    *View
	home    *simCoord // under whose term view is
	joining *simCoord // that it attaches to
	flights [simLanes]Flights
	direct  []*simDirect
	ghosts  []*simDirect // of a process that is gone, still with the kernel
	parked  []*simRequest
	away    []*simRequest
	seen    int // counter, as heard last
}

func (n *simNode) runs() bool    { return n.up && !n.paused }
func (n *simNode) healthy() bool { return n.runs() && !n.fenced }

// events of a node: those of its kernel happen also while its process is stopped.
func (n *simNode) events(can []event) []event {
	s := n.s
	for _, d := range n.direct {
		if n.runs() {
			can = append(can, event{2, "land", func() { n.land(d) }})
		}
	}
	for _, d := range n.ghosts {
		can = append(can, event{1, "ghost", func() { n.landGhost(d) }})
	}
	if (!n.up || n.fenced && !n.paused) && (len(n.ghosts) == 0 || s.earlyHello) {
		can = append(can, event{2, "restart", n.restart})
	}
	if n.up && n.paused {
		can = append(can, event{1, "resume", func() { n.paused = false }})
	}
	if !n.runs() {
		return can
	}
	if c := s.newest(); c != n.home && c != n.joining && c.serves() {
		can = append(can, event{3, "follow", func() { n.follow(c) }})
	}
	for _, c := range s.coords {
		if l := c.links[n]; l != nil && len(l.down) > 0 {
			can = append(can, event{4, "deliver", func() { n.deliver(c, l) }})
		}
	}
	for _, r := range n.away {
		if r.sent == nil && n.home != nil && !n.home.executes(r) {
			can = append(can, event{4, "send", func() { n.send(r) }})
		}
	}
	if s.calm {
		return can
	}
	if len(n.direct)+len(n.parked)+len(n.away) < simQueue {
		can = append(can, event{3, "submit", n.submit})
	}
	if s.trouble {
		can = append(can, event{2, "redirect", n.toggle}, event{2, "crash", n.crash}, event{6, "pause", func() { n.paused = true }})
		if n.home != nil {
			can = append(can, event{6, "drop", func() { n.home.drop(n) }})
		}
	}
	return can
}

// submit begins an I/O of an initiator.
func (n *simNode) submit() {
	s := n.s
	r := &simRequest{block: 1 + s.rng.Int64N(simBlocks-1), began: s.now}
	s.values++
	switch dice := s.rng.IntN(24); {
	case dice < 9:
		r.kind, r.block = simRead, s.rng.Int64N(simBlocks)
	case dice < 18:
		r.kind, r.value = simWrite, s.values
	case dice < 19:
		r.kind = simUnmap
	case dice < 21:
		r.kind, r.block, r.expect, r.value = simCount, 0, n.seen, (n.seen/token+1)*token+s.values%token
	case dice < 22:
		r.kind = simShare
	case dice < 23:
		r.kind = simGrow
	default:
		r.kind, r.value = simCreate, s.values
	}
	n.route(r)
}

// route does what volume.Image does with an I/O.
func (n *simNode) route(r *simRequest) {
	if n.view == nil {
		n.parked = append(n.parked, r)
		return
	}
	if r.kind <= simUnmap && r.block >= n.view.Layout.Size() {
		return // outside: refused, without effect
	}
	if r.kind > simWrite {
		n.away = append(n.away, r)
		return
	}
	if n.view.Waits(r.span()) {
		n.parked = append(n.parked, r)
		return
	}
	e, direct := n.view.Direct(r.block, r.kind == simWrite)
	switch {
	case !direct:
		n.away = append(n.away, r)
	case e.State.Zero() && n.fenced && !n.s.noLease:
		n.parked = append(n.parked, r) // its lease is over
	case e.State.Zero():
		n.finish(r, 0)
	case n.fenced && !(n.s.readsPass && r.kind == simRead):
		n.away = append(n.away, r) // a path error
	default:
		d := &simDirect{req: r, lane: n.s.rng.IntN(simLanes), dev: e.DevOff + r.block - e.FileOff}
		n.flights[d.lane].Begin(&d.Flight, r.span())
		n.direct = append(n.direct, d)
	}
}

// again redirects what the device did not do.
func (n *simNode) again(r *simRequest) { n.away = append(n.away, r) }

// land ends a direct I/O; it takes effect at this moment.
func (n *simNode) land(d *simDirect) {
	n.direct = slices.DeleteFunc(n.direct, func(o *simDirect) bool { return o == d })
	value := n.effect(d)
	n.flights[d.lane].End(&d.Flight)
	n.finish(d.req, value)
}

func (n *simNode) landGhost(d *simDirect) {
	n.ghosts = slices.DeleteFunc(n.ghosts, func(o *simDirect) bool { return o == d })
	n.effect(d)
}

func (n *simNode) effect(d *simDirect) int {
	if d.req.kind == simWrite {
		n.s.disk[d.dev] = d.req.value
	}
	return n.s.disk[d.dev]
}

// finish answers the initiator.
func (n *simNode) finish(r *simRequest, value int) {
	s := n.s
	s.log("%s: kind %d of block %d ends: %d, began %d, retry %v", n.id, r.kind, r.block, value, r.began, r.retry)
	switch r.kind {
	case simRead:
		if r.block == 0 {
			n.seen = value
		}
		s.history = append(s.history, simEvent{true, r.block, value, r.began, s.now})
	case simWrite, simUnmap:
		s.history = append(s.history, simEvent{false, r.block, r.value, r.began, s.now})
	case simCreate:
		s.created[r.value] = true
	case simCount:
		switch n.seen = value; {
		case value == r.value:
			s.added++
		case r.retry: // an earlier try may have done it, and another counted on since
			s.unsure++
		}
	}
}

// lose forgets what initiators wait for: it may have happened, or still happen.
func (n *simNode) lose(r *simRequest) {
	n.s.log("%s: kind %d of block %d is lost: %d, began %d", n.id, r.kind, r.block, r.value, r.began)
	switch r.kind {
	case simWrite, simUnmap:
		n.s.history = append(n.s.history, simEvent{false, r.block, r.value, r.began, never})
	case simCount:
		n.s.unsure++
	}
}

func (n *simNode) toggle() {
	if n.view != nil {
		n.view = n.view.Redirect(!n.view.Redirected)
	}
}

// crash ends the process; what it had given to the kernel may still happen.
func (n *simNode) crash() {
	n.s.log("%s crashes, fenced %v", n.id, n.fenced)
	n.up = false
	for _, d := range n.direct {
		n.lose(d.req)
	}
	for _, r := range slices.Concat(n.parked, n.away) {
		n.lose(r)
	}
	if !n.fenced || n.s.noAbort {
		n.ghosts = append(n.ghosts, n.direct...)
	}
	n.direct, n.parked, n.away, n.view, n.home, n.joining = nil, nil, nil, nil, nil, nil
	n.flights = [simLanes]Flights{}
	for _, c := range n.s.coords {
		if c.node == n && !c.dead {
			if n.s.rng.IntN(2) == 0 {
				c.flush() // the kernel unmounts
			}
			c.shut()
		}
		c.drop(n)
	}
}

// restart brings another process, which registers anew.
func (n *simNode) restart() {
	if n.up {
		n.crash()
	}
	n.up, n.paused, n.fenced = true, false, false
	n.incarnation++
}

// follow attaches under another term; direct I/O goes on meanwhile.
func (n *simNode) follow(c *simCoord) {
	n.joining = c
	n.s.log("%s follows term %d", n.id, c.term.Epoch())
	if c.links[n] == nil {
		c.links[n] = &simLink{}
	}
	c.links[n].up = append(c.links[n].up, attachMessage{n.incarnation})
}

func (n *simNode) send(r *simRequest) {
	r.sent = n.home
	l := n.home.links[n]
	l.up = append(l.up, requestMessage{*r, r})
}

// deliver takes the next message of a coordinator.
func (n *simNode) deliver(c *simCoord, l *simLink) {
	m := l.down[0]
	l.down = l.down[1:]
	switch m := m.(type) {
	case attachedMessage:
		if c == n.joining && m.incarnation == n.incarnation {
			n.attached(c, l, m.grant)
		}
	case Recall:
		n.recalled(l, m)
	case Grant:
		n.granted(m)
	case replyMessage:
		n.answered(m)
	}
}

// attached swaps the views, while I/O that was begun under the older one goes on.
func (n *simNode) attached(c *simCoord, l *simLink, g Grant) {
	view, err := NewView(g)
	if err != nil {
		n.s.fail("a first grant was refused: %w", err)
		return
	}
	if n.view != nil {
		view = view.Redirect(n.view.Redirected)
	}
	n.view, n.home, n.joining = view, c, nil
	n.s.log("%s is in term %d: %v", n.id, c.term.Epoch(), g.Extents)
	l.up = append(l.up, acknowledgeMessage{c.term.Epoch()})
	for _, r := range n.away {
		r.retry = r.retry || r.sent != nil
		r.sent = nil
	}
	n.unpark()
}

func (n *simNode) unpark() {
	waiting := n.parked
	n.parked = nil
	for _, r := range waiting {
		n.route(r)
	}
}

func (n *simNode) granted(g Grant) {
	if n.view == nil {
		return
	}
	if n.s.noEpoch && g.Epoch < n.view.Layout.Epoch {
		g.Epoch, g.Generation = n.view.Layout.Epoch, n.view.Layout.Generation
		l, err := n.view.Layout.Replace(g.Range, g.Extents)
		if err == nil {
			next := *n.view
			next.Layout, n.view = l, &next
		}
		return
	}
	if next, err := n.view.Granted(g); err == nil {
		n.view = next
		n.s.log("%s granted %v", n.id, g.Extents)
		n.unpark()
	} else if g.Epoch >= n.view.Layout.Epoch {
		n.s.fail("a grant in order was refused: %w", err)
	}
}

func (n *simNode) recalled(l *simLink, m Recall) {
	if n.view == nil {
		return
	}
	next, err := n.view.Recalled(m)
	if err != nil {
		return // of an older term
	}
	n.view = next
	n.s.log("%s recalled %v", n.id, m.Range)
	left, process := simLanes, n.incarnation
	back := func() {
		if left--; left == 0 && process == n.incarnation {
			l.up = append(l.up, returnMessage{m.Number})
		}
	}
	for lane := range simLanes {
		if n.s.noDrain {
			back()
			continue
		}
		n.flights[lane].Drain(m.Range, back)
	}
}

func (n *simNode) answered(m replyMessage) {
	i := slices.Index(n.away, m.req)
	if i < 0 || m.req.sent != m.from {
		return // of an abandoned try
	}
	n.away = slices.Delete(n.away, i, i+1)
	if m.stale {
		m.req.retry, m.req.sent = true, nil
		n.away = append(n.away, m.req)
		return
	}
	n.finish(m.req, m.value)
}
