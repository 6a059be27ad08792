package scsi

import (
	"testing"
)

var fuzzScope = &reservationScope{
	ports:      []uint16{1, 2},
	initiators: func(node string) []string { return []string{node + isidSeparator + "000000000001"} },
	persistent: true,
}

// FuzzPersistentReserveOut parses and applies any parameter list to a state with registrations and
// checks that the state stays sound.
func FuzzPersistentReserveOut(f *testing.F) {
	f.Add(byte(0), byte(0), outList(0, 1, 0x0D))
	f.Add(byte(1), byte(5), outList(keyA, 0, 0))
	f.Add(byte(4), byte(3), outList(keyA, keyB, 0))
	f.Add(byte(6), byte(0), outList(0, 9, 5))
	f.Add(byte(0), byte(0), withTransportIDs(outList(0, 1, 8), hostTwo, "iqn.x:y"))
	f.Add(byte(7), byte(0), moveList(keyA, keyB, 3, 2, transportID(hostTwo)))
	f.Fuzz(func(t *testing.T, action, kind byte, list []byte) {
		for _, sender := range []nexusID{nexusA, {hostThree, "iqn.t", 1}} {
			start, _ := orders(t, &reservations{}, register(nexusA, keyA), register(nexusB, keyB), reserve(nexusA, keyA, writeExclusive))
			c := outCDB(reservationAction(action&0x1F), reservationType(kind), len(list))
			o, v := parseReservationOut(&c, list, sender, fuzzScope)
			if v.status != Good {
				continue
			}
			s := &reservationSim{before: start, order: *o}
			s.after, s.effects, s.verdict = start.apply(o)
			if s.effects.save {
				s.saved = s.after.record()
			}
			for _, inv := range reservationInvariants {
				if err := inv.check(s); err != nil {
					t.Fatalf("%s: %v", inv.name, err)
				}
			}
		}
	})
}

// FuzzTransportID: what is accepted encodes back to the same name.
func FuzzTransportID(f *testing.F) {
	for _, name := range []string{hostTwo, "iqn.x", "iqn.2026-01.org.example:with-a-name-of-some-length", "eui.02004567A425678D"} {
		f.Add(transportID(name))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		name, n, ok := parseTransportID(p)
		if !ok {
			return
		}
		if n > len(p) {
			t.Fatalf("%d of %d bytes", n, len(p))
		}
		if again, _, ok := parseTransportID(transportID(name)); !ok || again != name {
			t.Fatalf("%q comes back as %q, %v", name, again, ok)
		}
	})
}

// FuzzReservationRecord: a record is refused, or restores a sound state that saves the same.
func FuzzReservationRecord(f *testing.F) {
	persist := register(nexusA, keyA)
	persist.persist = true
	for _, kind := range allTypes {
		r, _, _ := (&reservations{}).apply(&persist)
		o := reserve(nexusA, keyA, kind)
		r, _, _ = r.apply(&o)
		f.Add(r.record())
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		r, err := restoreReservations(Saved{Record: record})
		if err != nil {
			return
		}
		if err := checkHolderRegistered(&reservationSim{after: r}); err != nil {
			t.Fatal(err)
		}
		again, err := restoreReservations(Saved{Record: r.sharedRecord(&reservationEffects{})})
		if err != nil || !again.equal(r) {
			t.Fatalf("%+v comes back as %+v, %v", r, again, err)
		}
	})
}
