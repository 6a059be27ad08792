package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/volume"
)

// volumeState is a volume of this node.
type volumeState struct {
	node      *Node
	id        string         // never changes
	record    cluster.Volume // guarded by Node.mu
	takeOver  atomic.Bool    // it may be another cluster's
	pathLost  atomic.Bool    // as the cluster was told
	mountedBy atomic.Uint64  // incarnation of this node that may have it mounted; 0: none

	absentSince atomic.Pointer[time.Time] // neither path nor coordinator since then; nil: not so
	seat        atomic.Pointer[seat]      // of the parts: set before them, nil after them

	use    sync.RWMutex // read-held while its parts are used, write-held while they come or go
	parts  *parts       // nil: off line
	reason string       // why
}

// name is the volume's present one.
func (v *volumeState) name() string { return v.node.record(v).Name }

// borrow gives the parts to a caller that calls release when it is done; nil while off line.
func (v *volumeState) borrow() (p *parts, release func()) {
	v.use.RLock()
	if v.parts == nil {
		v.use.RUnlock()
		return nil, func() {}
	}
	return v.parts, v.use.RUnlock
}

// tryBorrow is borrow for who does not wait: nil also while the parts come or go.
func (v *volumeState) tryBorrow() (p *parts, release func()) {
	if !v.use.TryRLock() {
		return nil, func() {}
	}
	if v.parts == nil {
		v.use.RUnlock()
		return nil, func() {}
	}
	return v.parts, v.use.RUnlock
}

// why tells in words why the volume is off line.
func (v *volumeState) why() string {
	v.use.RLock()
	defer v.use.RUnlock()
	return v.reason
}

func (v *volumeState) set(p *parts, reason string) {
	v.use.Lock()
	defer v.use.Unlock()
	v.parts, v.reason = p, reason
}

// ejected is why a volume goes off line that is to be nobody's.
const ejected = "ejected"

// offLine waits for the calls under way, hands the volume over if this node coordinates it, and lets
// the device go. Its images are closed.
func (v *volumeState) offLine(ctx context.Context, reason string) error {
	p, release := v.borrow()
	if p == nil {
		return nil
	}
	release()
	if images := p.vol.Status().Images; images > 0 {
		return fmt.Errorf("volume %s: %w: %d images are open", v.name(), volume.ErrInUse, images)
	}
	v.node.forgetPath(v.id)
	seat := v.seat.Load()
	err := seat.resign(ctx, reason)
	seat.end()
	v.use.Lock()
	defer v.use.Unlock()
	if v.parts == nil {
		return err
	}
	stays, closed := v.parts.close(ctx)
	if !stays {
		v.parts, v.reason = nil, reason
		v.seat.Store(nil)
		v.node.forgetPath(v.id) // again: who had borrowed the parts may have told of the path since
	}
	return errors.Join(err, closed)
}

// onLine finds the volume's LUN by its WWID and takes part in its coordination. On failure it notes
// the reason. The caller holds Node.changes.
func (n *Node) onLine(ctx context.Context, v *volumeState) error {
	if err := n.present(); err != nil {
		v.set(nil, err.Error())
		return err
	}
	record := n.record(v)
	if record.Ejecting {
		v.set(nil, "it is being ejected; if that was cut short, eject it again")
		return api.Errorf(api.Unavailable, "volume %s is being ejected", record.Name)
	}
	if record.OffLineOn(n.name) {
		v.set(nil, offLineHere(record.Name))
		return api.Errorf(api.Unavailable, "volume %s: %s", record.Name, offLineHere(record.Name))
	}
	p, err := n.openVolume(ctx, record)
	if err != nil {
		v.set(nil, err.Error())
		return err
	}
	seat := n.newSeat(v)
	v.seat.Store(seat)
	v.set(p, "")
	if err := p.redirect(ctx, record.RedirectedOn(n.name)); err != nil {
		return err
	}
	seat.start() //nolint:contextcheck // it lives until the volume goes off line
	m := n.membership.Load()
	if seen, ok := m.view.Load().Seats[v.id]; ok {
		seat.saw(seen)
	}
	seat.heed(n.holdsOf(v.id)) // after the parts were set: what came meanwhile found none
	m.session.SetPath(v.id, true)
	return nil
}

func (n *Node) openVolume(ctx context.Context, r cluster.Volume) (*parts, error) {
	dev, err := n.findDevice(r.WWID, r.Device)
	if err != nil {
		return nil, err
	}
	p, err := n.openParts(ctx, r, dev)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return p, nil
}

// saw notes in the database what the coordinator has learnt of the volume.
func (n *Node) saw(ctx context.Context, v *volumeState, p *parts, c *coordinator.Coordinator) error {
	record, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error {
		r.Device, r.FileSystem = p.dev.Path, string(c.FS())
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v.record = record
	return nil
}

// findDevice opens the LUN with a WWID; hint is where it was.
func (n *Node) findDevice(wwid, hint string) (*device.Device, error) {
	paths, err := device.Find(wwid)
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	paths = slices.DeleteFunc(paths, func(path string) bool { return !n.storage.Allows(path) })
	if i := slices.Index(paths, hint); i > 0 {
		paths[0], paths[i] = paths[i], paths[0]
	}
	for _, path := range paths {
		if d := openIf(wwid, path); d != nil {
			return d, nil
		}
	}
	return nil, api.Errorf(api.Unavailable, "no disk path: this node has no device with the identity %s (it was %s)", wwid, hint).
		WithHint("check the SAN connection; the node looks again by itself")
}

// openIf opens the device at path if it is, still, the one with the identity.
func openIf(wwid, path string) *device.Device {
	d, err := device.Open(path)
	if err != nil {
		return nil
	}
	if d.WWID == wwid {
		return d
	}
	_ = d.Close()
	return nil
}
