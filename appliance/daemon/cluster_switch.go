package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lunar/appliance/cluster"
	"lunar/iscsi"
)

// The bounds of a change of this node's part in the cluster: of each of its halves, and of the tries to take
// part again.
const (
	switchLimit = 3 * time.Minute
	rejoinTries = 3
	rejoinPause = 2 * time.Second
)

// switchCluster gives this node another part in another cluster, by change, with everything off line meanwhile:
// targets by putAway, and volumes. When change fails the node has its old part again. The caller holds
// Node.changes; who asked may go away, the work is done to its end.
func (n *Node) switchCluster(ctx context.Context, putAway, change func(context.Context) error) error {
	ctx = context.WithoutCancel(ctx)
	limited, cancel := context.WithTimeout(ctx, switchLimit)
	defer cancel()
	err := errors.Join(putAway(limited), n.putVolumesAway(limited))
	if err == nil {
		if left := n.membership.Load().close(limited); left != nil {
			n.log.Warn("this node's part in the cluster did not end in order", "error", left)
		}
		err = change(limited)
		back, cancel := context.WithTimeout(ctx, switchLimit)
		defer cancel()
		if again := n.rejoin(back); again != nil {
			return errors.Join(err, again)
		}
	}
	back, cancelBack := context.WithTimeout(ctx, switchLimit)
	defer cancelBack()
	n.takeUp(back)
	if err == nil {
		return nil
	}
	targets, unknown := n.db.Targets(back)
	return errors.Join(err, unknown, n.addTargets(back, targets))
}

// detachTargets keeps the targets, without their LUNs.
func (n *Node) detachTargets(ctx context.Context) error {
	var errs []error
	for _, t := range n.sortedTargets() {
		errs = append(errs, n.detachAll(ctx, t))
	}
	return errors.Join(errs...)
}

// withdrawTargets ends the sessions too.
func (n *Node) withdrawTargets(ctx context.Context) error {
	for _, t := range n.sortedTargets() {
		if err := n.withdraw(ctx, t); err != nil {
			n.log.Warn("a target was not withdrawn in order", "target", t.name, "error", err)
		}
	}
	return nil
}

// putVolumesAway fails only if a volume stays on line.
func (n *Node) putVolumesAway(ctx context.Context) error {
	for _, v := range n.sortedVolumes() {
		err := v.offLine(ctx, "the node's part in the cluster changes")
		if err == nil {
			continue
		}
		if p, release := v.borrow(); p != nil {
			release()
			return err
		}
		n.log.Warn("a volume was not taken off line in order", "volume", n.record(v).Name, "error", err)
	}
	return nil
}

// rejoin takes this node's place by what the database says now.
func (n *Node) rejoin(ctx context.Context) error {
	var err error
	for range rejoinTries {
		var m *membership
		if m, err = n.openMembership(ctx); err == nil {
			if !m.shared {
				n.front.SetGroup(iscsi.DefaultGroup)
				n.front.SetPeers(nil)
			}
			m.run(ctx)
			return nil
		}
		n.log.Error("this node takes no part in the cluster yet", "error", err)
		select {
		case <-time.After(rejoinPause):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("this node takes no part in the cluster now, and its volumes are off line; restart lunard: %w", err)
}

// takeUp brings back what is still there in the database of now; the rest is the reconciler's. What is not
// available is noted, and tried again by retry.
func (n *Node) takeUp(ctx context.Context) {
	if err := n.forgetGone(ctx); err != nil {
		n.log.Warn("the database does not tell its volumes and targets yet", "error", err)
	}
	for _, v := range n.sortedVolumes() {
		if p, release := v.borrow(); p != nil {
			release()
			continue
		}
		if err := n.onLine(ctx, v); err != nil {
			n.log.Error("a volume is not available", "volume", n.record(v).Name, "error", err)
		}
	}
	n.awaitCoordinators(ctx)
	n.retryLUNs(ctx)
	n.followStates()
	n.reconciler.kick()
}

// forgetGone drops the targets and volumes that this database does not know.
func (n *Node) forgetGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	volumes, targets, err := n.recorded(ctx)
	if err != nil {
		return err
	}
	err = n.takeAway(ctx, targets)
	for _, v := range n.sortedVolumes() {
		i := slices.IndexFunc(volumes, func(r cluster.Volume) bool { return r.ID == v.id })
		if i < 0 {
			err = errors.Join(err, n.forget(v.id))
			continue
		}
		n.mu.Lock()
		v.record = volumes[i]
		n.mu.Unlock()
	}
	return err
}
