package scsi

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestReservationSimulation drives the state machine with seeded random orders from six I_T
// nexuses and checks the invariants of SPC-4 §5.13 after every step.
func TestReservationSimulation(t *testing.T) {
	seeds, steps := uint64(60), 2000
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		s := newReservationSim(seed)
		for step := range steps {
			if err := s.step(); err != nil {
				t.Fatalf("seed %d, step %d: %v\norder %+v\nbefore %+v\nafter %+v\neffects %+v", seed, step, err, s.order, s.before, s.after, s.effects)
			}
		}
	}
}

type reservationSim struct {
	rnd     *rand.Rand
	nexuses []nexusID
	saved   []byte

	before, after *reservations
	order         reservationOrder
	effects       reservationEffects
	verdict       verdict
}

func newReservationSim(seed uint64) *reservationSim {
	s := &reservationSim{rnd: rand.New(rand.NewPCG(seed, 7)), after: &reservations{}}
	for i := range 6 {
		s.nexuses = append(s.nexuses, nexusID{fmt.Sprintf("iqn.x:%d,i,0x00000000000%d", i/2, i/2), "iqn.t", uint16(i%2 + 1)})
	}
	return s
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// random favours orders that succeed: three of four carry the sender's true key.
func (s *reservationSim) random() reservationOrder {
	o := reservationOrder{
		action:      reservationAction(s.rnd.IntN(8)),
		nexus:       pick(s.rnd, s.nexuses...),
		kind:        pick(s.rnd, allTypes...),
		actionKey:   uint64(s.rnd.IntN(4)),
		key:         uint64(s.rnd.IntN(4)),
		persist:     s.rnd.IntN(2) == 0,
		unregister:  s.rnd.IntN(2) == 0,
		destination: pick(s.rnd, s.nexuses...),
	}
	if s.rnd.IntN(4) > 0 {
		o.key = s.after.key(o.nexus)
	}
	if s.rnd.IntN(4) > 0 && s.after.kind != noReservation && o.action != actionPreempt {
		o.kind = s.after.kind
	}
	if (o.action == actionRegister || o.action == actionRegisterIgnore) && s.rnd.IntN(5) == 0 {
		o.ports = []uint16{1, 2}
	}
	if o.action == actionRegister && s.rnd.IntN(5) == 0 {
		o.named = []nexusID{pick(s.rnd, s.nexuses...)}
		if o.named[0] == o.nexus {
			o.named = nil
		}
	}
	return o
}

func (s *reservationSim) step() error {
	if s.rnd.IntN(10) == 0 {
		return s.legacyStep()
	}
	s.before, s.order = s.after, s.random()
	frozen := s.before.clone()
	s.after, s.effects, s.verdict = s.before.apply(&s.order)
	if !s.before.equal(frozen) {
		return fmt.Errorf("Immutable: the published state changed")
	}
	if s.effects.save {
		s.saved = s.after.record()
	}
	for _, inv := range reservationInvariants {
		if err := inv.check(s); err != nil {
			return fmt.Errorf("%s: %w", inv.name, err)
		}
	}
	return nil
}

func (s *reservationSim) legacyStep() error {
	s.before, s.order, s.effects = s.after, reservationOrder{nexus: pick(s.rnd, s.nexuses...)}, reservationEffects{}
	switch s.rnd.IntN(4) {
	case 0:
		s.after, _ = s.before.reserve6(s.order.nexus)
	case 1:
		s.after, _ = s.before.release6(s.order.nexus)
	case 2:
		s.after = s.before.nexusLost(s.order.nexus)
	case 3:
		s.after = s.before.reset()
	}
	if !slices.Equal(s.before.registrants, s.after.registrants) || s.before.kind != s.after.kind {
		return fmt.Errorf("LegacyApart: RESERVE(6) changed the persistent reservation")
	}
	return checkOneReservation(s)
}

func (r *reservations) equal(o *reservations) bool {
	return r.generation == o.generation && r.persist == o.persist && slices.Equal(r.registrants, o.registrants) &&
		r.kind == o.kind && r.holder == o.holder && r.reserved6 == o.reserved6 && r.holder6 == o.holder6
}

var reservationInvariants = []struct {
	name  string
	check func(*reservationSim) error
}{
	{"HolderRegistered", checkHolderRegistered},
	{"KeyNonZero", checkKeys},
	{"RefusedUnchanged", checkRefused},
	{"GenerationCounts", checkGeneration},
	{"SelfSpared", checkSelfSpared},
	{"LostTold", checkLostTold},
	{"ReleaseTold", checkReleaseTold},
	{"AbortVictimsOnly", checkAborts},
	{"OneReservation", checkOneReservation},
	{"OutsiderKeptOut", checkOutsider},
	{"HolderLetIn", checkHolderIn},
	{"SaveCovers", checkSaved},
}

// HolderRegistered: a reservation has a registered holder.
func checkHolderRegistered(s *reservationSim) error {
	r := s.after
	switch {
	case r.kind == noReservation:
		return nil
	case r.kind.all() && len(r.registrants) == 0, !r.kind.all() && !r.registered(r.holder):
		return fmt.Errorf("held by nobody")
	}
	return nil
}

// KeyNonZero: registrations are unique, ordered, and have a key.
func checkKeys(s *reservationSim) error {
	for i, g := range s.after.registrants {
		if g.key == 0 || i > 0 && s.after.registrants[i-1].nexus.compare(g.nexus) >= 0 {
			return fmt.Errorf("registrants %+v", s.after.registrants)
		}
	}
	return nil
}

// RefusedUnchanged: what did not end with GOOD changed nothing.
func checkRefused(s *reservationSim) error {
	if s.verdict.status != Good && (s.after != s.before || s.effects.save || len(s.effects.notices)+len(s.effects.aborts) > 0) {
		return fmt.Errorf("effects of a refused order")
	}
	return nil
}

// GenerationCounts: PRGENERATION counts every service action but RESERVE and RELEASE.
func checkGeneration(s *reservationSim) error {
	want := s.before.generation
	if s.verdict.status == Good && s.order.action != actionReserve && s.order.action != actionRelease {
		want++
	}
	if s.after.generation != want {
		return fmt.Errorf("generation %d, want %d", s.after.generation, want)
	}
	return nil
}

// SelfSpared: no command gives its sender a unit attention or aborts its tasks.
func checkSelfSpared(s *reservationSim) error {
	if slices.Contains(s.effects.aborts, s.order.nexus) {
		return fmt.Errorf("sender aborted")
	}
	for _, n := range s.effects.notices {
		if n.nexus == s.order.nexus {
			return fmt.Errorf("sender told")
		}
	}
	return nil
}

func (s *reservationSim) lost() (list []nexusID) {
	for _, g := range s.before.registrants {
		if g.nexus != s.order.nexus && !s.after.registered(g.nexus) {
			list = append(list, g.nexus)
		}
	}
	return list
}

func (s *reservationSim) told(n nexusID) (list []attention) {
	for _, e := range s.effects.notices {
		if e.nexus == n {
			list = append(list, e.about)
		}
	}
	return list
}

// LostTold: who loses a registration by another's preemption learns of it, once.
func checkLostTold(s *reservationSim) error {
	want := map[reservationAction]attention{actionPreempt: attnRegistrationsPreempted, actionPreemptAbort: attnRegistrationsPreempted, actionClear: attnReservationsPreempted}
	about, preempts := want[s.order.action]
	for _, n := range s.lost() {
		if preempts && !slices.Equal(s.told(n), []attention{about}) {
			return fmt.Errorf("%v told %v", n, s.told(n))
		}
	}
	return nil
}

// ReleaseTold: who stays registered learns that a shared reservation ended or changed its type by
// another's doing; nobody learns of what did not happen.
func checkReleaseTold(s *reservationSim) error {
	ended := s.before.kind.shared() && s.after.kind == noReservation
	retyped := s.order.action == actionPreempt || s.order.action == actionPreemptAbort
	retyped = retyped && s.after.kind != s.before.kind && s.after.kind != noReservation
	for _, g := range s.after.registrants {
		want := (ended || retyped) && g.nexus != s.order.nexus && s.before.registered(g.nexus)
		if slices.Contains(s.told(g.nexus), attnReservationsReleased) != want {
			return fmt.Errorf("%v told %v, want %v", g.nexus, s.told(g.nexus), want)
		}
	}
	return nil
}

// AbortVictimsOnly: PREEMPT AND ABORT aborts exactly those who lost their registration by it.
func checkAborts(s *reservationSim) error {
	var want []nexusID
	if s.order.action == actionPreemptAbort && s.verdict.status == Good {
		want = s.lost()
	}
	if !slices.Equal(s.effects.aborts, want) {
		return fmt.Errorf("aborts %v, want %v", s.effects.aborts, want)
	}
	return nil
}

// OneReservation: RESERVE(6) and registrations exclude each other.
func checkOneReservation(s *reservationSim) error {
	if s.after.reserved6 && (len(s.after.registrants) > 0 || s.after.kind != noReservation) {
		return fmt.Errorf("OneReservation: both")
	}
	return nil
}

// OutsiderKeptOut: under a reservation no unregistered nexus writes, nor reads an exclusive one.
func checkOutsider(s *reservationSim) error {
	r := s.after
	for _, n := range s.nexuses {
		if r.kind == noReservation || r.registered(n) {
			continue
		}
		if !r.conflicts(n, classWrite, false) || r.kind.exclusive() != r.conflicts(n, classRead, false) {
			return fmt.Errorf("%v", n)
		}
	}
	return nil
}

// HolderLetIn: a holder, and without a reservation everybody, may do everything.
func checkHolderIn(s *reservationSim) error {
	for _, n := range s.nexuses {
		free := s.after.kind == noReservation && !s.after.reserved6
		if (free || s.after.holds(n)) && s.after.conflicts(n, classWrite, false) {
			return fmt.Errorf("%v", n)
		}
	}
	return nil
}

// SaveCovers: with APTPL the newest record has the registrations and the reservation; without it
// no record brings anything back.
func checkSaved(s *reservationSim) error {
	if s.saved == nil {
		if s.after.persist && len(s.after.registrants) > 0 {
			return fmt.Errorf("never saved")
		}
		return nil
	}
	back, err := restoreReservations(Saved{Record: s.saved})
	if err != nil {
		return err
	}
	if !s.after.persist {
		return checkEmpty(back)
	}
	if !maps.Equal(back.byNexus(), s.after.byNexus()) || back.kind != s.after.kind || back.holder != s.after.holder {
		return fmt.Errorf("record %s", s.saved)
	}
	return nil
}

func checkEmpty(r *reservations) error {
	if len(r.registrants) > 0 || r.kind != noReservation {
		return fmt.Errorf("a record outlives APTPL 0")
	}
	return nil
}

func (r *reservations) byNexus() map[nexusID]uint64 {
	m := map[nexusID]uint64{}
	for _, g := range r.registrants {
		m[g.nexus] = g.key
	}
	return m
}
