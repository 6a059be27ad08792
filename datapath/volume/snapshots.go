package volume

import (
	"context"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Snapshot keeps the images at paths as they are at one instant, under a name; hold is for how long their
// I/O waited on all nodes.
func (v *Volume) Snapshot(ctx context.Context, name string, paths []string) (hold time.Duration, err error) {
	err = v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		hold, err = c.Snapshot(ctx, m, name, paths)
		return err
	})
	return hold, err
}

// Snapshots describes every image of every snapshot, by name and path.
func (v *Volume) Snapshots(ctx context.Context) (all []protocol.Snapshot, err error) {
	v.metadata(0)
	err = v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		all, err = t.c.Snapshots(ctx)
		return err
	})
	return all, err
}

// DeleteSnapshot removes one image of a snapshot, or with an empty path all of it.
func (v *Volume) DeleteSnapshot(ctx context.Context, name, path string) error {
	id, err := v.snapshotAt(ctx, name, path)
	if err != nil {
		return err
	}
	return v.alter(ctx, protocol.Meta{Image: id}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.DeleteSnapshot(ctx, m, name, path)
	})
}

// snapshotAt is what a deletion is about, so that a retry knows it from a later one of the same name; 0
// when there is none, which the change itself says better.
func (v *Volume) snapshotAt(ctx context.Context, name, path string) (protocol.ImageID, error) {
	all, err := v.Snapshots(ctx)
	for _, s := range all {
		switch {
		case s.Name != name:
		case path == "":
			return s.Set, err
		case s.Path == path:
			return s.ID, err
		}
	}
	return 0, err
}

// CloneSnapshot makes a new image at to, equal to an image of a snapshot.
func (v *Volume) CloneSnapshot(ctx context.Context, name, path, to string) error {
	return v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.CloneSnapshot(ctx, m, name, path, to)
	})
}

// Revert makes an image that is not open anywhere what it was in a snapshot.
func (v *Volume) Revert(ctx context.Context, name, path string) error {
	return v.alter(ctx, protocol.Meta{}, func(ctx context.Context, c Coordinator, m protocol.Meta) error {
		return c.Revert(ctx, m, name, path)
	})
}

// Diff tells which ranges of an image differ between two snapshots, in bytes and in order.
func (v *Volume) Diff(ctx context.Context, path, from, to string) (changed []layout.Range, err error) {
	v.metadata(0)
	err = v.ask(ctx, func(ctx context.Context, t *term, _ bool) error {
		changed, err = t.c.Diff(ctx, path, from, to)
		return err
	})
	return changed, err
}
