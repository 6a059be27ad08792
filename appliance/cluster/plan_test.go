package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestVoterCount(t *testing.T) {
	want := []int{1, 1, 1, 3, 3, 3, 3, 5, 5, 5}
	for n, v := range want {
		if voterCount(n) != v {
			t.Errorf("%d nodes: %d voters, want %d", n, voterCount(n), v)
		}
	}
}

// world is a cluster that carries out what plan says.
type world struct {
	seats []seat
	next  uint64
}

func (w *world) do(s step) {
	for i := range w.seats {
		seat := &w.seats[i]
		switch {
		case s.do == addLearner && seat.name == s.name:
			w.next++
			seat.id, seat.learner = w.next, true
		case s.do == promote && seat.id == s.id:
			seat.learner, seat.voter = false, true
		case s.do == remove && seat.id == s.id:
			seat.id, seat.learner, seat.voter = 0, false, false
		case s.do == handOver:
			seat.leader = seat.id == s.id
		}
	}
}

// elect gives a living voter the leader's office; false: there is no living majority.
func (w *world) elect() bool {
	voters, living, leader := 0, 0, -1
	for i := range w.seats {
		s := &w.seats[i]
		s.leader = s.leader && s.alive && s.voter
		if s.voter {
			voters++
		}
		if s.voter && s.alive {
			living++
			if leader < 0 || s.leader {
				leader = i
			}
		}
	}
	if living < majority(voters) || voters == 0 {
		return false
	}
	w.seats[leader].leader = true
	return true
}

// settle runs plan until it rests and checks after every step that a living majority is there.
func (w *world) settle() error {
	for range 100 {
		if !w.elect() {
			return fmt.Errorf("no majority lives: %+v", w.seats)
		}
		s := plan(w.seats)
		if s.do == nothing {
			return nil
		}
		w.do(s)
	}
	return fmt.Errorf("no rest: %+v", w.seats)
}

func (w *world) tally() tally { return count(w.seats) }

func newWorld(n int) *world {
	w := &world{next: 1}
	for i := range n {
		w.seats = append(w.seats, seat{name: fmt.Sprint(i), number: uint16(i + 1), alive: true})
	}
	w.seats[0].id, w.seats[0].voter = 1, true
	return w
}

func TestPlanGrows(t *testing.T) {
	for n := 1; n <= 9; n++ {
		w := newWorld(n)
		if err := w.settle(); err != nil {
			t.Fatal(err)
		}
		if got := w.tally(); got.voters != voterCount(n) || len(got.learners) > 0 {
			t.Fatalf("%d nodes: %+v", n, got)
		}
	}
}

// TestPlanNeverRestsAtTwo: of two voters neither may fail, so there is one until both others are there.
func TestPlanNeverRestsAtTwo(t *testing.T) {
	w := newWorld(3)
	w.seats[2].alive = false
	must(t, w.settle())
	if c := w.tally(); c.voters != 1 {
		t.Fatalf("%+v", w.seats)
	}
	w.seats[2].alive = true
	for s := plan(w.seats); s.do != nothing; s = plan(w.seats) {
		if c := w.tally(); s.do == promote && c.voters+len(c.learners) < 3 {
			t.Fatalf("%+v while %+v", s, w.seats)
		}
		w.do(s)
	}
	if c := w.tally(); c.voters != 3 {
		t.Fatalf("%+v", w.seats)
	}
}

// TestPlanStartsOneAtATime: members that start at once ask each other who the members are.
func TestPlanStartsOneAtATime(t *testing.T) {
	w := newWorld(7)
	for s := plan(w.seats); s.do != nothing; s = plan(w.seats) {
		w.do(s)
		if s.do != addLearner {
			continue
		}
		i := slices.IndexFunc(w.seats, func(x seat) bool { return x.name == s.name })
		w.seats[i].starting = true
		if next := plan(w.seats); next.do == addLearner {
			t.Fatalf("%+v while %+v", next, w.seats)
		}
		w.seats[i].starting = false
	}
	if c := w.tally(); c.voters != 5 {
		t.Fatalf("%+v", w.seats)
	}
	w.seats[0].alive = false
	w.do(plan(w.seats))
	for i := range w.seats {
		if w.seats[i].learner { // it dies while it starts
			w.seats[i].starting, w.seats[i].alive = true, false
		}
	}
	must(t, w.settle())
	if c := w.tally(); c.voters != 5 || c.livingVoters != 5 {
		t.Fatalf("%+v", w.seats)
	}
}

func TestPlanPrefersTheWitnessAndReplacesTheDead(t *testing.T) {
	w := newWorld(5)
	w.seats[4].witness = true
	must(t, w.settle())
	if !w.seats[4].voter || !w.seats[1].voter {
		t.Fatalf("%+v", w.seats)
	}
	w.seats[1].alive = false
	must(t, w.settle())
	if w.seats[1].voter || !w.seats[2].voter {
		t.Fatalf("%+v", w.seats)
	}
	w.seats[2].alive, w.seats[3].alive = false, false // no spare left: nothing may change
	before := fmt.Sprint(w.seats)
	must(t, w.settle())
	if fmt.Sprint(w.seats) != before {
		t.Fatalf("%+v", w.seats)
	}
}

func TestPlanRemovesWhatHasNoNode(t *testing.T) {
	w := newWorld(3)
	must(t, w.settle())
	w.seats = append(w.seats, seat{id: 77, voter: true})
	if s := plan(w.seats); s.do != remove || s.id != 77 {
		t.Fatalf("%+v", s)
	}
}

// TestPlanUnderRandomFaults lets one voter at a time die or come back, and nodes come and leave: the
// majority never goes, and all settles at the right number.
func TestPlanUnderRandomFaults(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 4))
		w := newWorld(1 + r.IntN(9))
		must(t, w.settle())
		for range 30 {
			disturb(r, w)
			if err := w.settle(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if c := w.tally(); c.fitVoters == len(w.seats) && c.voters != c.want {
				t.Fatalf("seed %d: %+v", seed, w.seats)
			}
		}
		for i := range w.seats {
			w.seats[i].alive, w.seats[i].leaving = true, false
		}
		if err := w.settle(); err != nil || w.tally().voters != voterCount(len(w.seats)) {
			t.Fatalf("seed %d: %v, %+v", seed, err, w.seats)
		}
	}
}

// disturb changes one thing that a majority outlives.
func disturb(r *rand.Rand, w *world) {
	c := w.tally()
	s := &w.seats[r.IntN(len(w.seats))]
	switch r.IntN(4) {
	case 0:
		s.alive = true
	case 1:
		if !s.voter || c.livingVoters > majority(c.voters) {
			s.alive = false
		}
	case 2:
		w.seats = append(w.seats, seat{name: fmt.Sprint("n", len(w.seats)), number: uint16(len(w.seats) + 1), alive: true})
	case 3:
		if s.alive {
			s.leaving = !s.leaving
		}
	}
}
