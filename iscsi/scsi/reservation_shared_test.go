package scsi

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// sharedStore is what several servers of one unit save to; the test delivers records when it likes.
type sharedStore struct {
	saved   Saved
	servers []*serverStore
}

// serverStore is the store as one server sees it.
type serverStore struct {
	*sharedStore
	unit *LogicalUnit
	due  []func() // deliveries to this server, in order
}

func (s *serverStore) Load(string) (Saved, error) { return s.saved, nil }

func (s *serverStore) Save(_ int, _ string, record []byte, after int64, done func(int64, error)) {
	if s.saved.Revision != after {
		now := s.saved
		s.due = append(s.due, func() {
			if err := s.unit.ReservationsChanged(now, func() { done(0, ErrRecordChanged) }); err != nil {
				panic(err)
			}
		})
		return
	}
	now := Saved{record, after + 1}
	s.saved = now
	left := len(s.servers)
	one := func() {
		if left--; left == 0 {
			done(now.Revision, nil)
		}
	}
	for _, o := range s.servers {
		if o == s {
			continue
		}
		o.due = append(o.due, func() {
			if err := o.unit.ReservationsChanged(now, one); err != nil {
				panic(err)
			}
		})
	}
	one()
}

func (s *serverStore) deliver() bool {
	if len(s.due) == 0 {
		return false
	}
	next := s.due[0]
	s.due = s.due[1:]
	next()
	return true
}

// settle delivers everything.
func (s *sharedStore) settle() {
	for again := true; again; {
		again = false
		for _, o := range s.servers {
			again = o.deliver() || again
		}
	}
}

// newServers makes n servers that present one unit, each by a port of its own.
func newServers(t *testing.T, n int) (*sharedStore, []*testbed) {
	t.Helper()
	store := &sharedStore{}
	var beds []*testbed
	for i := range n {
		b := newTestbed(t, 64, func(o *UnitOptions) { o.Shared = true })
		b.nexus = b.target.NewNexus(b.nexus.initiator, uint16(i+2)) // a port of the server's own
		b.run(b.nexus, cdb(0x00), nil, 0)
		s := &serverStore{sharedStore: store, unit: b.unit}
		b.target.opts.Reservations.Store = s
		store.servers = append(store.servers, s)
		beds = append(beds, b)
	}
	return store, beds
}

// out sends a PERSISTENT RESERVE OUT and returns it although it may still wait.
func (b *testbed) out(n *Nexus, action reservationAction, kind reservationType, key, actionKey uint64) *Command {
	c, _ := b.start(n, 0, Simple, 1, outCDB(action, kind, 24), outList(key, actionKey, 0), 0)
	return c
}

// A reservation that was made through one server holds on all, and PREEMPT AND ABORT ends with GOOD only
// when the victim's task on another server is out of the backend.
func TestReservationsAcrossServers(t *testing.T) {
	store, beds := newServers(t, 2)
	a, b := beds[0], beds[1]
	victim := b.login(hostTwo)
	register := a.out(a.nexus, actionRegister, 0, 0, keyA)
	store.settle()
	b.out(victim, actionRegister, 0, 0, keyB)
	store.settle()
	a.out(a.nexus, actionReserve, writeExclusiveOnly, keyA, 0)
	store.settle()
	outsider := b.login(hostThree)
	if register.Status != Good || b.write(outsider) != ReservationConflict || b.write(victim) != Good {
		t.Fatal("the other server does not know the reservation")
	}

	b.store.hold = true
	write, _ := b.start(victim, 0, Simple, 7, cdb10(0x2A, 0, 0, 1), make([]byte, 512), 0)
	ended := false
	preempt, _ := a.start(a.nexus, 0, Simple, 8, outCDB(actionPreemptAbort, writeExclusiveOnly, 24), outList(keyA, keyB, 0), 0)
	preempt.Done = func(*Command) { ended = true }
	store.settle()
	if ended {
		t.Fatal("PREEMPT AND ABORT did not wait for the task on the other server")
	}
	b.store.hold = false
	b.store.release()
	if !ended || preempt.Status != Good || write.Status == Good {
		t.Fatalf("ended %v: PREEMPT AND ABORT %v, WRITE %v", ended, preempt.Status, write.Status)
	}
	for b.run(victim, cdb(0x00), nil, 0).Status == CheckCondition { // takes the unit attentions
	}
	if b.write(victim) != ReservationConflict {
		t.Fatal("the victim still writes")
	}
}

// A server that has not seen the newest record applies its command to it, not to what it knows.
func TestReservationOnAStaleServer(t *testing.T) {
	store, beds := newServers(t, 2)
	a, b := beds[0], beds[1]
	a.out(a.nexus, actionRegister, 0, 0, keyA)
	a.out(a.nexus, actionReserve, exclusiveAccess, keyA, 0) // waits for its turn: b has not answered
	two := b.login(hostTwo)
	c := b.out(two, actionRegister, 0, 0, keyB)
	store.settle()
	r := b.out(two, actionReserve, exclusiveAccess, keyB, 0)
	store.settle()
	if c.Status != Good || r.Status != ReservationConflict || b.unit.reservations.load().reservationKey() != keyA {
		t.Fatalf("REGISTER %v, RESERVE %v", c.Status, r.Status)
	}
}

// A server that missed records takes the strictest effects that can have been theirs.
func TestReservationRecordsMissed(t *testing.T) {
	store, beds := newServers(t, 2)
	a, b := beds[0], beds[1]
	two := b.login(hostTwo)
	b.out(two, actionRegister, 0, 0, keyB)
	store.settle()
	store.servers = store.servers[:1] // b hears nothing
	a.out(a.nexus, actionRegister, 0, 0, keyA)
	a.out(a.nexus, actionPreempt, writeExclusive, keyA, keyB)
	a.out(a.nexus, actionReserve, writeExclusive, keyA, 0)
	done := false
	if err := b.unit.ReservationsChanged(store.saved, func() { done = true }); err != nil || !done {
		t.Fatalf("done %v, %v", done, err)
	}
	b.wantSense(b.run(two, cdb(0x00), nil, 0), unitAttention, attentionCodes[attnRegistrationsPreempted])
	if b.write(two) != ReservationConflict {
		t.Fatal("the victim still writes")
	}
	if err := b.unit.ReservationsChanged(Saved{[]byte("{"), 99}, nil); err == nil {
		t.Fatal("a damaged record was taken over")
	}
	if b.write(two) != ReservationConflict {
		t.Fatal("a damaged record changed the state")
	}
}

func TestReserve6IsOfOneServer(t *testing.T) {
	_, beds := newServers(t, 1)
	b := beds[0]
	for _, op := range []byte{opReserve6, opRelease6} {
		b.bad(cdb(op), nil, 0, illegalRequest, 0x2000)
		if c := b.good(cdb(0xA3, 0x0C, 1, op, 0, 0, 0, 0, 0, 64), nil, 64); c.Data[1]&7 != opcodeNone {
			t.Errorf("%02x: REPORT SUPPORTED OPERATION CODES % X", op, c.Data[:4])
		}
	}
}

// Orders at three servers, records delivered late: every command ends, all servers come to the state of
// the newest record, and each revision follows from the one before (no order is lost or applied twice).
func TestReservationsAcrossServersSimulation(t *testing.T) {
	for seed := range uint64(400) {
		if err := simulateServers(t, seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func simulateServers(t *testing.T, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 4))
	store, beds := newServers(t, 3)
	keys, open := map[*Nexus]uint64{}, 0
	var counted, unknown uint32 // unknown: aborted, with or without effect
	for step := range 60 {
		b := beds[rng.IntN(len(beds))]
		if rng.IntN(3) > 0 {
			store.servers[rng.IntN(len(beds))].deliver()
			continue
		}
		action := pick(rng, actionRegisterIgnore, actionRegisterIgnore, actionReserve, actionRelease, actionClear, actionPreempt, actionPreemptAbort)
		key := uint64(step + 1)
		c := &Command{
			CDB: outCDB(action, pick(rng, allTypes...), 24), Nexus: b.nexus, Expected: 24,
			Data: outList(keys[b.nexus], pick(rng, key, keys[beds[rng.IntN(3)].nexus]), 0),
		}
		if action == actionRegisterIgnore {
			keys[b.nexus] = key
			c.Data = outList(0, key, 0)
		}
		open++
		c.Done = func(c *Command) {
			open--
			switch {
			case !reservationSteps[action].counts:
			case c.aborted:
				unknown++
			case c.Status == Good:
				counted++
			}
		}
		b.target.Decode(c)
		b.target.Execute(c)
	}
	store.settle()
	want := beds[0].unit.reservations.load()
	for i, b := range beds {
		got := b.unit.reservations.load()
		if got.revision != store.saved.Revision || !got.equal(want) || !maps.Equal(got.byNexus(), want.byNexus()) {
			return fmt.Errorf("server %d has %+v, the first %+v", i, got, want)
		}
	}
	if open != 0 || want.generation < counted || want.generation > counted+unknown {
		return fmt.Errorf("%d commands open; generation %d after %d counted orders and %d aborted", open, want.generation, counted, unknown)
	}
	return nil
}
