package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Reservations issues persistent reservation commands (SPC-4 5.13) to one LUN over this node's paths
// to it. Its methods may be called from any goroutine; a call returns when its context ends, even if
// the kernel still holds the command. Close does not wait for such commands; Wait does.
type Reservations struct {
	device  string
	timeout time.Duration
	mu      sync.Mutex // guards paths, closed
	paths   map[string]*reservationPath
	closed  bool
	pending sync.WaitGroup // closed paths' commands
}

// OpenReservations opens every path of the device: those below a multipath device, else the device
// itself; for a partition, its disk. A path that does not open is left out, if another does.
func OpenReservations(device string) (*Reservations, error) {
	r := &Reservations{device: device, timeout: DefaultReservationTimeout, paths: map[string]*reservationPath{}}
	if _, err := r.Rescan(); err != nil && len(r.paths) == 0 {
		return nil, err
	}
	return r, nil
}

// Rescan finds paths that came and drops those that went; it returns the names of the new ones, which
// have no registration that this process knows of. The error is of paths that do not open.
func (r *Reservations) Rescan() (added []string, err error) {
	names, err := pathsOf(r.device)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("reservations on %s: closed", r.device)
	}
	for name, p := range r.paths {
		if !slices.Contains(names, name) {
			delete(r.paths, name)
			err = errors.Join(err, r.drop(p))
		}
	}
	for _, name := range names {
		if r.paths[name] != nil {
			continue
		}
		p, failed := openReservationPath(name, r.timeout)
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		r.paths[name] = p
		added = append(added, name)
	}
	return added, err
}

// drop closes a path; the caller holds mu.
func (r *Reservations) drop(p *reservationPath) error {
	err := p.close()
	r.pending.Go(p.pending.Wait)
	return err
}

// Close gives the paths up. Registrations and reservation stay as they are.
func (r *Reservations) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for _, p := range r.paths {
		err = errors.Join(err, r.drop(p))
	}
	r.closed, r.paths = true, nil
	return err
}

// Wait returns, after Close, when the kernel has given every command back.
func (r *Reservations) Wait() { r.pending.Wait() }

// Paths names the paths.
func (r *Reservations) Paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.paths))
}

func (r *Reservations) list() ([]*reservationPath, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.paths) == 0 {
		return nil, fmt.Errorf("reservations on %s: no path", r.device)
	}
	var list []*reservationPath
	for _, name := range slices.Sorted(maps.Keys(r.paths)) {
		list = append(list, r.paths[name])
	}
	return list, nil
}

// PathErrors is what failed, by path.
type PathErrors map[string]error

// Err joins them; nil when there are none.
func (e PathErrors) Err() error {
	var all []error
	for _, name := range slices.Sorted(maps.Keys(e)) {
		all = append(all, e[name])
	}
	return errors.Join(all...)
}

// Register registers key over each path whose present key is old (0: none), all paths at once, kept
// through a loss of power where the LUN can. Paths that failed are returned; the error is nil when at
// least one path is registered. A LUN that has registered the key answers a retry with a conflict.
func (r *Reservations) Register(ctx context.Context, old, key ReservationKey) (PathErrors, error) {
	return r.each(ctx, reservationOut{action: outRegister, key: old, actionKey: key})
}

// RegisterIgnore registers key over each path, whatever key it had.
func (r *Reservations) RegisterIgnore(ctx context.Context, key ReservationKey) (PathErrors, error) {
	return r.each(ctx, reservationOut{action: outRegisterIgnore, actionKey: key})
}

// Unregister takes key away from each path that has it. The reservation stays as long as, for the All
// Registrants types, anyone is registered.
func (r *Reservations) Unregister(ctx context.Context, key ReservationKey) (PathErrors, error) {
	return r.each(ctx, reservationOut{action: outRegister, key: key})
}

func (r *Reservations) each(ctx context.Context, o reservationOut) (PathErrors, error) {
	paths, err := r.list()
	if err != nil {
		return nil, err
	}
	results := make([]error, len(paths))
	var all sync.WaitGroup
	for i, p := range paths {
		all.Go(func() { results[i] = p.out(ctx, o) })
	}
	all.Wait()
	failed := PathErrors{}
	for i, p := range paths {
		if results[i] != nil {
			failed[p.name] = results[i]
		}
	}
	if len(failed) == len(paths) {
		return failed, failed.Err()
	}
	return failed, nil
}

// Reserve makes or confirms the LUN's reservation. key is the caller's registered one.
func (r *Reservations) Reserve(ctx context.Context, key ReservationKey, t ReservationType) error {
	return r.any(ctx, reservationOut{action: outReserve, key: key, kind: t})
}

// Release ends the reservation that the caller holds; for All Registrants types any registrant does.
func (r *Reservations) Release(ctx context.Context, key ReservationKey, t ReservationType) error {
	return r.any(ctx, reservationOut{action: outRelease, key: key, kind: t})
}

// Preempt removes every registration of the victim's key. Commands of the victim that the LUN has
// taken may still complete afterwards.
func (r *Reservations) Preempt(ctx context.Context, own, victim ReservationKey, t ReservationType) error {
	return r.any(ctx, reservationOut{action: outPreempt, key: own, actionKey: victim, kind: t})
}

// PreemptAbort is Preempt, and the victim's commands are ended before it returns without an error.
// After a conflict or any other error only ReadKeys tells whether the victim is registered.
func (r *Reservations) PreemptAbort(ctx context.Context, own, victim ReservationKey, t ReservationType) error {
	return r.any(ctx, reservationOut{action: outPreemptAbort, key: own, actionKey: victim, kind: t})
}

// any tries path after path until the LUN itself has answered. A conflict is an answer, except that
// a path which is not registered says so too: another path may be.
func (r *Reservations) any(ctx context.Context, o reservationOut) error {
	return r.try(ctx, func(p *reservationPath) error { return p.out(ctx, o) })
}

func (r *Reservations) try(ctx context.Context, command func(*reservationPath) error) error {
	paths, err := r.list()
	if err != nil {
		return err
	}
	failed := PathErrors{}
	for _, p := range paths {
		err := command(p)
		if err == nil || errors.Is(err, ErrNoReservations) {
			return err
		}
		failed[p.name] = err
		if ctx.Err() != nil {
			break
		}
	}
	return failed.Err()
}

// ReadKeys returns all registered keys.
func (r *Reservations) ReadKeys(ctx context.Context) (got Registrations, err error) {
	err = r.try(ctx, func(p *reservationPath) (err error) {
		got, err = p.readKeys(ctx)
		return err
	})
	return got, err
}

// ReadReservation returns the LUN's reservation.
func (r *Reservations) ReadReservation(ctx context.Context) (got Reservation, err error) {
	err = r.try(ctx, func(p *reservationPath) (err error) {
		got, err = p.readReservation(ctx)
		return err
	})
	return got, err
}

// Capabilities asks what the LUN can do. ErrNoReservations: nothing, or this kernel cannot ask.
func (r *Reservations) Capabilities(ctx context.Context) (got ReservationCapabilities, err error) {
	err = r.try(ctx, func(p *reservationPath) (err error) {
		got, err = p.capabilities(ctx)
		return err
	})
	return got, err
}
