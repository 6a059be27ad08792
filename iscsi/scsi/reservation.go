package scsi

import (
	"cmp"
	"slices"
)

// nexusID names an I_T nexus for ever, whether or not a session is there: registrations outlive
// sessions (SPC-4 §5.13.1).
type nexusID struct {
	initiator string // initiator port: name,i,0xISID
	target    string // target name
	port      uint16 // relative target port identifier
}

func (n nexusID) compare(o nexusID) int {
	return cmp.Or(cmp.Compare(n.initiator, o.initiator), cmp.Compare(n.target, o.target), cmp.Compare(n.port, o.port))
}

// reservationType is the TYPE field of SPC-4 table 203; zero: no persistent reservation.
type reservationType uint8

const (
	noReservation       reservationType = 0
	writeExclusive      reservationType = 1
	exclusiveAccess     reservationType = 3
	writeExclusiveOnly  reservationType = 5 // Write Exclusive – Registrants Only
	exclusiveAccessOnly reservationType = 6 // Exclusive Access – Registrants Only
	writeExclusiveAll   reservationType = 7 // Write Exclusive – All Registrants
	exclusiveAccessAll  reservationType = 8 // Exclusive Access – All Registrants
)

// supportedTypes is the PERSISTENT RESERVATION TYPE MASK: all six (SPC-4 table 217).
const supportedTypes = 0xEA01

// maxRegistrants bounds the registrations of one logical unit; READ KEYS shows 8,190 at most.
const maxRegistrants = 4096

func (t reservationType) valid() bool {
	switch t {
	case writeExclusive, exclusiveAccess, writeExclusiveOnly, exclusiveAccessOnly, writeExclusiveAll, exclusiveAccessAll:
		return true
	}
	return false
}

// all tells the All Registrants types, where every registered I_T nexus holds the reservation.
func (t reservationType) all() bool { return t == writeExclusiveAll || t == exclusiveAccessAll }

// shared tells the types that let every registered I_T nexus in.
func (t reservationType) shared() bool { return t >= writeExclusiveOnly }

// exclusive tells the types that keep readers out too.
func (t reservationType) exclusive() bool {
	return t == exclusiveAccess || t == exclusiveAccessOnly || t == exclusiveAccessAll
}

// registrant is one registration: an I_T nexus and its reservation key, never zero.
type registrant struct {
	nexus nexusID
	key   uint64
}

// reservations is the reservation state of one logical unit, a value without lock, clock or I/O:
// apply makes a new state of it. A published state is never changed. The zero value has no
// registrations.
type reservations struct {
	revision    int64        // the store's, of the record that this state is of
	generation  uint32       // PRGENERATION
	persist     bool         // APTPL of the newest registration
	registrants []registrant // by nexusID, unique
	kind        reservationType
	holder      nexusID // meaningful for a kind that is not All Registrants
	reserved6   bool    // RESERVE(6) is in force for holder6
	holder6     nexusID
}

func (r *reservations) clone() *reservations {
	next := *r
	next.registrants = slices.Clone(r.registrants)
	return &next
}

func (r *reservations) find(n nexusID) (int, bool) {
	return slices.BinarySearchFunc(r.registrants, n, func(g registrant, n nexusID) int { return g.nexus.compare(n) })
}

func (r *reservations) registered(n nexusID) bool {
	_, ok := r.find(n)
	return ok
}

// key is the reservation key of n; zero: not registered.
func (r *reservations) key(n nexusID) uint64 {
	if i, ok := r.find(n); ok {
		return r.registrants[i].key
	}
	return 0
}

func (r *reservations) anyHas(key uint64) bool {
	return slices.ContainsFunc(r.registrants, func(g registrant) bool { return g.key == key })
}

// holds tells that n is a persistent reservation holder (SPC-4 §5.13.10).
func (r *reservations) holds(n nexusID) bool {
	switch {
	case r.kind == noReservation:
		return false
	case r.kind.all():
		return r.registered(n)
	}
	return r.holder == n
}

// reservationKey is what READ RESERVATION shows: zero for the All Registrants types.
func (r *reservations) reservationKey() uint64 {
	if r.kind.all() {
		return 0
	}
	return r.key(r.holder)
}

// set registers n with key, or changes its key.
func (r *reservations) set(n nexusID, key uint64) {
	i, ok := r.find(n)
	if !ok {
		r.registrants = slices.Insert(r.registrants, i, registrant{nexus: n})
	}
	r.registrants[i].key = key
}

// drop removes the registration of n. It leaves the reservation as it is.
func (r *reservations) drop(n nexusID) {
	if i, ok := r.find(n); ok {
		r.registrants = slices.Delete(r.registrants, i, i+1)
	}
}

// dropWhere removes the registrations that match and returns their nexuses.
func (r *reservations) dropWhere(match func(registrant) bool) (lost []nexusID) {
	r.registrants = slices.DeleteFunc(r.registrants, func(g registrant) bool {
		if !match(g) {
			return false
		}
		lost = append(lost, g.nexus)
		return true
	})
	return lost
}

func (r *reservations) free() { r.kind, r.holder = noReservation, nexusID{} }

func (r *reservations) hold(n nexusID, kind reservationType) {
	r.kind, r.holder = kind, n
	if kind.all() {
		r.holder = nexusID{}
	}
}
