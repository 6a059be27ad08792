package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/device"
)

// volumeState is a volume of this node; Node.mu guards its record.
type volumeState struct {
	record cluster.Volume

	use    sync.RWMutex // read-held while its parts are used, write-held while they come or go
	parts  *parts       // nil: off line
	reason string       // why
}

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

// offLine waits for the calls under way, then unmounts.
func (v *volumeState) offLine(ctx context.Context, reason string) error {
	v.use.Lock()
	defer v.use.Unlock()
	if v.parts == nil {
		return nil
	}
	stays, err := v.parts.close(ctx)
	if !stays {
		v.parts, v.reason = nil, reason
	}
	return err
}

// onLine finds the volume's LUN by its WWID and mounts it under a new epoch. On failure it notes
// the reason. The caller holds Node.changes.
func (n *Node) onLine(ctx context.Context, v *volumeState) error {
	p, record, err := n.openVolume(ctx, v.record)
	if err != nil {
		v.set(nil, err.Error())
		return err
	}
	n.mu.Lock()
	v.record = record
	n.mu.Unlock()
	v.set(p, "")
	return p.redirect(ctx, record.RedirectedOn(n.name))
}

func (n *Node) openVolume(ctx context.Context, r cluster.Volume) (*parts, cluster.Volume, error) {
	dev, err := findDevice(r.WWID, r.Device)
	if err != nil {
		return nil, r, err
	}
	epoch, err := n.db.NextEpoch(ctx, r.ID)
	if err != nil {
		return nil, r, errors.Join(err, dev.Close())
	}
	p, err := n.openParts(ctx, r.Name, dev, epoch)
	if err != nil {
		return nil, r, errors.Join(err, dev.Close())
	}
	r, err = n.db.UpdateVolume(ctx, r.ID, func(r *cluster.Volume) error {
		r.Device, r.FileSystem = dev.Path, string(p.coord.FS())
		return nil
	})
	if err != nil {
		_, closed := p.close(context.WithoutCancel(ctx))
		return nil, r, errors.Join(err, closed)
	}
	return p, r, nil
}

// findDevice opens the LUN with a WWID; hint is where it was.
func findDevice(wwid, hint string) (*device.Device, error) {
	paths, err := device.Find(wwid)
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
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
