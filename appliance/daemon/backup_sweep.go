package daemon

import (
	"context"
	"errors"
	"strings"

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
	return errors.Join(errs...)
}

var errBackedUp = errors.New("a backup is under way")
