package fence

import (
	"context"
	"slices"
	"sync"

	"lunar/datapath/device"
)

// lun is a logical unit as SPC-4 5.13 has it, in memory, with one path per initiator.
type lun struct {
	mu         sync.Mutex
	generation uint32
	keys       map[string]device.ReservationKey // by initiator
	kind       device.ReservationType
	holder     device.ReservationKey
}

func newLUN() *lun { return &lun{keys: map[string]device.ReservationKey{}} }

// mayWrite is the rule of Write Exclusive, All Registrants.
func (l *lun) mayWrite(initiator string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kind == 0 || l.keys[initiator] != 0
}

func (l *lun) register(initiator string, old, key device.ReservationKey, ignore bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ignore && l.keys[initiator] != old {
		return device.ErrReservationConflict
	}
	l.generation++
	if l.keys[initiator] = key; key == 0 {
		delete(l.keys, initiator)
	}
	l.free()
	return nil
}

// free ends an All Registrants reservation with its last registrant.
func (l *lun) free() {
	if len(l.keys) == 0 {
		l.kind = 0
	}
}

func (l *lun) reserve(initiator string, key device.ReservationKey, t device.ReservationType) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if key == 0 || l.keys[initiator] != key || l.kind != 0 && l.kind != t {
		return device.ErrReservationConflict
	}
	l.kind, l.holder = t, key
	return nil
}

func (l *lun) preempt(initiator string, own, victim device.ReservationKey) (gone []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own == 0 || l.keys[initiator] != own {
		return nil, device.ErrReservationConflict
	}
	for i, k := range l.keys {
		if k == victim && i != initiator {
			gone = append(gone, i)
		}
	}
	if len(gone) == 0 { // SPC-4 5.13.11.4
		return nil, device.ErrReservationConflict
	}
	for _, i := range gone {
		delete(l.keys, i)
	}
	l.generation++
	return gone, nil
}

func (l *lun) read() seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := seen{keys: device.Registrations{Generation: l.generation}, held: device.Reservation{Generation: l.generation, Type: l.kind}}
	for _, k := range l.keys {
		s.keys.Keys = append(s.keys.Keys, k)
	}
	slices.Sort(s.keys.Keys)
	return s
}

// initiator is a node's view of a lun; before runs ahead of each command, and its error replaces it.
type initiator struct {
	*lun
	name   string
	before func(command string) error
	after  func(command string) error
}

func (i *initiator) run(command string, do func() error) error {
	if i.before != nil {
		if err := i.before(command); err != nil {
			return err
		}
	}
	err := do()
	if i.after != nil {
		if lost := i.after(command); lost != nil {
			return lost
		}
	}
	return err
}

func (i *initiator) onPath(err error) (device.PathErrors, error) {
	if err == nil {
		return nil, nil
	}
	return device.PathErrors{i.name: err}, err
}

func (i *initiator) Rescan() ([]string, error) { return nil, nil }

func (i *initiator) Register(_ context.Context, old, key device.ReservationKey) (device.PathErrors, error) {
	return i.onPath(i.run("register", func() error { return i.register(i.name, old, key, false) }))
}

func (i *initiator) RegisterIgnore(_ context.Context, key device.ReservationKey) (device.PathErrors, error) {
	return i.onPath(i.run("register-ignore", func() error { return i.register(i.name, 0, key, true) }))
}

func (i *initiator) Unregister(_ context.Context, key device.ReservationKey) (device.PathErrors, error) {
	return i.onPath(i.run("unregister", func() error { return i.register(i.name, key, 0, false) }))
}

func (i *initiator) Reserve(_ context.Context, key device.ReservationKey, t device.ReservationType) error {
	return i.run("reserve", func() error { return i.reserve(i.name, key, t) })
}

func (i *initiator) PreemptAbort(_ context.Context, own, victim device.ReservationKey, _ device.ReservationType) error {
	return i.run("preempt", func() error { _, err := i.preempt(i.name, own, victim); return err })
}

func (i *initiator) ReadKeys(context.Context) (r device.Registrations, err error) {
	err = i.run("keys", func() error { r = i.read().keys; return nil })
	return r, err
}

func (i *initiator) ReadReservation(context.Context) (r device.Reservation, err error) {
	err = i.run("reservation", func() error { r = i.read().held; return nil })
	return r, err
}

func (i *initiator) Capabilities(context.Context) (device.ReservationCapabilities, error) {
	return device.ReservationCapabilities{APTPL: true}, nil
}
