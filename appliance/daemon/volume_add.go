package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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
	if err := n.prepare(ctx, dev, r); err != nil {
		return nil, err
	}
	record, err := n.db.AddVolume(ctx, cluster.Volume{Name: n.volumeName(r.Name), WWID: dev.WWID, Device: dev.Path})
	if err != nil {
		return nil, err
	}
	v := &volumeState{record: record}
	if err := n.onLine(ctx, v); err != nil {
		return nil, errors.Join(err, n.db.RemoveVolume(context.WithoutCancel(ctx), record.ID))
	}
	n.mu.Lock()
	n.volumes[record.ID] = v
	n.mu.Unlock()
	return v, nil
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
