package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// keeper is a node that takes part: it fences by proof at once, mounts and opens.
type keeper struct {
	db      *DB
	session *Session
	c       *Coordinators

	mu    sync.Mutex // guards what follows
	terms map[string]*Term
	log   []string
}

// joinAsKeeper runs a node until the test ends; the node reaches volumes.
func joinAsKeeper(t *testing.T, db *DB, volumes ...string) *keeper {
	t.Helper()
	s, _ := startSession(t, db, time.Second)
	for _, v := range volumes {
		s.SetPath(v, true)
	}
	k := &keeper{db: db, session: s, c: db.Coordinators(s), terms: map[string]*Term{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	go func() {
		ended <- k.c.Run(ctx, Duties{
			Won:     func(term *Term) { wg.Go(func() { k.serve(ctx, term) }) },
			Leave:   func(term *Term, next, reason string) { wg.Go(func() { k.leave(ctx, term, next, reason) }) },
			Over:    func(term *Term, reason string) { k.over(term, reason) },
			Changed: func(*View) {},
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		wg.Wait()
	})
	return k
}

func (k *keeper) note(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, fmt.Sprintf(format, args...))
}

func (k *keeper) serve(ctx context.Context, term *Term) {
	k.note("won %s %d previous %+v", term.Volume, term.Epoch, term.Previous)
	for _, step := range []func(context.Context) error{term.Fenced, term.Mounted, term.Open} {
		if err := step(ctx); err != nil {
			k.note("%v", err)
			return
		}
	}
	k.mu.Lock()
	k.terms[term.Volume] = term
	k.mu.Unlock()
}

func (k *keeper) leave(ctx context.Context, term *Term, next, reason string) {
	k.note("leave %s %d to %s %s", term.Volume, term.Epoch, next, reason)
	if err := errors.Join(term.Closing(ctx), term.Release(ctx, next)); err != nil {
		k.note("%v", err)
	}
}

func (k *keeper) over(term *Term, reason string) {
	k.note("over %s %d %s", term.Volume, term.Epoch, reason)
}

func (k *keeper) said(line string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.log, line)
}

func addVolumes(t *testing.T, db *DB, n int) []string {
	t.Helper()
	ids := make([]string, n)
	for i := range ids {
		v, err := db.AddVolume(t.Context(), Volume{Name: fmt.Sprintf("V%d", i), WWID: fmt.Sprintf("w%d", i)})
		must(t, err)
		ids[i] = v.ID
	}
	return ids
}

func await(t *testing.T, c *Coordinators, volume string, after uint64) Seat {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seat, err := c.Await(ctx, volume, after)
	must(t, err)
	return seat
}

// TestTerm walks through a term by hand, with every refusal on the way.
func TestTerm(t *testing.T) {
	db, ctx := startMembers(t, 1)[0].DB, t.Context()
	volume := addVolumes(t, db, 1)[0]
	s1, _ := startSession(t, db, time.Second)
	db2 := asNode(db, "n2")
	s2, _ := startSession(t, db2, time.Second)
	c1, c2 := db.Coordinators(s1), db2.Coordinators(s2)

	_, err := c1.Campaign(ctx, "none")
	wantErr(t, err, ErrNotFound)
	one, err := c1.Campaign(ctx, volume)
	must(t, err)
	same, err := c1.Campaign(ctx, volume) // as after a reply that was lost
	if err != nil || same.Epoch != 1 || one.Epoch != 1 || same.key != one.key || one.Previous != nil {
		t.Fatalf("%+v, %+v, %v", one, same, err)
	}
	_, err = c2.Campaign(ctx, volume)
	wantErr(t, err, ErrInUse)
	wantErr(t, one.Mounted(ctx), ErrTermState)
	for _, step := range []func(context.Context) error{one.Fenced, one.Fenced, one.Mounted, one.Open, one.Open} {
		must(t, step(ctx))
	}
	wantErr(t, one.Release(ctx, ""), ErrTermState)
	_, err = c1.Campaign(ctx, volume)
	wantErr(t, err, ErrInUse)
	must(t, one.Closing(ctx))
	must(t, one.Release(ctx, "n2"))
	must(t, one.Release(ctx, "n2"))
	wantErr(t, one.Closing(ctx), nil)

	two, err := c2.Campaign(ctx, volume)
	if err != nil || two.Epoch != 2 || two.Previous != nil {
		t.Fatalf("%+v, %v", two, err)
	}
	wantErr(t, one.Release(ctx, ""), nil)
	must(t, two.Fenced(ctx))
	must(t, c1.Evict(ctx, volume, one.key, "not this one"))
	must(t, two.Mounted(ctx))
	must(t, c1.Evict(ctx, volume, two.key, "test"))
	wantErr(t, two.Open(ctx), ErrTermOver)
	three, err := c1.Campaign(ctx, volume)
	if err != nil || three.Epoch != 3 || three.Previous == nil || three.Previous.Node != "n2" || three.Previous.Epoch != 2 || three.Previous.TTL != time.Second {
		t.Fatalf("%+v, %v", three, err)
	}
	must(t, three.Release(ctx, "")) // it did not fence: the next one has to
	four, err := c1.Campaign(ctx, volume)
	if err != nil || four.Epoch != 4 || four.Previous == nil || four.Previous.Node != "n2" {
		t.Fatalf("%+v, %v", four, err)
	}
	must(t, four.Fenced(ctx))
	must(t, four.Abandon(ctx, "test"))
	must(t, four.Abandon(ctx, "test"))
	five, err := c2.Campaign(ctx, volume)
	if err != nil || five.Previous == nil || five.Previous.Node != "n1" {
		t.Fatalf("%+v, %v", five, err)
	}
	_, err = c1.Suspect(ctx, "n2", s2.Incarnation(), "test")
	must(t, err)
	wantErr(t, five.Fenced(ctx), ErrTermOver)
	volumes, err := db.Volumes(ctx)
	must(t, err)
	if volumes[0].Epoch != 5 {
		t.Errorf("the volume's record says epoch %d", volumes[0].Epoch)
	}
	must(t, db.RemoveVolume(ctx, volume))
	v, err := c1.View(ctx)
	must(t, err)
	if len(v.Seats) > 0 {
		t.Errorf("seats of no volume: %+v", v.Seats)
	}
}

// TestNoWinWithoutSession: a node whose session was ended by others wins nothing, even if it does not know.
func TestNoWinWithoutSession(t *testing.T) {
	db, ctx := startMembers(t, 1)[0].DB, t.Context()
	volume := addVolumes(t, db, 1)[0]
	s1, _ := startSession(t, db, time.Second)
	l := s1.current()
	must(t, db.revoke(ctx, l.lease))
	term := &Term{Volume: volume, Incarnation: l.incarnation, db: db, life: l, wake: func() {}}
	wantErr(t, db.try(ctx, term.campaign), ErrSessionLost)
}

// TestRunBalances: three nodes, six volumes, two each; then moves, drains, cuts and a death.
func TestRunBalances(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	volumes := addVolumes(t, db, 6)
	all := map[string]*keeper{}
	for _, n := range []string{"n1", "n2", "n3"} {
		all[n] = joinAsKeeper(t, asNode(db, n), volumes...)
	}
	c := all["n1"].c
	count := func() map[string]int {
		out := map[string]int{}
		for _, v := range volumes {
			out[await(t, c, v, 0).Coordinator.Node]++
		}
		return out
	}
	for _, v := range volumes {
		await(t, c, v, 0)
	}
	t.Logf("dealt out: %v", count()) // the first node there may have taken all of them

	t.Run("move", func(t *testing.T) {
		v, from := volumes[0], await(t, c, volumes[0], 0)
		to := "n1"
		if from.Coordinator.Node == "n1" {
			to = "n2"
		}
		started := time.Now()
		after, err := c.Move(t.Context(), v, to)
		must(t, err)
		seat := await(t, c, v, after)
		t.Logf("moved in %v", time.Since(started))
		if seat.Coordinator.Node != to || after != from.Epoch {
			t.Errorf("it went to %+v after %d", seat.Coordinator, after)
		}
		if !all[to].said(fmt.Sprintf("won %s %d previous <nil>", v, seat.Epoch)) {
			t.Errorf("it was not clean: %q", all[to].log)
		}
		again, err := c.Move(t.Context(), v, to)
		if err != nil || await(t, c, v, again).Epoch != seat.Epoch {
			t.Errorf("moving it where it is: %v", err)
		}
		_, err = c.Move(t.Context(), v, "n9")
		wantErr(t, err, ErrNotEligible)
		_, err = c.Move(t.Context(), "none", "n1")
		wantErr(t, err, ErrNotFound)
	})
	t.Run("drain", func(t *testing.T) {
		must(t, c.Drain(t.Context(), "n2"))
		eventually(t, "n2 has none", func() bool { return count()["n2"] == 0 })
		_, err := c.Move(t.Context(), volumes[0], "n2")
		wantErr(t, err, ErrNotEligible)
		must(t, c.Resume(t.Context(), "n2"))
		_, err = c.Move(t.Context(), volumes[0], "n2")
		must(t, err)
		eventually(t, "n2 has one again", func() bool { return count()["n2"] == 1 })
	})
	t.Run("path lost", func(t *testing.T) {
		seat := await(t, c, volumes[0], 0)
		all["n2"].session.SetPath(volumes[0], false)
		if next := await(t, c, volumes[0], seat.Epoch); next.Coordinator.Node == "n2" {
			t.Error("it stays without a path")
		}
	})
	t.Run("suspect", func(t *testing.T) {
		v := volumes[1]
		seat := await(t, c, v, 0)
		by := all["n1"]
		if seat.Coordinator.Node == "n1" {
			by = all["n3"]
		}
		_, err := by.c.Suspect(t.Context(), seat.Coordinator.Node, seat.Coordinator.Incarnation, "test")
		must(t, err)
		next := await(t, c, v, seat.Epoch)
		if next.heldBy(seat.Coordinator.Node, seat.Coordinator.Incarnation) {
			t.Errorf("the suspect is back: %+v", next.Coordinator)
		}
		if old := fmt.Sprintf("won %s %d previous %+v", v, next.Epoch, &Party{seat.Coordinator.Node, seat.Coordinator.Incarnation, seat.Epoch, time.Second}); !all[next.Coordinator.Node].said(old) {
			t.Errorf("not %q, but %q", old, all[next.Coordinator.Node].log)
		}
		eventually(t, "it is told", func() bool {
			return all[seat.Coordinator.Node].said(fmt.Sprintf("over %s %d %v", v, seat.Epoch, ErrSessionLost))
		})
	})
}

// TestWatchSurvivesCompaction: the latest state comes, whatever became of the revisions before.
func TestWatchSurvivesCompaction(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	volume := addVolumes(t, db, 1)[0]
	s, _ := startSession(t, db, time.Second)
	c := db.Coordinators(s)
	p, err := c.read(t.Context())
	must(t, err)
	for range 5 {
		term, err := c.Campaign(t.Context(), volume)
		must(t, err)
		must(t, term.Release(t.Context(), ""))
	}
	last, err := c.Campaign(t.Context(), volume)
	must(t, err)
	_, err = db.client.Compact(t.Context(), last.key)
	must(t, err)
	called := false
	must(t, c.follow(t.Context(), p, func(*View) error { called = true; return nil }))
	if called {
		t.Error("a compacted watch gave a state")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := errors.New("done")
	wantErr(t, c.watch(ctx, func(v *View) error {
		if v.Seats[volume].Epoch == 6 {
			return done
		}
		return nil
	}), done)
}
