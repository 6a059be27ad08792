package scsi

import (
	"errors"
	"slices"
	"testing"
)

// Three I_T nexuses: two initiators, and the second target port of the first one.
var (
	nexusA  = nexusID{"iqn.2026-01.org.lunar:a,i,0x000000000001", "iqn.t", 1}
	nexusA2 = nexusID{"iqn.2026-01.org.lunar:a,i,0x000000000001", "iqn.t", 2}
	nexusB  = nexusID{"iqn.2026-01.org.lunar:b,i,0x000000000002", "iqn.t", 1}
	nexusC  = nexusID{"iqn.2026-01.org.lunar:c,i,0x000000000003", "iqn.t", 1}
)

const keyA, keyB, keyC = 0xA, 0xB, 0xC

var allTypes = []reservationType{writeExclusive, exclusiveAccess, writeExclusiveOnly, exclusiveAccessOnly, writeExclusiveAll, exclusiveAccessAll}

// orders applies each order and fails the test at the first that is not GOOD; it returns the last
// effects.
func orders(t *testing.T, r *reservations, list ...reservationOrder) (*reservations, reservationEffects) {
	t.Helper()
	var fx reservationEffects
	for i := range list {
		var v verdict
		r, fx, v = r.apply(&list[i])
		if v.status != Good {
			t.Fatalf("order %d (%+v): %v %+v", i, list[i], v.status, v.sense)
		}
	}
	return r, fx
}

func register(n nexusID, key uint64) reservationOrder {
	return reservationOrder{action: actionRegister, nexus: n, actionKey: key}
}

func unregister(n nexusID, key uint64) reservationOrder {
	return reservationOrder{action: actionRegister, nexus: n, key: key}
}

func reserve(n nexusID, key uint64, kind reservationType) reservationOrder {
	return reservationOrder{action: actionReserve, nexus: n, key: key, kind: kind}
}

func preemptOrder(n nexusID, key, victim uint64, kind reservationType) reservationOrder {
	return reservationOrder{action: actionPreempt, nexus: n, key: key, actionKey: victim, kind: kind}
}

// three has A, B and C registered.
func three(t *testing.T) *reservations {
	r, _ := orders(t, &reservations{}, register(nexusA, keyA), register(nexusB, keyB), register(nexusC, keyC))
	return r
}

func wantRefused(t *testing.T, r *reservations, o reservationOrder, status Status, code uint16) {
	t.Helper()
	next, fx, v := r.apply(&o)
	if v.status != status || v.sense.code != code {
		t.Fatalf("%+v: %v %04X, want %v %04X", o, v.status, v.sense.code, status, code)
	}
	if next != r || len(fx.notices)+len(fx.aborts) > 0 || fx.save {
		t.Fatalf("%+v: a refused order has effects: %+v", o, fx)
	}
}

func wantNotices(t *testing.T, fx reservationEffects, about attention, list ...nexusID) {
	t.Helper()
	var got []nexusID
	for _, n := range fx.notices {
		if n.about == about {
			got = append(got, n.nexus)
		}
	}
	if !slices.Equal(got, list) {
		t.Fatalf("told of %04X: %v, want %v", attentionCodes[about], got, list)
	}
}

// SPC-4 §5.13.7: the existing key must match.
func TestRegisterKeys(t *testing.T) {
	r, _ := orders(t, &reservations{}, register(nexusA, keyA))
	wantRefused(t, r, register(nexusA, keyB), ReservationConflict, 0)
	wantRefused(t, r, reservationOrder{action: actionRegister, nexus: nexusB, key: keyB, actionKey: keyB}, ReservationConflict, 0)
	r, _ = orders(t, r, reservationOrder{action: actionRegister, nexus: nexusA, key: keyA, actionKey: keyC})
	if r.key(nexusA) != keyC {
		t.Fatalf("key = %X", r.key(nexusA))
	}
	r, _ = orders(t, r, reservationOrder{action: actionRegisterIgnore, nexus: nexusA, key: 99, actionKey: keyB})
	if r.key(nexusA) != keyB || r.generation != 3 {
		t.Fatalf("key = %X, generation %d", r.key(nexusA), r.generation)
	}
	r, _ = orders(t, r, unregister(nexusA, keyB), unregister(nexusA, 0))
	if len(r.registrants) != 0 {
		t.Fatal("still registered")
	}
}

// SPC-4 §6.16.3: ALL_TG_PT registers on every target port; each registration goes alone.
func TestRegisterAllTargetPorts(t *testing.T) {
	o := register(nexusA, keyA)
	o.ports = []uint16{1, 2}
	r, _ := orders(t, &reservations{}, o)
	if r.key(nexusA) != keyA || r.key(nexusA2) != keyA || len(r.registrants) != 2 {
		t.Fatalf("registrants %+v", r.registrants)
	}
	r, _ = orders(t, r, unregister(nexusA2, keyA))
	if !r.registered(nexusA) || r.registered(nexusA2) {
		t.Fatalf("registrants %+v", r.registrants)
	}
}

// SPC-4 §5.13.7.3: SPEC_I_PT registers others, all or none.
func TestRegisterSpecified(t *testing.T) {
	o := register(nexusA, keyA)
	o.named = []nexusID{nexusB, nexusC}
	r, _ := orders(t, &reservations{}, o)
	if r.key(nexusB) != keyA || r.key(nexusC) != keyA || r.generation != 1 {
		t.Fatalf("state %+v", r)
	}
	b, _ := orders(t, &reservations{}, register(nexusB, keyB))
	wantRefused(t, b, o, CheckCondition, 0x2600)
}

func TestRegistrationsAreBounded(t *testing.T) {
	r := &reservations{}
	for i := range maxRegistrants {
		n := nexusA
		n.port = uint16(i + 1)
		r.set(n, 1)
	}
	wantRefused(t, r, register(nexusB, keyB), CheckCondition, senseNoResources.code)
}

// SPC-4 §5.13.9: who may reserve.
func TestReserve(t *testing.T) {
	for _, kind := range allTypes {
		r, _ := orders(t, three(t), reserve(nexusA, keyA, kind), reserve(nexusA, keyA, kind))
		if r.generation != 3 {
			t.Fatalf("RESERVE counted: generation %d", r.generation)
		}
		wantRefused(t, r, reserve(nexusA, keyB, kind), ReservationConflict, 0)
		for _, other := range allTypes {
			if other != kind {
				wantRefused(t, r, reserve(nexusA, keyA, other), ReservationConflict, 0)
			}
		}
		if kind.all() {
			orders(t, r, reserve(nexusB, keyB, kind))
		} else {
			wantRefused(t, r, reserve(nexusB, keyB, kind), ReservationConflict, 0)
		}
	}
	wantRefused(t, &reservations{}, reserve(nexusA, 0, writeExclusive), ReservationConflict, 0)
}

// SPC-4 §5.13.11.2: release, and whom it is told.
func TestRelease(t *testing.T) {
	for _, kind := range allTypes {
		r, _ := orders(t, three(t), reserve(nexusA, keyA, kind))
		release := reservationOrder{action: actionRelease, nexus: nexusA, key: keyA, kind: kind}
		wrong := release
		wrong.kind = writeExclusive ^ exclusiveAccess ^ kind
		if !wrong.kind.valid() || wrong.kind == kind {
			wrong.kind = writeExclusiveOnly ^ exclusiveAccessOnly ^ kind
		}
		wantRefused(t, r, wrong, CheckCondition, 0x2604)
		done, fx := orders(t, r, release)
		if done.kind != noReservation || len(done.registrants) != 3 {
			t.Fatalf("%v: %+v", kind, done)
		}
		if kind.shared() {
			wantNotices(t, fx, attnReservationsReleased, nexusB, nexusC)
		} else if len(fx.notices) != 0 {
			t.Fatalf("%v: told %+v", kind, fx.notices)
		}
		if !kind.all() { // a registrant that is not the holder: GOOD, no effect
			same, _ := orders(t, r, reservationOrder{action: actionRelease, nexus: nexusB, key: keyB, kind: kind})
			if !same.holds(nexusA) {
				t.Fatal("released by another")
			}
		}
	}
}

// SPC-4 §5.13.11.3: unregistering the holder.
func TestUnregisterHolder(t *testing.T) {
	for _, kind := range allTypes {
		r, _ := orders(t, three(t), reserve(nexusA, keyA, kind))
		r, fx := orders(t, r, unregister(nexusA, keyA))
		if held := r.kind != noReservation; held != kind.all() {
			t.Fatalf("%v: reserved %v", kind, held)
		}
		if kind == writeExclusiveOnly || kind == exclusiveAccessOnly {
			wantNotices(t, fx, attnReservationsReleased, nexusB, nexusC)
		} else if len(fx.notices) != 0 {
			t.Fatalf("%v: told %+v", kind, fx.notices)
		}
		r, _ = orders(t, r, unregister(nexusB, keyB), unregister(nexusC, keyC))
		if r.kind != noReservation {
			t.Fatalf("%v: reserved by nobody", kind)
		}
	}
}

// SPC-4 §5.13.11.6.
func TestClear(t *testing.T) {
	r, _ := orders(t, three(t), reserve(nexusA, keyA, exclusiveAccess))
	r, fx := orders(t, r, reservationOrder{action: actionClear, nexus: nexusB, key: keyB})
	if len(r.registrants) != 0 || r.kind != noReservation || r.generation != 4 {
		t.Fatalf("state %+v", r)
	}
	wantNotices(t, fx, attnReservationsPreempted, nexusA, nexusC)
}

// SPC-4 §5.13.11.4.
func TestPreempt(t *testing.T) {
	reserved, _ := orders(t, three(t), reserve(nexusA, keyA, exclusiveAccess))
	t.Run("holder, new type", func(t *testing.T) {
		r, fx := orders(t, reserved, preemptOrder(nexusB, keyB, keyA, writeExclusiveOnly))
		if !r.holds(nexusB) || r.kind != writeExclusiveOnly || r.registered(nexusA) || r.generation != 4 {
			t.Fatalf("state %+v", r)
		}
		wantNotices(t, fx, attnRegistrationsPreempted, nexusA)
		wantNotices(t, fx, attnReservationsReleased, nexusC)
		if fx.aborts != nil {
			t.Fatal("PREEMPT aborts")
		}
	})
	t.Run("holder, same type", func(t *testing.T) {
		_, fx := orders(t, reserved, preemptOrder(nexusB, keyB, keyA, exclusiveAccess))
		wantNotices(t, fx, attnReservationsReleased)
	})
	t.Run("registrant", func(t *testing.T) {
		r, fx := orders(t, reserved, preemptOrder(nexusB, keyB, keyC, writeExclusive))
		if !r.holds(nexusA) || r.kind != exclusiveAccess || r.registered(nexusC) {
			t.Fatalf("state %+v", r)
		}
		wantNotices(t, fx, attnRegistrationsPreempted, nexusC)
	})
	t.Run("abort", func(t *testing.T) {
		o := preemptOrder(nexusB, keyB, keyA, exclusiveAccess)
		o.action = actionPreemptAbort
		_, fx := orders(t, reserved, o)
		if !slices.Equal(fx.aborts, []nexusID{nexusA}) {
			t.Fatalf("aborts %v", fx.aborts)
		}
	})
	t.Run("own type change", func(t *testing.T) {
		r, _ := orders(t, reserved, preemptOrder(nexusA, keyA, keyA, writeExclusiveAll))
		if r.kind != writeExclusiveAll || len(r.registrants) != 3 {
			t.Fatalf("state %+v", r)
		}
	})
	wantRefused(t, reserved, preemptOrder(nexusB, keyB, 0x99, exclusiveAccess), ReservationConflict, 0)
	wantRefused(t, reserved, preemptOrder(nexusB, keyB, 0, exclusiveAccess), CheckCondition, 0x2600)
	wantRefused(t, reserved, preemptOrder(nexusB, keyA, keyA, exclusiveAccess), ReservationConflict, 0)
}

// SPC-4 §5.13.11.4.3: under All Registrants a zero key preempts everyone else.
func TestPreemptAllRegistrants(t *testing.T) {
	for _, kind := range []reservationType{writeExclusiveAll, exclusiveAccessAll} {
		reserved, _ := orders(t, three(t), reserve(nexusA, keyA, kind))
		r, fx := orders(t, reserved, preemptOrder(nexusB, keyB, 0, writeExclusive))
		if !r.holds(nexusB) || r.kind != writeExclusive || len(r.registrants) != 1 {
			t.Fatalf("state %+v", r)
		}
		wantNotices(t, fx, attnRegistrationsPreempted, nexusA, nexusC)
		r, _ = orders(t, reserved, preemptOrder(nexusB, keyB, keyA, writeExclusive))
		if r.kind != kind || r.registered(nexusA) {
			t.Fatalf("a key removes registrations only: %+v", r)
		}
	}
}

// SPC-4 §5.13.8.
func TestRegisterAndMove(t *testing.T) {
	move := reservationOrder{action: actionRegisterAndMove, nexus: nexusA, key: keyA, actionKey: keyB, destination: nexusB, unregister: true}
	r, _ := orders(t, &reservations{}, register(nexusA, keyA))
	wantRefused(t, r, move, ReservationConflict, 0)
	r, _ = orders(t, r, reserve(nexusA, keyA, exclusiveAccess))
	self := move
	self.destination = nexusA
	wantRefused(t, r, self, CheckCondition, 0x2600)
	zero := move
	zero.actionKey = 0
	wantRefused(t, r, zero, CheckCondition, 0x2600)
	moved, _ := orders(t, r, move)
	if !moved.holds(nexusB) || moved.key(nexusB) != keyB || moved.registered(nexusA) {
		t.Fatalf("state %+v", moved)
	}
	all, _ := orders(t, &reservations{}, register(nexusA, keyA), reserve(nexusA, keyA, writeExclusiveAll))
	wantRefused(t, all, move, ReservationConflict, 0)
}

// SPC-4 §5.13.1, the tables of allowed commands: holder, registered and unregistered nexuses.
func TestConflictTable(t *testing.T) {
	const r, w = 1, 2
	table := map[reservationType]struct{ registered, other int }{
		writeExclusive:      {r, r},
		exclusiveAccess:     {0, 0},
		writeExclusiveOnly:  {r | w, r},
		exclusiveAccessOnly: {r | w, 0},
		writeExclusiveAll:   {r | w, r},
		exclusiveAccessAll:  {r | w, 0},
	}
	for kind, want := range table {
		s, _ := orders(t, &reservations{}, register(nexusA, keyA), register(nexusB, keyB), reserve(nexusA, keyA, kind))
		for n, allowed := range map[nexusID]int{nexusA: r | w, nexusB: want.registered, nexusC: want.other} {
			for class, bit := range map[reservationClass]int{classRead: r, classWrite: w} {
				if got := s.conflicts(n, class, false); got == (allowed&bit != 0) {
					t.Errorf("type %d, %s, class %d: conflict %v", kind, n.initiator, class, got)
				}
			}
			if s.conflicts(n, classAlways, false) || s.conflicts(n, classOwn, false) {
				t.Errorf("type %d refuses a command that is always allowed", kind)
			}
		}
		if s.conflictsPort(nexusA.initiator, classWrite) || !s.conflictsPort(nexusC.initiator, classWrite) {
			t.Errorf("type %d: copy manager", kind)
		}
	}
}

// SPC-2 §5.5.1 with SPC-4 §5.13.3.
func TestReserve6(t *testing.T) {
	r, v := (&reservations{}).reserve6(nexusA)
	if v.status != Good || !r.conflicts(nexusB, classAlways, false) || r.conflicts(nexusB, classAlways, true) || r.conflicts(nexusA, classWrite, false) {
		t.Fatalf("%v %+v", v, r)
	}
	if _, v = r.reserve6(nexusA); v.status != Good {
		t.Fatal("own RESERVE again")
	}
	if _, v = r.reserve6(nexusB); v.status != ReservationConflict {
		t.Fatal("RESERVE by another")
	}
	if same, v := r.release6(nexusB); v.status != Good || same != r {
		t.Fatal("RELEASE by another is a nop")
	}
	wantRefused(t, r, register(nexusB, keyB), ReservationConflict, 0)
	wantRefused(t, r, register(nexusA, keyA), ReservationConflict, 0)
	for what, s := range map[string]*reservations{"reset": r.reset(), "nexus loss": r.nexusLost(nexusA)} {
		if s.reserved6 {
			t.Errorf("survived %s", what)
		}
	}
	if !r.nexusLost(nexusB).reserved6 {
		t.Error("lost with another nexus")
	}
	if r, v = r.release6(nexusA); v.status != Good || r.reserved6 {
		t.Fatal("RELEASE")
	}
}

// SPC-4 §5.13.3: compatible reservation handling.
func TestReserve6WithPersistentReservation(t *testing.T) {
	registered := three(t)
	if _, v := registered.reserve6(nexusA); v.status != ReservationConflict {
		t.Fatal("RESERVE(6) beside registrations")
	}
	if _, v := registered.release6(nexusC); v.status != ReservationConflict {
		t.Fatal("RELEASE(6) beside registrations")
	}
	for _, kind := range allTypes {
		s, _ := orders(t, three(t), reserve(nexusA, keyA, kind))
		for n, good := range map[nexusID]bool{nexusA: true, nexusB: kind.shared(), nexusA2: false} {
			next, v := s.reserve6(n)
			if (v.status == Good) != good || next != s {
				t.Errorf("type %d, %+v: %v", kind, n, v.status)
			}
			if next, v = s.release6(n); (v.status == Good) != good || next != s {
				t.Errorf("type %d, %+v: release %v", kind, n, v.status)
			}
		}
	}
}

// APTPL: what was saved comes back; what a damaged record says does not.
func TestReservationRecord(t *testing.T) {
	persist := register(nexusA, keyA)
	persist.persist = true
	for _, kind := range allTypes {
		r, fx := orders(t, &reservations{}, register(nexusB, keyB), persist, reserve(nexusA, keyA, kind))
		if !fx.save {
			t.Fatal("not saved")
		}
		back, err := restoreReservations(Saved{Record: r.record()})
		if err != nil || !slices.Equal(back.registrants, r.registrants) || back.kind != kind || !back.holds(nexusA) || !back.persist || back.generation != 0 {
			t.Fatalf("type %d: %+v, %v", kind, back, err)
		}
	}
	volatile, _ := orders(t, &reservations{}, persist, reservationOrder{action: actionRegister, nexus: nexusA, key: keyA, actionKey: keyB})
	if back, err := restoreReservations(Saved{Record: volatile.record()}); err != nil || len(back.registrants) != 0 {
		t.Fatalf("APTPL 0: %+v, %v", back, err)
	}
	for _, bad := range []string{"", "{}", `{"version":3}`, `{"version":2,"type":1}`, `{"version":2,"type":2,"registrations":[{"initiator":"a","port":1,"key":1,"holder":true}]}`,
		`{"version":2,"registrations":[{"initiator":"a","key":0}]}`, `{"version":2,"type":7,"registrations":[{"initiator":"a","key":1}]}`} {
		if _, err := restoreReservations(Saved{Record: []byte(bad)}); !errors.Is(err, ErrReservationRecord) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
