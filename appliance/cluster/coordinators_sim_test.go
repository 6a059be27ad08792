package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The simulation drives elector, leave and the pure steps of a seat with nodes that see old views,
// whose transactions come late or twice, that are stopped and go on, and that die. It keeps a model
// of the LUN: which incarnation has it mounted, and which is fenced.

type simStore struct {
	revision int64
	sessions map[string]simSession
	seats    map[string]simSeat
	drains   map[string]bool
}

type simSession struct {
	incarnation uint64
	created     int64
	expires     time.Duration
}

type simSeat struct {
	Seat
	modified int64
}

// simNode is one node; term is what its process believes.
type simNode struct {
	name        string
	incarnation uint64 // 0: no session
	created     int64
	dead        bool
	stopped     time.Duration // until then it does nothing
	paths       map[string]bool
	elector     *elector
	view        *View
	terms       map[string]*simTerm
	inFlight    []func() // transactions that have been sent
}

type simTerm struct {
	epoch    uint64
	key      int64
	party    Party
	previous *Party
	state    TermState
	next     string
	leaving  bool
}

type simWorld struct {
	t       *testing.T
	rng     *rand.Rand
	seed    uint64
	now     time.Duration
	store   simStore
	nodes   []*simNode
	volumes []string
	history []*View

	mounts     map[string]map[Party]bool // by volume: who has it mounted, in truth
	fenced     map[string]map[Party]bool
	won        map[string]uint64
	clean      map[string]bool // the last term was released after closing
	fences     int
	cleanWins  int
	openTerms  int
	bug        string // what to break on purpose
	violations []string
}

const simTTL = time.Second

func newSimWorld(t *testing.T, seed uint64, bug string) *simWorld {
	w := &simWorld{t: t, rng: rand.New(rand.NewPCG(seed, 4)), seed: seed, bug: bug,
		store:  simStore{sessions: map[string]simSession{}, seats: map[string]simSeat{}, drains: map[string]bool{}},
		mounts: map[string]map[Party]bool{}, fenced: map[string]map[Party]bool{}, won: map[string]uint64{}, clean: map[string]bool{}}
	for i := range 1 + w.rng.IntN(3) {
		v := fmt.Sprintf("v%d", i)
		w.volumes = append(w.volumes, v)
		w.store.seats[v] = simSeat{Seat: Seat{Volume: v}}
		w.mounts[v], w.fenced[v], w.clean[v] = map[Party]bool{}, map[Party]bool{}, true
	}
	for i := range 2 + w.rng.IntN(3) {
		n := &simNode{name: fmt.Sprintf("n%d", i+1), paths: map[string]bool{}}
		for _, v := range w.volumes {
			n.paths[v] = true
		}
		n.restart()
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (n *simNode) restart() {
	n.elector, n.terms, n.view, n.inFlight = newElector(n.name), map[string]*simTerm{}, nil, nil
}

func (w *simWorld) fail(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf("seed %d at %v: ", w.seed, w.now)+fmt.Sprintf(format, args...))
}

// picture is the store as a watch would give it.
func (w *simWorld) picture() *View {
	p := newPicture()
	p.revision = w.store.revision
	for _, n := range w.nodes {
		if s, ok := w.store.sessions[n.name]; ok {
			p.sessions[n.name] = Presence{Node: n.name, Incarnation: s.incarnation, Paths: maps.Clone(n.paths), Session: s.created}
		}
	}
	for v, s := range w.store.seats {
		p.successions[v] = s.Succession
		if s.Coordinator != nil {
			p.seats[v] = held{*s.Coordinator, s.Term}
		}
	}
	for n := range w.store.drains {
		p.drains[n] = Drained{}
	}
	return p.view()
}

// commit is a transaction on a seat, guarded as the real ones are.
func (w *simWorld) commit(before simSeat, after Seat, guard func() bool) bool {
	now := w.store.seats[before.Volume]
	if now.modified != before.modified || now.Term != before.Term || !guard() {
		return false
	}
	w.store.revision++
	if before.Coordinator == nil && after.Coordinator != nil {
		after.Term = w.store.revision
		w.wins(before, after)
	}
	w.store.seats[before.Volume] = simSeat{after, w.store.revision}
	return true
}

func (w *simWorld) wins(before simSeat, after Seat) {
	v := before.Volume
	if after.Epoch <= w.won[v] && w.won[v] > 0 {
		w.fail("%s: epoch %d after %d", v, after.Epoch, w.won[v])
	}
	w.won[v] = after.Epoch
	if w.clean[v] {
		w.cleanWins++
		if after.Previous != nil {
			w.fail("%s: a clean hand-over asks for the fencing of %+v", v, after.Previous)
		}
	}
}

func (w *simWorld) end(node string) {
	s, ok := w.store.sessions[node]
	if !ok {
		return
	}
	w.store.revision++
	delete(w.store.sessions, node)
	for v, seat := range w.store.seats {
		if seat.heldBy(node, s.incarnation) {
			after := seat.Seat
			after.Coordinator, after.Term = nil, 0
			w.store.seats[v] = simSeat{after, seat.modified}
		}
	}
}

func (w *simWorld) step() {
	w.now += time.Duration(1+w.rng.IntN(40)) * time.Millisecond
	for name, s := range w.store.sessions {
		if s.expires <= w.now {
			w.end(name)
		}
	}
	w.history = append(w.history, w.picture())
	if w.rng.IntN(60) == 0 {
		w.disturb()
	}
	for _, n := range w.nodes {
		if !n.dead && n.stopped <= w.now {
			w.act(n)
		}
	}
	w.check()
}

func (w *simWorld) act(n *simNode) {
	w.renew(n)
	n.view = w.history[max(0, len(w.history)-1-w.rng.IntN(4))]
	w.deliver(n)
	if n.incarnation == 0 {
		return
	}
	for _, v := range w.volumes {
		if t := n.terms[v]; t != nil && n.incarnation != 0 {
			w.advance(n, v, t)
		}
	}
	if n.incarnation == 0 || n.view.Nodes[n.name].Session != n.created {
		return
	}
	campaigns, _ := n.elector.plan(n.view, w.now, func(v string) bool { return n.terms[v] != nil })
	for _, v := range campaigns {
		w.campaign(n, v)
	}
}

// deliver lets some of what was sent take effect, in any order, some of it never.
func (w *simWorld) deliver(n *simNode) {
	for len(n.inFlight) > 0 && w.rng.IntN(4) > 0 {
		i := w.rng.IntN(len(n.inFlight))
		tx := n.inFlight[i]
		n.inFlight = slices.Delete(n.inFlight, i, i+1)
		if w.rng.IntN(10) > 0 {
			tx()
		}
	}
}

func (w *simWorld) renew(n *simNode) {
	s, ok := w.store.sessions[n.name]
	if n.incarnation != 0 && ok && s.incarnation == n.incarnation {
		s.expires = w.now + simTTL
		w.store.sessions[n.name] = s
		return
	}
	// The process knows that its session is lost: it shuts its mounts down, and starts anew.
	for _, v := range w.volumes {
		maps.DeleteFunc(w.mounts[v], func(p Party, _ bool) bool { return p.Node == n.name && p.Incarnation == n.incarnation })
	}
	n.restart()
	w.end(n.name)
	w.store.revision++
	n.incarnation, n.created = uint64(w.store.revision), w.store.revision
	w.store.sessions[n.name] = simSession{n.incarnation, n.created, w.now + simTTL}
}

func (w *simWorld) campaign(n *simNode, v string) {
	before := w.store.seats[v]
	party := Party{Node: n.name, Incarnation: n.incarnation}
	created := n.created
	after, err := before.win(party, 0)
	if err != nil {
		n.elector.pause(v, w.now)
		return
	}
	n.elector.pause(v, w.now)
	party.Epoch = after.Epoch
	tx := func() {
		if w.commit(before, after, func() bool { return w.store.sessions[n.name].created == created }) && n.incarnation == party.Incarnation {
			seat := w.store.seats[v]
			n.terms[v] = &simTerm{epoch: seat.Epoch, key: seat.Term, party: party, previous: seat.Previous, state: StateElected}
		}
	}
	n.inFlight = append(n.inFlight, tx)
	if w.rng.IntN(8) == 0 {
		n.inFlight = append(n.inFlight, tx) // a retry of what was thought lost
	}
}

// advance does the next thing that the holder of a term does, or begins to.
func (w *simWorld) advance(n *simNode, v string, t *simTerm) {
	seat := w.store.seats[v]
	if n.view.Revision >= t.key && n.view.Seats[v].Term != t.key {
		w.drop(n, v, t)
		return
	}
	if seen := n.view.Seats[v]; !t.leaving && seen.Term == t.key {
		t.next, _, t.leaving = n.view.leave(n.name, seen)
	}
	if w.rng.IntN(3) > 0 {
		return
	}
	switch {
	case t.state == StateElected && t.previous != nil && w.bug != "no fence":
		w.fence(v, *t.previous, t.party)
	case t.state == StateFenced && !w.mount(n, v, t):
		return
	}
	if seat.Term != t.key { // the transaction is refused; what went before it was done all the same
		w.drop(n, v, t)
		return
	}
	switch {
	case t.leaving && (t.state == StateElected || t.state == StateClosing):
		w.release(n, v, t, seat)
	case t.leaving:
		w.to(n, v, t, seat, StateClosing)
	case t.state == StateElected:
		w.to(n, v, t, seat, StateFenced)
	case t.state == StateFenced:
		w.to(n, v, t, seat, StateMounted)
	case t.state == StateMounted:
		w.to(n, v, t, seat, StateOpen)
	}
}

// drop: the term is over; the mount goes, if there is one.
func (w *simWorld) drop(n *simNode, v string, t *simTerm) {
	delete(w.mounts[v], t.party)
	delete(n.terms, v)
	n.elector.failed(v, w.now)
}

// fence puts an incarnation out, with proof. This node's own mount of an earlier term it ends itself.
func (w *simWorld) fence(v string, p, by Party) {
	w.fences++
	if key(p) != key(by) {
		w.fenced[v][key(p)] = true
	}
	maps.DeleteFunc(w.mounts[v], func(m Party, _ bool) bool { return key(m) == key(p) })
}

// key is what a reservation key tells apart.
func key(p Party) Party { return Party{Node: p.Node, Incarnation: p.Incarnation} }

// mount fails when the node's key is gone: it then needs a new incarnation.
func (w *simWorld) mount(n *simNode, v string, t *simTerm) bool {
	if w.fenced[v][key(t.party)] {
		n.incarnation = 0
		return false
	}
	w.mounts[v][t.party] = true
	return true
}

func (w *simWorld) to(n *simNode, v string, t *simTerm, seat simSeat, state TermState) {
	after, err := seat.advance(state, t.party)
	if err != nil {
		w.fail("%s on %s: %v", n.name, v, err)
		return
	}
	if w.bug == "previous forgotten" {
		after.Previous = nil
	}
	n.inFlight = append(n.inFlight, func() {
		if w.commit(seat, after, func() bool { return true }) && n.terms[v] == t {
			t.state = state
			if state == StateFenced {
				w.clean[v] = false
			}
			if state == StateOpen {
				w.openTerms++
				n.elector.opened(v)
			}
		} else if w.store.seats[v].Term == t.key && w.store.seats[v].Coordinator.State == StateFenced {
			w.clean[v] = false
		}
	})
}

func (w *simWorld) release(n *simNode, v string, t *simTerm, seat simSeat) {
	if w.bug != "release before unmount" {
		delete(w.mounts[v], t.party)
	}
	after, err := seat.release(t.next)
	if err != nil {
		w.fail("%s on %s: %v", n.name, v, err)
		return
	}
	n.inFlight = append(n.inFlight, func() {
		if w.commit(seat, after, func() bool { return true }) {
			w.clean[v] = w.clean[v] || t.state == StateClosing
			if n.terms[v] == t {
				delete(n.terms, v)
			}
		}
	})
}
