package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

// reservations is the method of that name.
type reservations struct {
	lun       LUN
	admission Admission
	self      Node
	own       device.ReservationKey
	can       device.ReservationCapabilities
	drain     time.Duration
	log       *slog.Logger

	mu    sync.Mutex // guards state; held while this node's own registration changes
	state act        // actAsk before Admit, actIn, actRefused after Leave, actLost for good
}

func openReservations(ctx context.Context, o Options) (*reservations, error) {
	if o.LUN == nil {
		return nil, fmt.Errorf("%s: %w", o.Device, device.ErrNoReservations)
	}
	can, err := o.LUN.Capabilities(ctx)
	if err != nil {
		return nil, fmt.Errorf("what %s can do: %w", o.Device, err)
	}
	if !can.Knows(kind) {
		return nil, fmt.Errorf("%s lacks the type %s: %w", o.Device, kind, device.ErrNoReservations)
	}
	own, err := device.NewReservationKey(ClusterHash(o.Cluster), o.Self.Number, o.Self.Incarnation)
	if err != nil {
		return nil, err
	}
	return &reservations{lun: o.LUN, admission: o.Admission, self: o.Self, own: own, can: can, drain: o.Drain, log: o.Log}, nil
}

func (r *reservations) describe() string {
	return "reservations: " + r.can.String() + "; the LUN itself refuses writes of a node that is fenced"
}

func (r *reservations) look(ctx context.Context) (s seen, err error) {
	if s.keys, err = r.lun.ReadKeys(ctx); err != nil {
		return s, fmt.Errorf("READ KEYS: %w", err)
	}
	if s.held, err = r.lun.ReadReservation(ctx); err != nil {
		return s, fmt.Errorf("READ RESERVATION: %w", err)
	}
	return s, nil
}

// reserve makes the reservation, or says whose is in the way.
func (r *reservations) reserve(ctx context.Context) error {
	err := r.lun.Reserve(ctx, r.own, kind)
	if !errors.Is(err, device.ErrReservationConflict) {
		return err
	}
	s, failed := r.look(ctx)
	if failed != nil || !s.held.Held() || s.held.Type == kind {
		return err
	}
	return fmt.Errorf("%w: key %s holds it as %s: clear that with sg_persist if nobody uses the LUN", ErrForeign, s.held.Key, s.held.Type)
}

// cleanup bounds taking back a registration after its context has ended.
const cleanup = 5 * time.Second

func (r *reservations) admit(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == actLost {
		return ErrFenced
	}
	s, err := r.look(ctx)
	if err == nil && r.state == actIn { // registering again could undo a fencing
		if !s.keys.Has(r.own) {
			r.state = actLost
			return ErrFenced
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.foreign(s.keys); err != nil {
		return err
	}
	m, cause := newMembership(r.own), error(nil)
	for !m.final {
		if err := r.step(ctx, m); err != nil {
			cause = errors.Join(cause, err)
			if m.next() == actAsk && !m.registered {
				return cause
			}
		}
	}
	switch m.next() {
	case actIn:
		r.state = actIn
		return nil
	case actLost:
		r.state = actLost
		return ErrFenced
	}
	if cause != nil {
		return cause
	}
	return ErrNotAdmitted
}

// step does one act of this node's own registration and tells m of it.
func (r *reservations) step(ctx context.Context, m *membership) error {
	switch m.next() {
	case actAsk:
		admitted, err := r.admission.Admitted(ctx, r.self)
		m.asked(admitted, err)
		return err
	case actRegister:
		failed, err := r.lun.RegisterIgnore(ctx, r.own)
		if err == nil && len(failed) > 0 {
			r.log.Warn("paths not registered", "error", failed.Err())
		}
		m.done(err)
		return err
	case actReserve:
		err := r.reserve(ctx)
		if m.done(err); err != nil {
			m.todo = actUnregister
		}
		return err
	case actUnregister:
		err := r.withdraw(ctx)
		m.done(err)
		return err
	}
	s, err := r.look(ctx)
	if err != nil {
		m.todo = actUnregister
		return err
	}
	m.look(s)
	return nil
}

// foreign reports keys that are not of this cluster.
func (r *reservations) foreign(keys device.Registrations) error {
	var others []string
	for _, k := range keys.Keys {
		if k.Cluster() != r.own.Cluster() && !slices.Contains(others, k.String()) {
			others = append(others, k.String())
		}
	}
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("%w: keys %s are not of this cluster: end the others' use of the LUN, then clear the keys with sg_persist", ErrForeign, strings.Join(others, ", "))
}

func (r *reservations) fence(ctx context.Context, v Victim) (Proof, error) {
	p := newProving(r.own, func(k device.ReservationKey) bool {
		return k.Cluster() == r.own.Cluster() && k.Node() == v.Number && k.Incarnation() <= v.Incarnation
	})
	s, err := r.prove(ctx, p)
	if err != nil {
		return Proof{}, err
	}
	words := "the key was gone before; waited for what it may have left behind"
	if len(p.ended) > 0 {
		words = "PREEMPT AND ABORT done, READ KEYS does not have the key any more"
	}
	return Proof{Generation: s.keys.Generation, Detail: words}, nil
}

// prove runs p to its end, until ctx ends; what the LUN showed last is returned.
func (r *reservations) prove(ctx context.Context, p *proving) (s seen, err error) {
	var wait time.Duration
	for ctx.Err() == nil {
		var failed error
		switch p.next() {
		case actProven:
			return s, nil
		case actLost:
			return s, r.lost()
		case actRead:
			if s, failed = r.look(ctx); failed == nil {
				p.look(s)
			}
		case actReserve:
			failed = r.reserve(ctx)
			p.done(failed)
		case actPreempt:
			failed = r.lun.PreemptAbort(ctx, r.own, p.target, kind)
			p.done(failed)
		case actSettle:
			failed = settle(ctx, r.drain)
			p.done(failed)
		}
		if errors.Is(failed, ErrForeign) {
			return s, failed
		}
		if failed != nil {
			err = failed
			r.log.Debug("fencing goes on", "error", failed)
			if pause(ctx, &wait) != nil {
				break
			}
		}
	}
	return s, errors.Join(ctx.Err(), err)
}

// settle waits d of CLOCK_BOOTTIME.
func settle(ctx context.Context, d time.Duration) error { return sleepUntil(ctx, bootTime()+d) }

// lost notes for good that this node is fenced. Before Admit it says only that nothing was registered.
func (r *reservations) lost() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == actIn || r.state == actLost {
		r.state = actLost
		return ErrFenced
	}
	return fmt.Errorf("%w: its key is not registered", ErrNotAdmitted)
}

func (r *reservations) check(ctx context.Context) error {
	keys, err := r.lun.ReadKeys(ctx)
	if err != nil {
		return fmt.Errorf("READ KEYS: %w", err)
	}
	if !keys.Has(r.own) {
		return r.lost()
	}
	return nil
}

// paths confirms each path's registration by registering its own key over it, which an unregistered path refuses.
func (r *reservations) paths(ctx context.Context, idle bool) error {
	if _, err := r.lun.Rescan(); err != nil {
		r.log.Warn("a path does not open", "error", err)
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != actIn {
		return ErrNotAdmitted
	}
	failed, _ := r.lun.Register(ctx, r.own, r.own)
	bare := unregistered(failed)
	if len(bare) == 0 {
		return nil
	}
	if !idle {
		return fmt.Errorf("%w: %s: hand the volume over or suspend its I/O, then it can be registered", ErrPathUnregistered, strings.Join(bare, ", "))
	}
	return r.registerMore(ctx, bare)
}

func unregistered(failed device.PathErrors) (names []string) {
	for name, err := range failed {
		if errors.Is(err, device.ErrReservationConflict) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// registerMore registers paths besides those that are, between two questions to the cluster; mu is held.
func (r *reservations) registerMore(ctx context.Context, bare []string) error {
	if admitted, err := r.admission.Admitted(ctx, r.self); err != nil || !admitted {
		return errors.Join(ErrNotAdmitted, err)
	}
	failed, _ := r.lun.Register(ctx, 0, r.own) // paths that are registered refuse it
	admitted, err := r.admission.Admitted(ctx, r.self)
	if err != nil || !admitted {
		r.state = actLost
		return errors.Join(ErrFenced, err, r.withdraw(ctx))
	}
	var left error
	for _, name := range bare {
		if failed[name] != nil {
			left = errors.Join(left, fmt.Errorf("%w: %w", ErrPathUnregistered, failed[name]))
		}
	}
	return left
}

func (r *reservations) sweep(ctx context.Context, members []Node) ([]device.ReservationKey, error) {
	s, err := r.look(ctx)
	if err != nil {
		return nil, err
	}
	known := map[device.ReservationKey]bool{r.own: true}
	for _, n := range members {
		k, err := device.NewReservationKey(r.own.Cluster(), n.Number, n.Incarnation)
		if err != nil {
			return nil, err
		}
		known[k] = true
	}
	unknown := func(k device.ReservationKey) bool { return k.Cluster() == r.own.Cluster() && !known[k] }
	if !slices.ContainsFunc(s.keys.Keys, unknown) && s.keys.Has(r.own) && s.held.Type == kind {
		return nil, r.foreign(s.keys)
	}
	p := newProving(r.own, unknown)
	if s, err = r.prove(ctx, p); err != nil {
		return nil, err
	}
	var gone []device.ReservationKey
	for k := range p.ended {
		gone = append(gone, k)
	}
	slices.Sort(gone)
	return gone, r.foreign(s.keys)
}

// leave keeps the key on the LUN, for the coordinator's next sweep to take: only a node whose own key stays ever
// takes a key away. The reservation goes with its last registrant, and then a fenced node that was only stopped
// could write again.
func (r *reservations) leave(ctx context.Context, eject bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != actIn {
		return nil
	}
	if eject {
		_, err := r.lun.Unregister(ctx, r.own)
		if errors.Is(err, device.ErrReservationConflict) {
			r.state = actLost
			return ErrFenced
		}
		if err != nil {
			return err
		}
	}
	r.state = actRefused
	return nil
}

// withdraw takes this node's key away again, unless it is the last one and keeps the reservation.
func (r *reservations) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	s, err := r.look(ctx)
	if err != nil {
		return err
	}
	others := slices.ContainsFunc(s.keys.Keys, func(k device.ReservationKey) bool { return k != r.own })
	if s.held.Type == kind && !others {
		return nil
	}
	if _, err = r.lun.Unregister(ctx, r.own); errors.Is(err, device.ErrReservationConflict) {
		return nil // there was none
	}
	return err
}

// bootTime is CLOCK_BOOTTIME: it never steps, and counts while the machine sleeps.
func bootTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail for this clock
	return time.Duration(t.Nano())
}

// sleepUntil returns when CLOCK_BOOTTIME has reached the instant.
func sleepUntil(ctx context.Context, until time.Duration) error {
	for {
		left := until - bootTime()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
