package cluster

import (
	"maps"
	"slices"
	"testing"
	"time"
)

func (w *simWorld) disturb() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	v := w.volumes[w.rng.IntN(len(w.volumes))]
	switch w.rng.IntN(9) {
	case 0, 1: // kill -9; the kernel has unmounted nothing in order, but is out
		if !n.dead {
			n.dead = true
			for _, v := range w.volumes {
				maps.DeleteFunc(w.mounts[v], func(p Party, _ bool) bool { return p.Node == n.name })
			}
			n.restart()
			n.incarnation = 0
		}
	case 2: // SIGSTOP: what is mounted stays so
		n.stopped = w.now + time.Duration(w.rng.IntN(4000))*time.Millisecond
	case 3: // suspected, rightly or not
		w.end(n.name)
	case 4:
		n.paths[v] = !n.paths[v]
		w.store.revision++
	case 5:
		w.store.drains[n.name] = true
	case 6:
		clear(w.store.drains)
	case 7:
		s := w.store.seats[v]
		after := s.Seat
		if s.Coordinator != nil {
			after.Order = &Order{To: n.name, Epoch: s.Epoch}
		} else {
			after.Next = n.name
		}
		w.commit(s, after, func() bool { return true })
	case 8: // evicted from one volume
		s := w.store.seats[v]
		if s.Coordinator != nil {
			w.commit(s, s.evict("test"), func() bool { return true })
		}
	}
	for _, other := range w.nodes {
		if other.dead && w.rng.IntN(3) == 0 {
			other.dead = false
		}
	}
}

func (w *simWorld) check() {
	for v, mounts := range w.mounts {
		if len(mounts) > 1 {
			w.fail("%s is mounted by %v", v, slices.Collect(maps.Keys(mounts)))
		}
	}
	for v, s := range w.store.seats {
		if s.Coordinator != nil && s.Coordinator.Epoch != s.Epoch {
			w.fail("%s: coordinator of epoch %d in epoch %d", v, s.Coordinator.Epoch, s.Epoch)
		}
	}
}

// settle: without disturbance, every volume that is reached gets a coordinator that is open.
func (w *simWorld) settle() {
	clear(w.store.drains)
	for _, n := range w.nodes {
		n.dead, n.stopped = false, 0
		for _, v := range w.volumes {
			n.paths[v] = true
		}
	}
	w.store.revision++
	quiet := func() bool {
		for _, s := range w.store.seats {
			if s.Coordinator == nil || s.Coordinator.State != StateOpen {
				return false
			}
		}
		return true
	}
	for end := w.now + 2*longestHold; !quiet(); {
		if w.now > end {
			w.fail("no coordinator in the end: %+v", w.store.seats)
			return
		}
		w.now += 20 * time.Millisecond
		w.history = append(w.history, w.picture())
		for _, n := range w.nodes {
			w.act(n)
		}
		w.check()
	}
}

func simulate(t *testing.T, seed uint64, bug string) *simWorld {
	w := newSimWorld(t, seed, bug)
	for range 400 {
		if w.step(); len(w.violations) > 0 {
			return w
		}
	}
	w.settle()
	return w
}

func TestElectionSimulation(t *testing.T) {
	fences, cleanWins, open := 0, 0, 0
	seeds := uint64(500)
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		w := simulate(t, seed, "")
		if len(w.violations) > 0 {
			t.Fatal(w.violations[0])
		}
		fences, cleanWins, open = fences+w.fences, cleanWins+w.cleanWins, open+w.openTerms
	}
	t.Logf("%d seeds: %d terms were open, %d fences, %d wins after a clean hand-over", seeds, open, fences, cleanWins)
	if fences == 0 || cleanWins == 0 || open == 0 {
		t.Error("the simulation does not reach what it is to check")
	}
}

// TestElectionSimulationFinds: each rule, when it is left out, shows as a violation.
func TestElectionSimulationFinds(t *testing.T) {
	for _, bug := range []string{"no fence", "previous forgotten", "release before unmount"} {
		found := false
		for seed := uint64(0); seed < 300 && !found; seed++ {
			w := simulate(t, seed, bug)
			if found = len(w.violations) > 0; found {
				t.Logf("%s: %s", bug, w.violations[0])
			}
		}
		if !found {
			t.Errorf("%s: not found", bug)
		}
	}
}
