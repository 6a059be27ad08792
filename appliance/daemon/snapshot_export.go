package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
)

// exported is how a LUN's image is called: VOLUME/PATH, or VOLUME/PATH@SNAPSHOT of one that is read-only.
func exported(volume, path string) (name string, readOnly bool) {
	if snapshot, image, ok := protocol.CutSnapshotPath(path); ok {
		return volume + "/" + image + "@" + snapshot, true
	}
	return volume + "/" + path, false
}

// mappable is the path by which a LUN opens an image, or PATH@SNAPSHOT unless there is an image of that very name.
func (n *Node) mappable(ctx context.Context, volume, path string) (string, error) {
	err := n.on(volume, func(_ *volumeState, p *parts) error {
		_, err := p.vol.Stat(ctx, path)
		at := strings.LastIndexByte(path, '@')
		if !errors.Is(err, coordinator.ErrNotFound) || at < 1 || protocol.CheckSnapshotName(path[at+1:]) != nil {
			return err
		}
		name, image := path[at+1:], path[:at]
		all, err := p.vol.Snapshots(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all, func(s protocol.Snapshot) bool { return s.Name == name && s.Path == image }) {
			return api.Errorf(api.NotFound, "there is no image %s/%s, nor a snapshot of that name", volume, path).
				WithHint("`lunarctl snapshot list %s` shows the snapshots, `lunarctl image list %s` the images", volume, volume)
		}
		path = protocol.SnapshotPath(name, image)
		return nil
	})
	return path, err
}

// snapshotNotExported refuses the end of a snapshot, or of one image of it, that a LUN maps on any node.
func (n *Node) snapshotNotExported(volume, name, path string) error {
	v, err := n.volume(volume)
	if err != nil {
		return err
	}
	isIt := func(l *cluster.LUN) bool {
		snapshot, image, ok := protocol.CutSnapshotPath(l.Path)
		return ok && l.VolumeID == v.id && snapshot == name && (path == "" || image == path)
	}
	m := n.mapped(isIt)
	if len(m) == 0 {
		return nil
	}
	return api.Errorf(api.Busy, "snapshot %s of volume %s is exported as LUN %d of %s", name, volume, m[0].LUN, m[0].Target).
		WithHint("unmap it first: lunarctl target unmap %s %d", m[0].Target, m[0].LUN)
}
