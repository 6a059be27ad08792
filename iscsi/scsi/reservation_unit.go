package scsi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// maxWaitingOrders bounds the commands of one unit that wait while another changes its
// reservations; one more is answered BUSY.
const maxWaitingOrders = 256

// unitReservations holds the reservation state of a logical unit. Commands that change it take
// turns, across lanes; every other command reads the published state only.
type unitReservations struct {
	state atomic.Pointer[reservations] // nil: none yet

	mu       sync.Mutex // guards restored, changing, waiting and every Store to state
	restored bool
	changing bool
	waiting  []waitingOrder
}

type waitingOrder struct {
	c   *Command
	run handler
}

var noReservations = &reservations{}

func (u *unitReservations) load() *reservations {
	if s := u.state.Load(); s != nil {
		return s
	}
	return noReservations
}

// update replaces the state by what change makes of it.
func (u *unitReservations) update(change func(*reservations) *reservations) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.state.Store(change(u.load()))
}

// publish makes next the state, unless a newer record has been taken over; it tells whether it did.
func (u *unitReservations) publish(next *reservations) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if next.revision < u.load().revision {
		return false
	}
	u.state.Store(next)
	return true
}

// conflicts tells whether another I_T nexus's reservation refuses c, by c.row.class.
func (u *unitReservations) conflicts(c *Command) bool {
	s := u.state.Load()
	return s != nil && s.conflicts(c.it.id(), c.row.class, c.row.has(passReserve6))
}

// id names the I_T nexus of it; safe on any goroutine.
func (it *itl) id() nexusID {
	return nexusID{initiator: it.nexus.initiator, target: it.nexus.target.name, port: it.nexus.port}
}

// restoreReservations loads what APTPL kept, at the unit's first Map.
func (lu *LogicalUnit) restoreReservations(o ReservationOptions) error {
	u := &lu.reservations
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.restored || o.Store == nil {
		return nil
	}
	saved, err := o.Store.Load(lu.storeName())
	if err != nil {
		return fmt.Errorf("load reservations of %s: %w", lu.storeName(), err)
	}
	s, err := restoreReservations(saved)
	if err != nil {
		return fmt.Errorf("load reservations of %s: %w", lu.storeName(), err)
	}
	u.state.Store(s)
	u.restored = true
	return nil
}

func (lu *LogicalUnit) storeName() string { return "naa." + hex.EncodeToString(lu.opts.NAA) }

// nexusLost is called when an I_T_L nexus ends: a RESERVE(6) reservation of it is released.
func (lu *LogicalUnit) nexusLost(it *itl) {
	lu.reservations.update(func(r *reservations) *reservations { return r.nexusLost(it.id()) })
}

// reservationReset is called at a logical unit reset: a RESERVE(6) reservation is released.
func (lu *LogicalUnit) reservationReset() { lu.reservations.update((*reservations).reset) }

// inTurn runs a command that changes the reservations when no other one does.
func (lu *LogicalUnit) inTurn(c *Command, run handler) {
	u := &lu.reservations
	u.mu.Lock()
	switch {
	case !u.changing:
		u.changing = true
		u.mu.Unlock()
		run(c)
	case len(u.waiting) >= maxWaitingOrders:
		u.mu.Unlock()
		c.rejectStatus(Busy)
	default:
		u.waiting = append(u.waiting, waitingOrder{c, run})
		u.mu.Unlock()
	}
}

// endTurn gives the turn to the command that waited longest; here is the caller's lane. A command
// that was aborted while it waited ends.
func (lu *LogicalUnit) endTurn(here int) {
	u := &lu.reservations
	u.mu.Lock()
	if len(u.waiting) == 0 {
		u.changing = false
		u.mu.Unlock()
		return
	}
	next := u.waiting[0]
	u.waiting = slices.Delete(u.waiting, 0, 1)
	u.mu.Unlock()
	next.c.target.onLane(here, next.c.Lane, func() {
		if next.c.aborted {
			lane := next.c.Lane
			next.c.complete()
			lu.endTurn(lane)
			return
		}
		next.run(next.c)
	})
}

// maxSaveTries bounds how often one command is applied anew because other servers of the unit changed
// its reservations meanwhile; then it is answered BUSY.
const maxSaveTries = 16

// execute applies an order in its turn: save, publish, unit attentions, abort, then GOOD. The
// turn ends before the aborts are waited for, because a victim's task may wait for its turn.
func (lu *LogicalUnit) execute(c *Command, o *reservationOrder) { lu.try(c, o, maxSaveTries) }

func (lu *LogicalUnit) try(c *Command, o *reservationOrder, tries int) {
	next, fx, v := lu.reservations.load().apply(o)
	store := c.target.opts.Reservations.Store
	if v.status != Good || store == nil || !fx.save && !lu.opts.Shared {
		lu.finish(c, next, fx, v)
		return
	}
	target, lane := c.target, c.Lane
	store.Save(lane, lu.storeName(), lu.recordOf(next, &fx), next.revision, func(revision int64, err error) {
		target.onLane(offLane, lane, func() {
			next.revision = revision // next is not published yet
			lu.saved(c, o, outcome{next, fx, err}, tries-1)
		})
	})
}

// outcome is what came of one save.
type outcome struct {
	next *reservations
	fx   reservationEffects
	err  error
}

func (lu *LogicalUnit) saved(c *Command, o *reservationOrder, out outcome, tries int) {
	switch {
	case out.err == nil:
		lu.finish(c, out.next, out.fx, verdict{})
	case !errors.Is(out.err, ErrRecordChanged):
		lu.endTurn(c.Lane)
		c.rejectError(out.err)
	case tries > 0:
		lu.try(c, o, tries)
	default:
		lu.endTurn(c.Lane)
		c.rejectStatus(Busy)
	}
}

func (lu *LogicalUnit) recordOf(r *reservations, fx *reservationEffects) []byte {
	if lu.opts.Shared {
		return r.sharedRecord(fx)
	}
	return r.record()
}

// offLane is the lane number of a caller that is on none.
const offLane = -1

func (lu *LogicalUnit) finish(c *Command, next *reservations, fx reservationEffects, v verdict) {
	if v.status == Good {
		lu.reservations.publish(next)
		lu.notify(fx.notices)
	}
	lu.endTurn(c.Lane)
	if len(fx.aborts) == 0 {
		c.conclude(v)
		return
	}
	victim := func(it *itl) bool { return slices.Contains(fx.aborts, it.id()) }
	target, lane := c.target, c.Lane
	lu.abortTasks(c.Nexus, lane, true, victim, func(here int) {
		target.onLane(here, lane, c.good)
	})
}

func (lu *LogicalUnit) notify(notices []notice) {
	for _, n := range notices {
		lu.attention(n.about, func(it *itl) bool { return it.id() == n.nexus })
	}
}

// conclude completes the command with v.
func (c *Command) conclude(v verdict) {
	switch v.status {
	case Good:
		c.good()
	case CheckCondition:
		c.reject(v.sense)
	default:
		c.rejectStatus(v.status)
	}
}
