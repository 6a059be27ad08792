package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	hostTwo   = "iqn.2026-01.org.example:two,i,0x800000000002"
	hostThree = "iqn.2026-01.org.example:three,i,0x800000000003"
)

// savedReservations is a ReservationStore; with hold set, saves wait.
type savedReservations struct {
	records map[string]Saved
	err     error
	hold    bool
	waiting []func()
}

func (s *savedReservations) Load(unit string) (Saved, error) { return s.records[unit], s.err }

func (s *savedReservations) Save(_ int, unit string, record []byte, after int64, done func(int64, error)) {
	finish := func() {
		if s.err == nil {
			s.records[unit] = Saved{record, after + 1}
		}
		done(after+1, s.err)
	}
	if s.hold {
		s.waiting = append(s.waiting, finish)
		return
	}
	finish()
}

func outList(key, actionKey uint64, flags byte) []byte {
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], actionKey)
	p[20] = flags
	return p
}

func outCDB(action reservationAction, kind reservationType, length int) [16]byte {
	c := cdb(opPersistentReserveOut, byte(action), byte(kind))
	binary.BigEndian.PutUint32(c[5:], uint32(length))
	return c
}

// reserveOut sends PERSISTENT RESERVE OUT and returns the command.
func (b *testbed) reserveOut(n *Nexus, action reservationAction, kind reservationType, list []byte) *Command {
	b.t.Helper()
	return b.run(n, outCDB(action, kind, len(list)), list, 0)
}

func (b *testbed) wantStatus(c *Command, want Status) {
	b.t.Helper()
	if c.Status != want {
		b.t.Fatalf("% X: %v (sense % X), want %v", c.CDB, c.Status, c.Sense, want)
	}
}

func (b *testbed) registerKey(n *Nexus, key uint64) {
	b.t.Helper()
	b.wantStatus(b.reserveOut(n, actionRegisterIgnore, 0, outList(0, key, 0)), Good)
}

func (b *testbed) reserveIn(n *Nexus, action byte, allocation int) []byte {
	b.t.Helper()
	c := b.run(n, cdb(opPersistentReserveIn, action, 0, 0, 0, 0, 0, byte(allocation>>8), byte(allocation)), nil, allocation)
	b.wantStatus(c, Good)
	return c.Data[:c.Count]
}

func (b *testbed) read(n *Nexus) Status { return b.run(n, cdb10(0x28, 0, 0, 1), nil, 512).Status }

func (b *testbed) write(n *Nexus) Status {
	return b.run(n, cdb10(0x2A, 0, 0, 1), make([]byte, 512), 0).Status
}

// SPC-4 §6.15.2: truncation leaves ADDITIONAL LENGTH alone.
func TestReadKeysTruncated(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.registerKey(b.nexus, keyA)
	whole := b.reserveIn(b.nexus, 0, 16384)
	if len(whole) != 16 || be32(whole[4:]) != 8 || be64(whole[8:]) != keyA || be32(whole) != 1 {
		t.Fatalf("READ KEYS % X", whole)
	}
	for n := range 16 {
		if cut := b.reserveIn(b.nexus, 0, n); !bytes.Equal(cut, whole[:n]) {
			t.Fatalf("allocation length %d: % X", n, cut)
		}
	}
}

func TestReserveInServiceActions(t *testing.T) {
	b := newTestbed(t, 64, nil)
	for action := range byte(0x20) {
		c := b.run(b.nexus, cdb(opPersistentReserveIn, action, 0, 0, 0, 0, 0, 0x40, 0), nil, 16384)
		if action < 4 {
			b.wantStatus(c, Good)
		} else {
			b.wantSense(c, illegalRequest, 0x2400)
		}
	}
}

func TestReportCapabilities(t *testing.T) {
	b := newTestbed(t, 64, nil)
	want := []byte{0, 8, 0x1C, 0x90, 0xEA, 0x01, 0, 0}
	if got := b.reserveIn(b.nexus, 2, 255); !bytes.Equal(got, want) {
		t.Fatalf("% X, want % X", got, want)
	}
}

// The access that each type leaves to others, by READ and WRITE on the wire.
func TestReservationAccess(t *testing.T) {
	for kind, want := range map[reservationType]string{
		writeExclusive: "r- r-", exclusiveAccess: "-- --", writeExclusiveOnly: "rw r-",
		exclusiveAccessOnly: "rw --", writeExclusiveAll: "rw r-", exclusiveAccessAll: "rw --",
	} {
		b := newTestbed(t, 64, nil)
		other := b.login(hostTwo)
		b.registerKey(b.nexus, keyA)
		b.registerKey(other, keyB)
		b.wantStatus(b.reserveOut(b.nexus, actionReserve, kind, outList(keyA, 0, 0)), Good)
		registered := b.access(other)
		b.wantStatus(b.reserveOut(other, actionRegister, 0, outList(keyB, 0, 0)), Good)
		if got := registered + " " + b.access(other); got != want {
			t.Errorf("type %d: %q, want %q", kind, got, want)
		}
		if got := b.access(b.nexus); got != "rw" {
			t.Errorf("type %d: holder %q", kind, got)
		}
		b.wantStatus(b.run(other, cdb(0x00), nil, 0), Good)
	}
}

// What an I_T nexus without a registration may do, from table 45 of SPC-4 (rev. 17) and its like in SBC-3:
// "-" nothing, "w" only beside Write Exclusive kinds, "a" always.
func TestCommandsAllowedBesideReservations(t *testing.T) {
	rows := []struct {
		name string
		cdb  [16]byte
		want byte
	}{
		{"TEST UNIT READY", cdb(0x00), 'a'},
		{"INQUIRY", cdb(0x12, 0, 0, 0, 36), 'a'},
		{"REPORT LUNS", cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64), 'a'},
		{"LOG SENSE", cdb(0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64), 'a'},
		{"READ CAPACITY(10)", cdb(0x25), 'a'},
		{"REPORT TARGET PORT GROUPS", cdb(0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 64), 'a'},
		{"MODE SENSE(6)", cdb(0x1A, 0, 0x3F, 0, 255), 'w'},
		{"MODE SENSE(10)", cdb(0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255), 'w'},
		{"REPORT SUPPORTED OPERATION CODES", cdb(0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 1, 0), 'w'},
		{"REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", cdb(0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16), 'w'},
		{"READ(10)", read10(0, 1), 'w'},
		{"VERIFY(10)", cdb10(0x2F, 0, 0, 1), 'w'},
		{"GET LBA STATUS", cdb16(0x9E, 0x12, 0, 24), 'w'},
		{"MODE SELECT(6)", cdb(0x15, 0x10), '-'},
		{"SYNCHRONIZE CACHE(10)", cdb10(0x35, 0, 0, 0), '-'},
		{"UNMAP", cdb10(0x42, 0, 0, 0), '-'},
	}
	for _, kind := range []reservationType{writeExclusive, exclusiveAccess, writeExclusiveOnly, exclusiveAccessAll} {
		b := newTestbed(t, 64, nil)
		other := b.login(hostTwo)
		b.registerKey(b.nexus, keyA)
		b.wantStatus(b.reserveOut(b.nexus, actionReserve, kind, outList(keyA, 0, 0)), Good)
		for _, r := range rows {
			allowed := r.want == 'a' || r.want == 'w' && !kind.exclusive()
			if c := b.run(other, r.cdb, nil, 512); (c.Status == Good) != allowed || !allowed && c.Status != ReservationConflict {
				t.Errorf("type %d, %s: %v", kind, r.name, c.Status)
			}
		}
	}
}

func (b *testbed) access(n *Nexus) string {
	out := []byte("--")
	if b.read(n) == Good {
		out[0] = 'r'
	}
	if b.write(n) == Good {
		out[1] = 'w'
	}
	return string(out)
}

// Ownership: when the holder unregisters, only an All Registrants reservation stays.
func TestReservationOwnership(t *testing.T) {
	for _, kind := range allTypes {
		b := newTestbed(t, 64, nil)
		other := b.login(hostTwo)
		b.registerKey(b.nexus, keyA)
		b.registerKey(other, keyB)
		b.wantStatus(b.reserveOut(b.nexus, actionReserve, kind, outList(keyA, 0, 0)), Good)
		b.wantStatus(b.reserveOut(b.nexus, actionRegister, 0, outList(keyA, 0, 0)), Good)
		got := b.reserveIn(b.nexus, 1, 255)
		if kind.all() {
			if len(got) != 24 || be64(got[8:]) != 0 || got[21] != byte(kind) {
				t.Fatalf("type %d: READ RESERVATION % X", kind, got)
			}
			b.wantStatus(b.reserveOut(other, actionRelease, kind, outList(keyB, 0, 0)), Good)
			continue
		}
		if len(got) != 8 {
			t.Fatalf("type %d: still reserved: % X", kind, got)
		}
		if c := b.run(other, cdb(0x00), nil, 0); kind.shared() {
			b.wantSense(c, unitAttention, 0x2A04)
		} else {
			b.wantStatus(c, Good)
		}
	}
}

func TestReserveOutParameterErrors(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.registerKey(b.nexus, keyA)
	list := outList(keyA, 0, 0)
	for _, e := range []struct {
		what string
		cdb  [16]byte
		list []byte
		code uint16
	}{
		{"empty", outCDB(actionReserve, 1, 0), nil, 0x1A00},
		{"short", outCDB(actionReserve, 1, 23), list[:23], 0x1A00},
		{"long", outCDB(actionReserve, 1, 28), append(list, 0, 0, 0, 0), 0x1A00},
		{"data missing", outCDB(actionReserve, 1, 24), list[:20], 0x1A00},
		{"scope", outCDB(actionReserve, 0x21, 24), list, 0x2400},
		{"type 0", outCDB(actionReserve, 0, 24), list, 0x2400},
		{"type 2", outCDB(actionPreempt, 2, 24), list, 0x2400},
		{"service action", outCDB(0x1F, 1, 24), list, 0x2400},
		{"APTPL without store", outCDB(actionRegister, 0, 24), outList(keyA, keyB, 1), 0x2600},
		{"SPEC_I_PT with IGNORE", outCDB(actionRegisterIgnore, 0, 24), outList(keyA, keyB, 8), 0x2600},
		{"SPEC_I_PT without list", outCDB(actionRegister, 0, 24), outList(keyA, keyB, 8), 0x1A00},
		{"release of another type", outCDB(actionRelease, 3, 24), list, 0x2604},
	} {
		t.Run(e.what, func(t *testing.T) {
			b.t = t
			b.reserveOut(b.nexus, actionReserve, 1, list)
			b.wantSense(b.run(b.nexus, e.cdb, e.list, 0), illegalRequest, e.code)
		})
	}
}

func withTransportIDs(list []byte, names ...string) []byte {
	var ids []byte
	for _, n := range names {
		ids = append(ids, transportID(n)...)
	}
	return append(binary.BigEndian.AppendUint32(list, uint32(len(ids))), ids...)
}

func TestRegisterSpecifiedOnTheWire(t *testing.T) {
	b := newTestbed(t, 64, nil)
	two, three := b.login(hostTwo), b.login(hostThree)
	node, _, _ := strings.Cut(hostThree, isidSeparator)
	list := withTransportIDs(outList(0, keyA, 8), strings.ToUpper(hostTwo[:3])+hostTwo[3:], node)
	b.wantStatus(b.reserveOut(b.nexus, actionRegister, 0, list), Good)
	for _, n := range []*Nexus{two, three} {
		b.wantStatus(b.reserveOut(n, actionReserve, writeExclusiveAll, outList(keyA, 0, 0)), Good)
	}
	full := b.reserveIn(b.nexus, 3, 8192)
	if !bytes.Contains(full, []byte(hostTwo)) || !bytes.Contains(full, []byte(hostThree)) || int(be32(full[4:])) != len(full)-8 {
		t.Fatalf("READ FULL STATUS %q", full)
	}
	if d := full[8:]; be64(d) != keyA || d[12] != 1 || d[13] != byte(writeExclusiveAll) || be16(d[18:]) != 1 || d[24] != 0x45 {
		t.Fatalf("descriptor % X", d[:28])
	}
}

func moveList(key, actionKey uint64, flags byte, port uint16, id []byte) []byte {
	p := outList(key, actionKey, 0)
	p[17] = flags
	binary.BigEndian.PutUint16(p[18:], port)
	binary.BigEndian.PutUint32(p[20:], uint32(len(id)))
	return append(p, id...)
}

func TestRegisterAndMoveOnTheWire(t *testing.T) {
	b := newTestbed(t, 64, nil)
	two := b.login(hostTwo)
	b.registerKey(b.nexus, keyA)
	b.wantStatus(b.reserveOut(b.nexus, actionReserve, exclusiveAccess, outList(keyA, 0, 0)), Good)
	for what, list := range map[string][]byte{
		"unknown port": moveList(keyA, keyB, 0, 9, transportID(hostTwo)),
		"node name":    moveList(keyA, keyB, 0, 1, transportID("iqn.2026-01.org.example:two")),
		"two IDs":      moveList(keyA, keyB, 0, 1, append(transportID(hostTwo), transportID(hostThree)...)),
		"protocol":     moveList(keyA, keyB, 0, 1, append([]byte{0x46}, transportID(hostTwo)[1:]...)),
		"itself":       moveList(keyA, keyB, 0, 1, transportID(b.nexus.initiator)),
		"APTPL":        moveList(keyA, keyB, 1, 1, transportID(hostTwo)),
	} {
		if c := b.reserveOut(b.nexus, actionRegisterAndMove, 0, list); c.Status != CheckCondition {
			t.Errorf("%s: %v", what, c.Status)
		}
	}
	b.wantStatus(b.reserveOut(b.nexus, actionRegisterAndMove, 0, moveList(keyA, keyB, 2, 1, transportID(hostTwo))), Good)
	if b.write(two) != Good || b.read(b.nexus) != ReservationConflict {
		t.Fatal("the reservation did not move")
	}
}

// PREEMPT AND ABORT ends with GOOD only when the victim's tasks are out of the backend.
func TestPreemptAndAbortWaits(t *testing.T) {
	b := newTestbed(t, 64, nil)
	victim := b.login(hostTwo)
	b.registerKey(b.nexus, keyA)
	b.registerKey(victim, keyB)
	b.store.hold = true
	w, written := b.start(victim, 0, Simple, 7, cdb10(0x2A, 0, 0, 1), make([]byte, 512), 0)
	mine, _ := b.start(b.nexus, 0, Simple, 8, cdb10(0x28, 0, 0, 1), nil, 512)
	list := outList(keyA, keyB, 0)
	_, preempted := b.start(b.nexus, 0, Simple, 9, outCDB(actionPreemptAbort, writeExclusive, len(list)), list, 0)
	if *written != 0 || *preempted != 0 {
		t.Fatalf("before the backend is done: victim %d, PREEMPT AND ABORT %d", *written, *preempted)
	}
	b.store.release()
	if *written != 1 || *preempted != 1 || w.Status != TaskAborted || mine.Status != Good {
		t.Fatalf("victim %d %v, PREEMPT AND ABORT %d, own %v", *written, w.Status, *preempted, mine.Status)
	}
	b.store.hold = false
	b.wantSense(b.run(victim, cdb(0x00), nil, 0), unitAttention, 0x2F00)
	b.wantSense(b.run(victim, cdb(0x00), nil, 0), unitAttention, 0x2A05)
	b.wantStatus(b.reserveOut(victim, actionReserve, 1, outList(keyB, 0, 0)), ReservationConflict)
}

// A victim's own PERSISTENT RESERVE OUT that waits for its turn does not block the abort.
func TestPreemptAndAbortOfWaitingOrder(t *testing.T) {
	store := &savedReservations{records: map[string]Saved{}}
	b := newTestbed(t, 64, nil)
	b.target.opts.Reservations.Store = store
	victim := b.login(hostTwo)
	b.wantStatus(b.reserveOut(b.nexus, actionRegister, 0, outList(0, keyA, 1)), Good)
	b.registerKey(victim, keyB)
	b.wantStatus(b.reserveOut(b.nexus, actionRegisterIgnore, 0, outList(0, keyA, 1)), Good)
	store.hold = true
	list := outList(keyA, keyB, 0)
	p, preempted := b.start(b.nexus, 0, Simple, 1, outCDB(actionPreemptAbort, writeExclusive, 24), list, 0)
	q, waited := b.start(victim, 0, Simple, 2, outCDB(actionReserve, writeExclusive, 24), outList(keyB, 0, 0), 0)
	if *preempted+*waited != 0 || b.unit.reservations.load().kind != noReservation {
		t.Fatal("took effect before it was saved")
	}
	for len(store.waiting) > 0 {
		next := store.waiting[0]
		store.waiting = store.waiting[1:]
		next()
	}
	if *preempted != 1 || *waited != 1 || p.Status != Good || q.Status != ReservationConflict {
		t.Fatalf("PREEMPT %d %v, RESERVE %d %v", *preempted, p.Status, *waited, q.Status)
	}
}

func TestAPTPL(t *testing.T) {
	store := &savedReservations{records: map[string]Saved{}}
	b := newTestbed(t, 64, nil)
	b.target.opts.Reservations.Store = store
	b.wantStatus(b.reserveOut(b.nexus, actionRegister, 0, outList(0, keyA, 1)), Good)
	b.wantStatus(b.reserveOut(b.nexus, actionReserve, exclusiveAccess, outList(keyA, 0, 0)), Good)
	if caps := b.reserveIn(b.nexus, 2, 8); caps[2]&1 == 0 || caps[3]&1 == 0 {
		t.Fatalf("capabilities % X", caps)
	}

	again, err := NewLogicalUnit(newMemory(64), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	target := NewTarget(b.target.name, TargetOptions{Reservations: ReservationOptions{Store: store}})
	if err := target.Map(3, again); err != nil {
		t.Fatal(err)
	}
	if s := again.reservations.load(); s.kind != exclusiveAccess || s.reservationKey() != keyA {
		t.Fatalf("restored %+v", s)
	}

	store.err = syscall.EIO
	c := b.reserveOut(b.nexus, actionRelease, exclusiveAccess, outList(keyA, 0, 0))
	if c.Status == Good || b.unit.reservations.load().kind != exclusiveAccess {
		t.Fatalf("%v although it was not saved", c.Status)
	}
	if err := NewTarget("iqn.t", TargetOptions{Reservations: ReservationOptions{Store: store}}).Map(0, mustUnit(t)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Map: %v", err)
	}
}

func mustUnit(t *testing.T) *LogicalUnit {
	t.Helper()
	lu, err := NewLogicalUnit(newMemory(64), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return lu
}

// Too many commands that wait for their turn are answered BUSY, and all of them end.
func TestReservationTurnsAreBounded(t *testing.T) {
	store := &savedReservations{records: map[string]Saved{}}
	b := newTestbed(t, 64, nil)
	b.target.opts.Reservations.Store = store
	store.hold = true
	var all []*Command
	ended := 0
	for i := range maxWaitingOrders + 2 {
		c, _ := b.start(b.nexus, 0, Simple, uint32(i), outCDB(actionRegisterIgnore, 0, 24), outList(0, uint64(i+1), 1), 0)
		c.Done = func(*Command) { ended++ }
		all = append(all, c)
	}
	if last := all[len(all)-1]; last.Status != Busy {
		t.Fatalf("%v, want BUSY", last.Status)
	}
	for len(store.waiting) > 0 {
		next := store.waiting[0]
		store.waiting = store.waiting[1:]
		next()
	}
	if ended != maxWaitingOrders+1 {
		t.Fatalf("%d of %d ended", ended, maxWaitingOrders+1)
	}
	if s := b.unit.reservations.load(); s.generation != maxWaitingOrders+1 || s.registrants[0].key != maxWaitingOrders+1 {
		t.Fatalf("generation %d, key %d: not in order", s.generation, s.registrants[0].key)
	}
}

// RESERVE(6) between two initiators, and what ends it.
func TestReserve6OnTheWire(t *testing.T) {
	ends := map[string]func(b *testbed){
		"RELEASE(6)": func(b *testbed) { b.good(cdb(opRelease6), nil, 0) },
		"nexus loss": func(b *testbed) { b.nexus.Close() },
		"LUN reset": func(b *testbed) {
			b.target.LUNReset(b.nexus, 0, 0, func(ManagementResponse) {})
		},
	}
	for what, end := range ends {
		t.Run(what, func(t *testing.T) {
			b := newTestbed(t, 64, nil)
			two := b.login(hostTwo)
			b.good(cdb(opReserve6), nil, 0)
			b.good(cdb(opReserve6), nil, 0)
			b.wantStatus(b.run(two, cdb(opReserve6), nil, 0), ReservationConflict)
			b.wantStatus(b.run(two, cdb(opRelease6), nil, 0), Good)
			b.wantStatus(b.run(two, cdb(0x1A, 0, 0x3F, 0, 255), nil, 255), ReservationConflict)
			b.wantStatus(b.run(two, cdb(opPersistentReserveIn, 0, 0, 0, 0, 0, 0, 0, 255), nil, 255), ReservationConflict)
			b.wantStatus(b.run(two, cdb(0x12, 0, 0, 0, 36), nil, 36), Good)
			if b.access(two) != "--" || b.access(b.nexus) != "rw" {
				t.Fatal("not enforced")
			}
			end(b)
			b.run(two, cdb(0x00), nil, 0) // a unit attention of the reset
			b.wantStatus(b.run(two, cdb(opReserve6), nil, 0), Good)
		})
	}
}

// Lanes that change reservations and others that do I/O at once; for the race detector.
func TestReservationsAcrossLanes(t *testing.T) {
	posts := make([]chan func(), lanesOfTest)
	for i := range posts {
		posts[i] = make(chan func(), 4096)
	}
	store := &savedReservations{records: map[string]Saved{}}
	target := NewTarget("iqn.t", TargetOptions{
		Reservations: ReservationOptions{Store: lockedStore{store, make(chan struct{}, 1)}},
		Post:         func(lane int, fn func()) error { posts[lane] <- fn; return nil },
	})
	if err := target.Map(0, mustUnit(t)); err != nil {
		t.Fatal(err)
	}
	finished := make(chan error, lanesOfTest)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for lane := range lanesOfTest {
		running.Go(func() {
			finished <- laneWorkload(target, lane, posts[lane])
			for {
				select {
				case fn := <-posts[lane]:
					fn()
				case <-stop:
					return
				}
			}
		})
	}
	for range lanesOfTest {
		if err := <-finished; err != nil {
			t.Error(err)
		}
	}
	close(stop)
	running.Wait()
}

// lockedStore saves from other goroutines.
type lockedStore struct {
	*savedReservations
	lock chan struct{}
}

func (s lockedStore) Save(lane int, unit string, record []byte, after int64, done func(int64, error)) {
	go func() {
		s.lock <- struct{}{}
		s.records[unit] = Saved{record, after + 1}
		<-s.lock
		done(after+1, nil)
	}()
}

func laneWorkload(target *Target, lane int, posts <-chan func()) error {
	n := target.NewNexus(fmt.Sprintf("iqn.x:%d,i,0x00000000000%d", lane, lane), 1)
	key := uint64(lane + 1)
	for i := range 200 {
		list := outList(key, key, 1)
		c := &Command{CDB: outCDB(actionRegisterIgnore, 0, 24), Data: list, Expected: 24, Nexus: n, Lane: lane}
		switch i % 4 {
		case 1:
			c.CDB, c.Data = outCDB(actionPreemptAbort, writeExclusiveAll, 24), outList(key, uint64(i%lanesOfTest+1), 0)
		case 2:
			c.CDB, c.Data, c.Expected = cdb10(0x28, 0, 0, 1), make([]byte, 512), 512
		case 3:
			c.CDB = outCDB(actionReserve, writeExclusiveAll, 24)
		}
		done := false
		c.Done = func(*Command) { done = true }
		target.Decode(c)
		target.Execute(c)
		for !done {
			(<-posts)()
		}
	}
	return nil
}

const lanesOfTest = 4
