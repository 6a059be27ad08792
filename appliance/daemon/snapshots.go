package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
)

// Snapshots implements server.Snapshots; a volume that is not on line has none in the list of all.
func (n *Node) Snapshots(ctx context.Context, volume string) ([]api.Snapshot, error) {
	return listed(ctx, n, volume, n.snapshotsOn)
}

func (n *Node) snapshotsOn(ctx context.Context, volume string) ([]api.Snapshot, error) {
	out := []api.Snapshot{}
	err := n.on(volume, func(_ *volumeState, p *parts) error {
		all, err := p.vol.Snapshots(ctx)
		for _, s := range all {
			out = append(out, api.Snapshot{Volume: volume, Path: s.Path, Name: s.Name, Size: s.Size, Exclusive: s.Exclusive,
				Taken: time.Unix(0, s.Taken).UTC(), HoldNS: s.Hold})
		}
		return err
	})
	return out, err
}

// CreateSnapshot implements server.Snapshots.
func (n *Node) CreateSnapshot(ctx context.Context, r api.CreateSnapshot) (api.SnapshotSet, error) {
	volume, paths, err := imagesOfOneVolume(r.Images)
	if err != nil {
		return api.SnapshotSet{}, err
	}
	out := api.SnapshotSet{Volume: volume, Name: r.Name, Images: r.Images}
	if out.Name == "" {
		out.Name = time.Now().UTC().Format("20060102-150405.000")
	}
	if err := checkSnapshotName(out.Name); err != nil {
		return out, err
	}
	err = n.on(volume, func(v *volumeState, p *parts) (err error) {
		take := func() error {
			hold, err := p.vol.Snapshot(ctx, out.Name, paths)
			out.HoldNS = int64(hold)
			return err
		}
		if r.NoHooks {
			return take()
		}
		undo := func() error { return p.vol.DeleteSnapshot(context.WithoutCancel(ctx), out.Name, "") }
		out.Hooks, out.Warnings, err = n.quiesced(ctx, v, out.Name, paths, take, undo)
		return err
	})
	if err != nil {
		return api.SnapshotSet{}, err
	}
	n.note(ctx, cluster.Event{Kind: "snapshot.create", Volume: volume, Text: fmt.Sprintf("snapshot %s of %s was taken, I/O was held for %v",
		out.Name, strings.Join(r.Images, ", "), time.Duration(out.HoldNS).Round(time.Microsecond))})
	return out, nil
}

// imagesOfOneVolume cuts names of images, which are all on one volume.
func imagesOfOneVolume(names []string) (volume string, paths []string, err error) {
	if len(names) == 0 {
		return "", nil, api.Errorf(api.Invalid, "no image is named").WithHint("name the images to keep: VOLUME/PATH...")
	}
	for _, name := range names {
		on, path, err := api.SplitImage(name)
		if err != nil {
			return "", nil, err
		}
		if volume != "" && on != volume {
			return "", nil, api.Errorf(api.Invalid, "%s and %s are on two volumes", names[0], name).
				WithHint("a snapshot is of images of one volume: take one for each volume")
		}
		volume, paths = on, append(paths, path)
	}
	return volume, paths, nil
}

// DeleteSnapshot implements server.Snapshots.
func (n *Node) DeleteSnapshot(ctx context.Context, volume, path, name string, force bool) error {
	what := volume + "/" + path + "@" + name
	if path == "" {
		what = volume + "@" + name
	}
	if err := n.snapshotNotExported(volume, name, path); err != nil {
		return err
	}
	err := n.on(volume, func(v *volumeState, p *parts) error {
		if h, ok := n.backupHold(v.id); ok && h.Backup.Snapshot == name {
			return n.backedUp(v, h)
		}
		all, err := p.vol.Snapshots(ctx)
		if err != nil {
			return err
		}
		var own int64
		for _, s := range all {
			if s.Name == name && (path == "" || s.Path == path) {
				own += s.Exclusive
			}
		}
		if own > 0 && !force {
			return api.Errorf(api.Refused, "snapshot %s has %s of data that nothing else has", what, api.FormatSize(own)).
				WithHint("--force deletes it all the same: that data is lost")
		}
		return p.vol.DeleteSnapshot(ctx, name, path)
	})
	if err != nil {
		return err
	}
	n.note(ctx, cluster.Event{Kind: "snapshot.delete", Volume: volume, Text: fmt.Sprintf("snapshot %s was deleted", what)})
	return nil
}

// Revert implements server.Snapshots.
func (n *Node) Revert(ctx context.Context, volume, path, name string, force bool) (api.Image, error) {
	if path == "" {
		return api.Image{}, api.Errorf(api.Invalid, "no image is named").WithHint("write it as VOLUME/PATH@SNAPSHOT")
	}
	if err := n.unsuspended(ctx, volume); err != nil {
		return api.Image{}, refusal(err)
	}
	end, err := n.begin(ctx)
	if err != nil {
		return api.Image{}, err
	}
	defer end()
	err = n.on(volume, func(v *volumeState, p *parts) error {
		if err := n.notExported(v, path); err != nil {
			return err
		}
		if !force {
			return api.Errorf(api.Refused, "image %s/%s would lose what was written since snapshot %s", volume, path, name).
				WithHint("--force reverts it all the same; to keep both: lunarctl image clone %s/%s@%s %s/NEWPATH", volume, path, name, volume)
		}
		return p.vol.Revert(ctx, name, path)
	})
	if err != nil {
		return api.Image{}, err
	}
	n.note(ctx, cluster.Event{Kind: "snapshot.revert", Volume: volume, Text: fmt.Sprintf("image %s/%s is again what it was in snapshot %s", volume, path, name)})
	return n.Image(ctx, volume, path)
}

// Diff implements server.Snapshots.
func (n *Node) Diff(ctx context.Context, volume, path, from, to string) (api.SnapshotDiff, error) {
	out := api.SnapshotDiff{Image: volume + "/" + path, From: from, To: to, Changed: []api.ByteRange{}}
	err := n.on(volume, func(_ *volumeState, p *parts) error {
		changed, err := p.vol.Diff(ctx, path, from, to)
		for _, r := range changed {
			out.Bytes += r.Len
			out.Changed = append(out.Changed, api.ByteRange{Offset: r.Off, Length: r.Len})
		}
		return err
	})
	return out, err
}

// clone makes an image from another, or from PATH@SNAPSHOT unless there is an image of that very name.
func (p *parts) clone(ctx context.Context, from, to string) error {
	at := strings.LastIndexByte(from, '@')
	if at > 0 && protocol.CheckSnapshotName(from[at+1:]) == nil {
		if _, err := p.vol.Stat(ctx, from); errors.Is(err, coordinator.ErrNotFound) {
			return p.vol.CloneSnapshot(ctx, from[at+1:], from[:at], to)
		}
	}
	return p.vol.Clone(ctx, from, to)
}
