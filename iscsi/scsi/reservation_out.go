package scsi

import "slices"

// reservationAction is a service action of PERSISTENT RESERVE OUT (SPC-4 §6.16.2).
type reservationAction uint8

const (
	actionRegister        reservationAction = 0
	actionReserve         reservationAction = 1
	actionRelease         reservationAction = 2
	actionClear           reservationAction = 3
	actionPreempt         reservationAction = 4
	actionPreemptAbort    reservationAction = 5
	actionRegisterIgnore  reservationAction = 6
	actionRegisterAndMove reservationAction = 7
)

// reservationOrder is one PERSISTENT RESERVE OUT command, parsed, as apply takes it.
type reservationOrder struct {
	action    reservationAction
	nexus     nexusID // the sender
	kind      reservationType
	key       uint64 // RESERVATION KEY
	actionKey uint64 // SERVICE ACTION RESERVATION KEY
	persist   bool   // APTPL

	ports []uint16  // with ALL_TG_PT: every target port of the device
	named []nexusID // with SPEC_I_PT: the other I_T nexuses to register

	destination nexusID // REGISTER AND MOVE
	unregister  bool    // REGISTER AND MOVE: UNREG
}

// notice is a unit attention condition for one I_T nexus.
type notice struct {
	nexus nexusID
	about attention
}

// reservationEffects is what a change of the state asks of the device server, before GOOD.
type reservationEffects struct {
	notices []notice
	aborts  []nexusID // whose tasks end first
	save    bool      // the new state goes to the ReservationStore
}

func (e *reservationEffects) tell(about attention, nexuses ...nexusID) {
	for _, n := range nexuses {
		e.notices = append(e.notices, notice{nexus: n, about: about})
	}
}

// verdict is how a command ends; the zero value is GOOD.
type verdict struct {
	status Status
	sense  sense
}

var reservationConflict = verdict{status: ReservationConflict}

func refusal(s sense) verdict { return verdict{status: CheckCondition, sense: s} }

// reservationStep changes the state in place.
type reservationStep func(r *reservations, o *reservationOrder) (reservationEffects, verdict)

// reservationSteps has, per service action, the step and whether PRGENERATION counts it.
var reservationSteps = map[reservationAction]struct {
	step   reservationStep
	counts bool
}{
	actionRegister:        {(*reservations).register, true},
	actionRegisterIgnore:  {(*reservations).register, true},
	actionReserve:         {(*reservations).reserve, false},
	actionRelease:         {(*reservations).release, false},
	actionClear:           {(*reservations).clear, true},
	actionPreempt:         {(*reservations).preempt, true},
	actionPreemptAbort:    {(*reservations).preempt, true},
	actionRegisterAndMove: {(*reservations).move, true},
}

// apply processes one order and returns the next state. On a verdict that is not GOOD the state
// returned is r itself and there are no effects.
func (r *reservations) apply(o *reservationOrder) (*reservations, reservationEffects, verdict) {
	s, ok := reservationSteps[o.action]
	if !ok {
		return r, reservationEffects{}, refusal(senseInvalidField.atBit(1, 4))
	}
	if r.reserved6 || !r.authorises(o) {
		return r, reservationEffects{}, reservationConflict
	}
	next := r.clone()
	fx, v := s.step(next, o)
	if v.status != Good {
		return r, reservationEffects{}, v
	}
	if s.counts {
		next.generation++
	}
	fx.save = r.persist || next.persist
	return next, fx, v
}

// authorises checks the RESERVATION KEY: it must be the sender's, and zero for a REGISTER of a
// nexus that is not registered yet.
func (r *reservations) authorises(o *reservationOrder) bool {
	if o.action == actionRegisterIgnore {
		return true
	}
	if !r.registered(o.nexus) {
		return o.action == actionRegister && o.key == 0
	}
	return r.key(o.nexus) == o.key
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 §5.13.7).
func (r *reservations) register(o *reservationOrder) (fx reservationEffects, v verdict) {
	if v := r.checkNamed(o); v.status != Good {
		return fx, v
	}
	for _, n := range o.registering() {
		if o.action == actionRegister && n != o.nexus && r.registered(n) && r.key(n) != o.key {
			return fx, reservationConflict
		}
		if o.actionKey != 0 {
			r.set(n, o.actionKey)
		} else {
			fx.tell(attnReservationsReleased, r.unregister(n)...)
		}
	}
	if len(r.registrants) > maxRegistrants {
		return fx, refusal(senseNoResources)
	}
	r.persist = o.persist
	return fx.onlyFor(r.others(o.nexus)), v
}

// checkNamed refuses SPEC_I_PT from a registered nexus, and naming one that is registered.
func (r *reservations) checkNamed(o *reservationOrder) verdict {
	if len(o.named) == 0 {
		return verdict{}
	}
	if r.registered(o.nexus) || slices.ContainsFunc(o.named, r.registered) {
		return refusal(senseInvalidParameter.inListBit(20, 3))
	}
	return verdict{}
}

// registering lists the nexuses that a registration is for: the sender, with ALL_TG_PT on every
// port, and those that SPEC_I_PT names.
func (o *reservationOrder) registering() []nexusID {
	all := []nexusID{o.nexus}
	for _, n := range append(slices.Clone(o.named), o.nexus) {
		all = append(all, n)
		for _, port := range o.ports {
			all = append(all, nexusID{initiator: n.initiator, target: n.target, port: port})
		}
	}
	slices.SortFunc(all, nexusID.compare)
	return slices.Compact(all)
}

// unregister drops n and, with the last holder, the reservation; it returns those whom the end
// of a shared reservation concerns (SPC-4 §5.13.11.3).
func (r *reservations) unregister(n nexusID) (told []nexusID) {
	held := r.holds(n)
	r.drop(n)
	if !held || r.kind.all() && len(r.registrants) > 0 {
		return nil
	}
	shared := r.kind.shared()
	r.free()
	if !shared {
		return nil
	}
	return r.others(n)
}

// others lists the registered nexuses but n.
func (r *reservations) others(n nexusID) (list []nexusID) {
	for _, g := range r.registrants {
		if g.nexus != n {
			list = append(list, g.nexus)
		}
	}
	return list
}

// reserve is RESERVE (SPC-4 §5.13.9).
func (r *reservations) reserve(o *reservationOrder) (fx reservationEffects, v verdict) {
	switch {
	case r.kind == noReservation:
		r.hold(o.nexus, o.kind)
	case !r.holds(o.nexus) || r.kind != o.kind:
		return fx, reservationConflict
	}
	return fx, v
}

// release is RELEASE (SPC-4 §5.13.11.2).
func (r *reservations) release(o *reservationOrder) (fx reservationEffects, v verdict) {
	if !r.holds(o.nexus) {
		return fx, v
	}
	if r.kind != o.kind {
		return fx, refusal(senseInvalidRelease)
	}
	if r.kind.shared() {
		fx.tell(attnReservationsReleased, r.others(o.nexus)...)
	}
	r.free()
	return fx, v
}

// clear is CLEAR (SPC-4 §5.13.11.6).
func (r *reservations) clear(o *reservationOrder) (fx reservationEffects, v verdict) {
	fx.tell(attnReservationsPreempted, r.others(o.nexus)...)
	r.registrants = nil
	r.free()
	return fx, v
}

// preempt is PREEMPT and PREEMPT AND ABORT (SPC-4 §5.13.11.4 and §5.13.11.5).
func (r *reservations) preempt(o *reservationOrder) (fx reservationEffects, v verdict) {
	switch {
	case r.kind.all() && o.actionKey == 0:
		fx = r.preemptReservation(o, func(registrant) bool { return true })
	case o.actionKey == 0:
		return fx, refusal(senseInvalidParameter.inList(8))
	case !r.anyHas(o.actionKey):
		return fx, reservationConflict
	case r.kind != noReservation && !r.kind.all() && r.reservationKey() == o.actionKey:
		fx = r.preemptReservation(o, func(g registrant) bool { return g.key == o.actionKey })
	default:
		fx = r.preemptRegistrations(o)
	}
	if o.action == actionPreempt {
		fx.aborts = nil
	}
	return fx, v
}

// preemptReservation takes the reservation over and removes the victims' registrations, never the
// sender's. Who stays registered learns of a changed type.
func (r *reservations) preemptReservation(o *reservationOrder, victim func(registrant) bool) (fx reservationEffects) {
	lost := r.dropWhere(func(g registrant) bool { return g.nexus != o.nexus && victim(g) })
	fx.aborts = lost
	fx.tell(attnRegistrationsPreempted, lost...)
	if r.kind != o.kind {
		fx.tell(attnReservationsReleased, r.others(o.nexus)...)
	}
	r.hold(o.nexus, o.kind)
	return fx
}

// preemptRegistrations removes every registration with the key, the sender's too if it has it.
func (r *reservations) preemptRegistrations(o *reservationOrder) (fx reservationEffects) {
	lost := r.dropWhere(func(g registrant) bool { return g.key == o.actionKey })
	if len(r.registrants) == 0 {
		r.free()
	}
	lost = slices.DeleteFunc(lost, func(n nexusID) bool { return n == o.nexus })
	fx.aborts = lost
	fx.tell(attnRegistrationsPreempted, lost...)
	return fx
}

// move is REGISTER AND MOVE (SPC-4 §5.13.8).
func (r *reservations) move(o *reservationOrder) (fx reservationEffects, v verdict) {
	switch {
	case !r.holds(o.nexus) || r.kind.all():
		return fx, reservationConflict
	case o.actionKey == 0:
		return fx, refusal(senseInvalidParameter.inList(8))
	case o.destination == o.nexus:
		return fx, refusal(senseInvalidParameter.inList(24))
	}
	r.set(o.destination, o.actionKey)
	r.hold(o.destination, r.kind)
	if o.unregister {
		r.drop(o.nexus)
	}
	if len(r.registrants) > maxRegistrants {
		return fx, refusal(senseNoResources)
	}
	r.persist = o.persist
	return fx, v
}

// onlyFor keeps the notices of the nexuses listed: neither the sender nor who is registered no more.
func (e reservationEffects) onlyFor(list []nexusID) reservationEffects {
	e.notices = slices.DeleteFunc(e.notices, func(n notice) bool { return !slices.Contains(list, n.nexus) })
	return e
}

// reserve6 is RESERVE(6) of SPC-2 §7.21, with the exceptions of SPC-4 §5.13.3 (CRH): it succeeds
// without effect for a nexus that the persistent reservation admits, and conflicts with every
// other registration.
func (r *reservations) reserve6(n nexusID) (*reservations, verdict) {
	switch {
	case r.compatible6(n):
		return r, verdict{}
	case len(r.registrants) > 0 || r.reserved6 && r.holder6 != n:
		return r, reservationConflict
	}
	next := r.clone()
	next.reserved6, next.holder6 = true, n
	return next, verdict{}
}

// release6 is RELEASE(6); it does nothing for a nexus that holds no such reservation.
func (r *reservations) release6(n nexusID) (*reservations, verdict) {
	switch {
	case r.compatible6(n):
		return r, verdict{}
	case len(r.registrants) > 0:
		return r, reservationConflict
	case r.reserved6 && r.holder6 == n:
		return r.without6(), verdict{}
	}
	return r, verdict{}
}

func (r *reservations) compatible6(n nexusID) bool { return r.kind != noReservation && r.admits(n) }

// nexusLost drops the RESERVE(6) reservation of n; registrations outlive the nexus.
func (r *reservations) nexusLost(n nexusID) *reservations {
	if !r.reserved6 || r.holder6 != n {
		return r
	}
	return r.without6()
}

// reset is the effect of a logical unit reset: persistent reservations stay (SPC-4 §5.13.1).
func (r *reservations) reset() *reservations {
	if !r.reserved6 {
		return r
	}
	return r.without6()
}

func (r *reservations) without6() *reservations {
	next := r.clone()
	next.reserved6, next.holder6 = false, nexusID{}
	return next
}
