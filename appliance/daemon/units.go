package daemon

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/device"
	"lunar/datapath/volume"
	"lunar/iscsi/scsi"
)

// unitKey names an image for as long as it keeps its path.
type unitKey struct{ volumeID, path string }

// unit is an image that is exported: one logical unit, however many LUNs lead to it.
type unit struct {
	lu    *scsi.LogicalUnit
	image *volume.Image
	naa   string       // in hex
	size  atomic.Int64 // as initiators were told
	luns  int          // that lead to it; guarded by Node.changes
}

// acquire gives the unit of an image one more LUN, and opens it if it is the first. The caller
// holds Node.changes.
func (n *Node) acquire(ctx context.Context, l cluster.LUN) (*unit, error) {
	key := unitKey{l.VolumeID, l.Path}
	if u := n.unit(key); u != nil {
		u.luns++
		return u, nil
	}
	v := n.volumeByID(l.VolumeID)
	if v == nil {
		return nil, api.Errorf(api.NotFound, "its volume is gone")
	}
	p, release := v.borrow()
	if p == nil {
		return nil, api.Errorf(api.Unavailable, "volume %s is not available: %s", n.record(v).Name, v.why())
	}
	defer release()
	u, err := n.newUnit(ctx, p, l)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.units[key] = u
	return u, nil
}

func (n *Node) newUnit(ctx context.Context, p *parts, l cluster.LUN) (*unit, error) {
	naa, err := hex.DecodeString(l.NAA)
	if err != nil {
		return nil, fmt.Errorf("NAA %q: %w", l.NAA, err)
	}
	image, err := p.vol.OpenImage(ctx, l.Path)
	if err != nil {
		return nil, err
	}
	if image.Size() == 0 {
		return nil, errors.Join(api.Errorf(api.Refused, "image %s has no bytes yet: give it a size first", l.Path), image.Close(ctx))
	}
	_, readOnly := exported("", l.Path)
	lu, err := scsi.NewLogicalUnit(image, scsi.UnitOptions{
		NAA: naa, Serial: l.Serial, Thin: true, ReadOnly: readOnly, PhysicalBlock: physicalBlock(p.dev), Shared: n.membership.Load().shared,
	})
	if err == nil {
		state, _ := p.state()
		err = lu.SetPortGroups(n.groupsFor(l.VolumeID, accessStates[state])) // before anyone could be told of a change
	}
	if err != nil {
		_ = image.Close(ctx)
		return nil, err
	}
	u := &unit{lu: lu, image: image, naa: l.NAA, luns: 1}
	u.size.Store(image.Size())
	return u, nil
}

// physicalBlock is the device's, of the two lengths that hypervisors know.
func physicalBlock(d *device.Device) int {
	if d.PhysicalBlock <= 512 {
		return 512
	}
	return 4096
}

// release takes one LUN away from a unit, and closes the image with the last one. The caller holds
// Node.changes.
func (n *Node) release(ctx context.Context, u *unit) error {
	if u.luns--; u.luns > 0 {
		return nil
	}
	n.mu.Lock()
	for key, other := range n.units {
		if other == u {
			delete(n.units, key)
		}
	}
	n.mu.Unlock()
	n.reservations.forget(ctx, u.naa)
	return u.image.Close(ctx)
}

// unitByNAA is nil where no LUN leads to it.
func (n *Node) unitByNAA(naa string) *unit {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, u := range n.units {
		if u.naa == naa {
			return u
		}
	}
	return nil
}

func (n *Node) unit(key unitKey) *unit {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.units[key]
}

func (n *Node) volumeByID(id string) *volumeState {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.volumes[id]
}

// capacityChanged tells initiators that an image has another size.
func (n *Node) capacityChanged(volume, path string) {
	v, err := n.volume(volume)
	if err != nil {
		return
	}
	if u := n.unit(unitKey{v.id, path}); u != nil {
		u.checkSize()
	}
}

// checkSize tells initiators that the image has another size, whichever node has changed it.
func (u *unit) checkSize() {
	if size := u.image.Size(); u.size.Swap(size) != size {
		u.lu.CapacityChanged()
	}
}

// mappings lists where an image is exported.
func (n *Node) mappings(key unitKey) []api.Mapping {
	return n.mapped(func(l *cluster.LUN) bool { return l.VolumeID == key.volumeID && l.Path == key.path })
}

// mappedOn lists where images of a volume are exported.
func (n *Node) mappedOn(volumeID string) []api.Mapping {
	return n.mapped(func(l *cluster.LUN) bool { return l.VolumeID == volumeID })
}

func (n *Node) mapped(match func(*cluster.LUN) bool) []api.Mapping {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []api.Mapping
	for _, t := range n.targets {
		for _, l := range t.luns {
			if match(&l.record) {
				out = append(out, api.Mapping{Target: t.name, LUN: l.record.Number})
			}
		}
	}
	slices.SortFunc(out, func(a, b api.Mapping) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.LUN, b.LUN))
	})
	return out
}
