package scsi

// conflicts tells that a command of class from the I_T nexus n meets RESERVATION CONFLICT
// (SPC-4 §5.13.1, tables of the allowed commands; SPC-2 §5.5.1 for RESERVE(6), where pass6 marks
// the commands that it lets through). It reads r only, so that any lane may ask it about the
// published state.
func (r *reservations) conflicts(n nexusID, class reservationClass, pass6 bool) bool {
	switch {
	case r.kind == noReservation && !r.reserved6:
		return false
	case class == classOwn:
		return false
	case r.reserved6:
		return !pass6 && r.holder6 != n
	}
	return r.refuses(class) && !r.admits(n)
}

// refuses tells that the persistent reservation keeps commands of class from those that it does
// not admit.
func (r *reservations) refuses(class reservationClass) bool {
	switch class {
	case classRead:
		return r.kind.exclusive()
	case classWrite:
		return r.kind != noReservation
	}
	return false
}

// admits tells that n may do everything: a holder, or registered under a type that shares.
func (r *reservations) admits(n nexusID) bool {
	if r.kind.shared() {
		return r.registered(n)
	}
	return r.holds(n)
}

// conflictsPort is conflicts for the copy manager, which acts for an initiator port through
// whatever target port that one may use: it conflicts when no registration of the port is admitted.
func (r *reservations) conflictsPort(initiator string, class reservationClass) bool {
	switch {
	case r.reserved6:
		return r.holder6.initiator != initiator
	case !r.refuses(class):
		return false
	}
	for _, g := range r.registrants {
		if g.nexus.initiator == initiator && r.admits(g.nexus) {
			return false
		}
	}
	return true
}
