package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/device"
)

// AddVolume implements server.Volumes: it formats the device if that was asked for, records the
// volume, and brings it on line.
func (n *Node) AddVolume(ctx context.Context, r api.AddVolume) (api.Volume, error) {
	if r.Name != "" {
		if err := checkVolumeName(r.Name); err != nil {
			return api.Volume{}, err
		}
	}
	end, err := n.begin(ctx)
	if err != nil {
		return api.Volume{}, err
	}
	defer end()
	v, err := n.addVolume(ctx, r)
	if err != nil {
		return api.Volume{}, refusal(err)
	}
	record := n.record(v)
	n.note(ctx, cluster.Event{Kind: "volume.add", Volume: record.Name, Text: fmt.Sprintf("device %s is volume %s, %s", record.Device, record.Name, record.FileSystem)})
	return n.describe(ctx, v), nil
}

func (n *Node) addVolume(ctx context.Context, r api.AddVolume) (*volumeState, error) {
	dev, err := device.Open(r.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.NotFound, "there is no device %s", r.Device).WithHint("`lsblk` lists the block devices")
	}
	if err != nil {
		return nil, err
	}
	// What is on line has a Device of its own; this one only looks and formats.
	defer func() { _ = dev.Close() }()
	if err := n.unknown(dev, r); err != nil {
		return nil, err
	}
	if err := n.fenceable(ctx, r, dev.Path); err != nil {
		return nil, err
	}
	if err := n.prepare(ctx, dev, r); err != nil {
		return nil, err
	}
	record, err := n.db.AddVolume(ctx, cluster.Volume{Name: n.volumeName(r.Name), WWID: dev.WWID, Device: dev.Path, AllowUnfenced: r.AllowUnfenced})
	if err != nil {
		return nil, err
	}
	v := n.know(record)
	v.takeOver.Store(r.Force)
	defer v.takeOver.Store(false)
	if err = n.onLine(ctx, v); err == nil {
		err = n.awaitCoordinator(ctx, v)
	}
	if err != nil {
		ctx = context.WithoutCancel(ctx)
		return nil, errors.Join(err, v.offLine(ctx, "it was not added"), n.db.RemoveVolume(ctx, record.ID), n.forget(record.ID))
	}
	return v, nil
}

// know adds a volume of the database to those of this node, off line.
func (n *Node) know(r cluster.Volume) *volumeState {
	v := &volumeState{node: n, id: r.ID, record: r}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.volumes[r.ID] = v
	return v
}

func (n *Node) forget(volumeID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.volumes, volumeID)
	return nil
}

// coordinatorLimit bounds the wait for a volume's first coordinator, whose journal's replay takes seconds.
const coordinatorLimit = 30 * time.Second

// awaitCoordinator returns when the volume follows a coordinator, here or elsewhere, or why it does not.
func (n *Node) awaitCoordinator(ctx context.Context, v *volumeState) error {
	ctx, cancel := context.WithTimeout(ctx, coordinatorLimit)
	defer cancel()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		p, release := v.borrow()
		if p == nil {
			tick.Stop()
			return api.Errorf(api.Unavailable, "volume %s: %s", v.name(), v.why())
		}
		s := p.vol.Status()
		release()
		if err := v.seat.Load().failure(); err != nil || s.Epoch > 0 && !s.Orphan {
			tick.Stop()
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return v.complain(ctx.Err())
		}
	}
}

// unknown refuses a name or a LUN that is a volume already, before anything is formatted.
func (n *Node) unknown(dev *device.Device, r api.AddVolume) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, v := range n.volumes {
		if v.record.WWID == dev.WWID {
			return api.Errorf(api.Exists, "%s is volume %s already (%s)", dev.Path, v.record.Name, dev.WWID)
		}
		if v.record.Name == r.Name {
			return api.Errorf(api.Exists, "there is a volume %s already, on %s", r.Name, v.record.Device).WithHint("choose another --name")
		}
	}
	return nil
}

// prepare makes the file system if that was asked for. A device that holds something is refused
// without force, and one that is in use always.
func (n *Node) prepare(ctx context.Context, dev *device.Device, r api.AddVolume) error {
	if r.Format == "" {
		return nil
	}
	if dev.ReadOnly {
		return api.Errorf(api.Refused, "device %s is read-only", dev.Path)
	}
	defer n.jobs.end(n.jobs.begin("volume.add", r.Device, 0))
	return coordinator.Format(ctx, dev, coordinator.FormatOptions{FS: coordinator.FSType(r.Format), Force: r.Force})
}

// volumeName is name, or the first of Volume1, Volume2, … that is free.
func (n *Node) volumeName(name string) string {
	if name != "" {
		return name
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	taken := map[string]bool{}
	for _, v := range n.volumes {
		taken[v.record.Name] = true
	}
	for i := 1; ; i++ {
		if name := fmt.Sprintf("Volume%d", i); !taken[name] {
			return name
		}
	}
}
