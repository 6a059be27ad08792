package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"lunar/datapath/device"
)

// Options of a Fencer.
type Options struct {
	Volume    string
	Device    string // path, as agents get it
	Cluster   string // the cluster's id
	Self      Node
	Admission Admission
	Log       *slog.Logger

	// Method forces one; "" takes the strongest that the device has and that is configured.
	Method Method
	Agent  AgentOptions
	Lease  LeaseOptions
	// AllowUnfenced lets several nodes use a device without reservations and without an agent.
	AllowUnfenced bool
	// Drain bounds how long a command may still be at work in the LUN after the key of its sender went
	// without a certain answer; 0 is DefaultDrain.
	Drain time.Duration
	// LUN is the device's reservations; nil when it has none to ask. The caller closes it after the Fencer's
	// last call.
	LUN LUN
}

// DefaultDrain is far more than was ever measured between a preempt and the last write of its victim (2 ms).
const DefaultDrain = time.Second

// Back-off of what is tried again while a context lasts.
const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	switch {
	case o.Volume == "" || o.Device == "":
		return errors.New("fence: Volume and Device must be given")
	case o.Self.Name == "" || o.Self.Number == 0:
		return errors.New("fence: Self needs a name, and a number other than 0")
	case o.Admission == nil || o.Log == nil:
		return errors.New("fence: Admission and Log must be given")
	case o.Drain < 0:
		return fmt.Errorf("fence: Drain is %v: give 0 or more", o.Drain)
	}
	return nil
}

// Fencer fences the nodes of one volume, and keeps this node's own place among them. Its methods may be
// called from any goroutine.
type Fencer struct {
	method method
	name   Method
	opts   Options
}

// Open chooses the method. ErrUnfenced says in words what the user can do.
func Open(ctx context.Context, o Options) (*Fencer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Drain == 0 {
		o.Drain = DefaultDrain
	}
	f := &Fencer{opts: o}
	var err error
	if f.name, f.method, err = o.choose(ctx); err != nil {
		return nil, fmt.Errorf("volume %s: %w", o.Volume, err)
	}
	return f, nil
}

func (o Options) choose(ctx context.Context) (Method, method, error) {
	var refused error
	if o.Method == "" || o.Method == Reservations {
		m, err := openReservations(ctx, o)
		if err == nil || o.Method == Reservations || !errors.Is(err, device.ErrNoReservations) {
			return Reservations, m, err
		}
		refused = err
	}
	if o.Method == Agent || o.Method == "" && len(o.Agent.Command) > 0 {
		m, err := openAgent(o)
		return Agent, m, err
	}
	if o.Method != Lease && o.Method != "" {
		return "", nil, fmt.Errorf("no fencing method %q: give reservations, agent or lease", o.Method)
	}
	if !o.AllowUnfenced {
		return "", nil, fmt.Errorf("%w: %s: %w: use a LUN with SCSI-3 persistent reservations, configure a fence agent, or accept with --allow-unfenced that only a lease keeps a node which is out from writing", ErrUnfenced, o.Device, refused)
	}
	m, err := openLease(o)
	return Lease, m, err
}

// Method is the one in use.
func (f *Fencer) Method() Method { return f.name }

// Describe says in plain words which method holds and how far it goes, for `volume show`.
func (f *Fencer) Describe() string { return f.method.describe() }

// Weak tells whether validation should warn: nothing but the victim itself stops its writes.
func (f *Fencer) Weak() bool { return f.name == Lease }

// Admit gives this node the right to write to the device, before its first I/O there, and while nothing on
// this node, of an earlier incarnation either, has the device mounted. ErrNotAdmitted:
// the cluster has not admitted this incarnation, or evicted it meanwhile. ErrFenced: never again.
func (f *Fencer) Admit(ctx context.Context) error {
	return f.wrap("admit "+f.opts.Self.String(), f.method.admit(ctx))
}

// Fence makes sure that the victim cannot write to the volume any more, and returns the proof; it tries until
// ctx ends. ErrFenced: this node is the one that is out.
func (f *Fencer) Fence(ctx context.Context, v Victim) (Proof, error) {
	if v.Number == f.opts.Self.Number && v.Incarnation >= f.opts.Self.Incarnation {
		return Proof{}, fmt.Errorf("volume %s: fence %s: that is this node itself", f.opts.Volume, v.Node)
	}
	began := time.Now()
	p, err := f.method.fence(ctx, v)
	if err != nil {
		return Proof{}, f.wrap("fence "+v.Node.String(), err)
	}
	p.Volume, p.Victim, p.Method, p.At, p.Took = f.opts.Volume, v.Node, f.name, time.Now(), time.Since(began)
	f.opts.Log.Warn("node fenced", "volume", p.Volume, "node", v.Name, "incarnation", v.Incarnation, "method", p.Method, "took", p.Took, "proof", p.Detail)
	return p, nil
}

// Check asks whether this node's registration stands: after each reservation conflict (EBADE), and now and
// then. ErrFenced: it is gone; the caller stops all I/O and shuts its mounts down at once.
func (f *Fencer) Check(ctx context.Context) error { return f.wrap("check", f.method.check(ctx)) }

// Paths looks at the device's paths, at each change of them. A path that has no registration gets one only
// when this node is idle: nothing mounted, no direct I/O under way or queued. A node that is fenced at that
// very moment would else open its queued writes a way back. Otherwise ErrPathUnregistered asks the caller to
// hand the volume over or suspend I/O, and to call again.
func (f *Fencer) Paths(ctx context.Context, idle bool) error {
	return f.wrap("register paths", f.method.paths(ctx, idle))
}

// Sweep is for the coordinator: it takes out every key of this cluster that is none of members', and returns
// what it took out. ErrForeign, besides, names keys that are not of this cluster.
func (f *Fencer) Sweep(ctx context.Context, members []Node) ([]device.ReservationKey, error) {
	gone, err := f.method.sweep(ctx, members)
	return gone, f.wrap("sweep", err)
}

// Leave gives this node's right to write up, when all its I/O has ended. Its key stays on the LUN until a
// coordinator sweeps it out: with the last key the reservation would go, and with that what holds off nodes that were
// fenced and only seem dead.
func (f *Fencer) Leave(ctx context.Context) error {
	return f.wrap("leave", f.method.leave(ctx, false))
}

// Eject is Leave for a volume that the cluster gives up: each node takes its key away, and with the last one the
// reservation goes.
func (f *Fencer) Eject(ctx context.Context) error {
	return f.wrap("eject", f.method.leave(ctx, true))
}

func (f *Fencer) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("volume %s: %s by %s: %w", f.opts.Volume, what, f.name, err)
}

// pause waits, longer each time; it returns ctx's error when that ends first.
func pause(ctx context.Context, length *time.Duration) error {
	timer := time.NewTimer(max(*length, firstPause))
	defer timer.Stop()
	*length = min(max(*length, firstPause)*2, maxPause)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
