package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"

	"lunar/appliance/cluster"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// sweptBackups is whether what dead backups left on a volume was cleared away in a term of this node.
type sweptBackups struct {
	epoch uint64
	done  bool
}

// keepBackupsSwept takes away what backups left whose node has ended before them: once per term on the volumes that
// this node coordinates, and after each backup of another node, until ctx ends.
func (n *Node) keepBackupsSwept(ctx context.Context) {
	swept := map[string]sweptBackups{}
	for {
		for _, v := range n.sortedVolumes() {
			swept[v.id] = n.sweepBackupsOnce(ctx, v, swept[v.id])
		}
		if pause(ctx, sweepInterval) != nil {
			return
		}
	}
}

func (n *Node) sweepBackupsOnce(ctx context.Context, v *volumeState, was sweptBackups) sweptBackups {
	s := v.seat.Load()
	if s == nil {
		return sweptBackups{}
	}
	c := s.coordinator(0)
	if _, held := n.backupHold(v.id); c == nil || held {
		return sweptBackups{}
	}
	if was.done && was.epoch == c.Epoch() {
		return was
	}
	ctx, cancel := context.WithTimeout(ctx, backupEndLimit)
	defer cancel()
	err := n.sweepBackups(ctx, v)
	if err != nil && ctx.Err() == nil {
		n.log.Warn("what a backup left was not cleared away yet", "volume", v.name(), "error", err)
	}
	return sweptBackups{c.Epoch(), err == nil}
}

// sweepBackups removes what is of no backup. What was seen before it is known that no backup is under way is of none that
// will be.
func (n *Node) sweepBackups(ctx context.Context, v *volumeState) error {
	p, release := v.borrow()
	if p == nil {
		return nil
	}
	defer release()
	snapshots, err := p.vol.Snapshots(ctx)
	if err != nil {
		return err
	}
	before, err := n.db.Volume(ctx, v.id)
	if err != nil {
		return err
	}
	e, err := n.elections(ctx)
	if err != nil {
		return err
	}
	view, err := e.View(ctx)
	if err != nil {
		return err
	}
	if _, held := view.Holds[v.id][volume.Backup.String()]; held {
		return errBackedUp
	}
	var errs []error
	gone := map[string]bool{}
	for i := range snapshots {
		if name := snapshots[i].Name; !gone[name] && strings.HasPrefix(name, passingSnapshot) {
			if _, passing := isPassing(name); passing {
				gone[name] = true
				errs = append(errs, absent(refusal(p.vol.DeleteSnapshot(ctx, name, ""))))
			}
		}
	}
	return errors.Join(append(errs, n.sweepUnended(ctx, v, p, snapshots, before))...)
}

// sweepUnended removes the named snapshots of backups that have not ended in order. What the volume's record had of them
// before it was known that no backup is under way, and has still, is of one that is dead.
func (n *Node) sweepUnended(ctx context.Context, v *volumeState, p *parts, snapshots []protocol.Snapshot, before cluster.Volume) error {
	now, err := n.db.Volume(ctx, v.id)
	if err != nil {
		return err
	}
	var errs []error
	for _, u := range now.Unended {
		if !slices.Contains(before.Unended, u) {
			continue
		}
		isIt := func(s protocol.Snapshot) bool {
			return s.Name == u.Snapshot && uint64(s.Set) == u.Set && s.Taken == u.Taken
		}
		if slices.ContainsFunc(snapshots, isIt) {
			if err := absent(refusal(p.vol.DeleteSnapshot(ctx, u.Snapshot, ""))); err != nil {
				errs = append(errs, err)
				continue
			}
			n.log.Info("the snapshot of a backup that was cut off is removed", "volume", v.name(), "snapshot", u.Snapshot, "backup", u.ID)
		}
		errs = append(errs, n.endUnended(ctx, v, u.ID))
	}
	return errors.Join(errs...)
}

// beginUnended records that the snapshot of a backup is not to stay, before the backup has ended in order.
func (n *Node) beginUnended(ctx context.Context, v *volumeState, u cluster.UnendedBackup) error {
	_, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error {
		r.Unended = append(slices.DeleteFunc(r.Unended, func(o cluster.UnendedBackup) bool { return o.ID == u.ID }), u)
		return nil
	})
	return err
}

// endUnended forgets it.
func (n *Node) endUnended(ctx context.Context, v *volumeState, id string) error {
	_, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error {
		r.Unended = slices.DeleteFunc(r.Unended, func(o cluster.UnendedBackup) bool { return o.ID == id })
		return nil
	})
	return err
}

var errBackedUp = errors.New("a backup is under way")
