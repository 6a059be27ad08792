package scsi

import (
	"fmt"
	"slices"
)

// ReservationsChanged takes over what another server of this unit has saved. done is called once, when
// the new state governs every command here and the tasks that it aborts have left the backend, so that
// PREEMPT AND ABORT may be answered; any goroutine may call and be called. An older record than the one
// that governs changes nothing. The host hands a unit its records one after the other, each after the
// done of the one before, and not those that this unit saved itself.
func (lu *LogicalUnit) ReservationsChanged(saved Saved, done func()) error {
	next, rec, err := readReservations(saved)
	if err != nil {
		return fmt.Errorf("take over reservations of %s: %w", lu.storeName(), err)
	}
	before := lu.reservations.load()
	if !lu.reservations.publish(next) || before.revision == next.revision {
		done()
		return nil
	}
	fx := rec.effects()
	if before.revision != rec.After {
		fx = before.effectsTowards(next)
	}
	lu.notify(fx.notices)
	if len(fx.aborts) == 0 {
		done()
		return nil
	}
	victim := func(it *itl) bool { return slices.Contains(fx.aborts, it.id()) }
	lu.abortTasks(nil, offLane, true, victim, func(int) { done() })
	return nil
}

// effects are those of the order that led to the record.
func (rec *reservationRecord) effects() (fx reservationEffects) {
	for _, n := range rec.Notices {
		if n.About < attentionCount {
			fx.tell(n.About, n.id())
		}
	}
	for _, n := range rec.Aborts {
		fx.aborts = append(fx.aborts, n.id())
	}
	return fx
}

// effectsTowards are the effects when the orders between r and next are not known: who lost its
// registration counts as preempted with abort, which is the strictest that can have happened.
func (r *reservations) effectsTowards(next *reservations) (fx reservationEffects) {
	for _, g := range r.registrants {
		if !next.registered(g.nexus) {
			fx.tell(attnRegistrationsPreempted, g.nexus)
			fx.aborts = append(fx.aborts, g.nexus)
		}
	}
	if r.kind.shared() && r.kind != next.kind {
		fx.tell(attnReservationsReleased, next.others(nexusID{})...)
	}
	return fx
}
