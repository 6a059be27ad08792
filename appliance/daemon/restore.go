package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lunar/appliance/cluster"
)

// retryInterval is how often volumes and LUNs that are not available are tried again.
const retryInterval = 5 * time.Second

// restore brings back what was there when the daemon ended. What cannot be brought back is noted,
// and tried again by retry; it fails only on the database.
func (n *Node) restore(ctx context.Context) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if n.witness {
		return nil
	}
	if err := n.db.SweepReservations(ctx); err != nil {
		return err
	}
	volumes, err := n.db.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, r := range volumes {
		n.restoreVolume(ctx, r)
	}
	n.awaitCoordinators(ctx)
	targets, err := n.db.Targets(ctx)
	if err != nil {
		return err
	}
	for _, r := range targets {
		if _, err := n.export(ctx, r); err != nil {
			return fmt.Errorf("restore target %s: %w", r.Name, err)
		}
	}
	return nil
}

func (n *Node) restoreVolume(ctx context.Context, r cluster.Volume) {
	if err := n.onLine(ctx, n.know(r)); err != nil {
		n.log.Error("a volume is not available", "volume", r.Name, "wwid", r.WWID, "error", err)
	}
}

// awaitCoordinators lets the volumes find their coordinators side by side; one that has none is noted, and
// its LUNs wait.
func (n *Node) awaitCoordinators(ctx context.Context) {
	var all sync.WaitGroup
	for _, v := range n.sortedVolumes() {
		if v.seat.Load() == nil {
			continue
		}
		all.Go(func() {
			if err := n.awaitCoordinator(ctx, v); err != nil {
				n.log.Error("a volume is not available", "error", err)
			}
		})
	}
	all.Wait()
}

// keepTrying tries again what is not available, until ctx ends.
func (n *Node) keepTrying(ctx context.Context, changed func()) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if n.retry(ctx) {
				changed()
			}
		case <-ctx.Done():
			return
		}
	}
}

// retry tells whether something came back.
func (n *Node) retry(ctx context.Context) (back bool) {
	end, err := n.begin(ctx)
	if err != nil {
		return false
	}
	defer end()
	for _, v := range n.sortedVolumes() {
		if p, release := v.borrow(); p != nil {
			release()
			continue
		}
		if err := n.onLine(ctx, v); err == nil {
			back = true
			n.note(ctx, cluster.Event{Kind: "volume.online", Volume: v.name(),
				Text: fmt.Sprintf("volume %s is back, on %s", v.name(), n.record(v).Device)})
		}
	}
	return n.retryLUNs(ctx) || back
}

func (n *Node) retryLUNs(ctx context.Context) (back bool) {
	for t, l := range n.absentLUNs() {
		if n.attach(ctx, t, l); l.unit != nil {
			back = true
			n.log.Info("a LUN is back", "target", t.name, "lun", l.record.Number)
		}
	}
	return back
}

// absentLUNs yields the LUNs that are off line although their volume is not. The caller holds
// Node.changes, so that no LUN comes or goes meanwhile.
func (n *Node) absentLUNs() func(yield func(*target, *lun) bool) {
	type pair struct {
		t *target
		l *lun
	}
	var found []pair
	n.mu.RLock()
	for _, t := range n.targets {
		for _, l := range t.luns {
			if l.unit == nil && n.volumes[l.record.VolumeID] != nil {
				found = append(found, pair{t, l})
			}
		}
	}
	n.mu.RUnlock()
	return func(yield func(*target, *lun) bool) {
		for _, f := range found {
			if v := n.volumeByID(f.l.record.VolumeID); v.why() == "" && !yield(f.t, f.l) {
				return
			}
		}
	}
}

// quiesce takes every LUN off line and unmounts every volume; no session is left.
func (n *Node) quiesce(ctx context.Context) error {
	n.stopping.Store(true)
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	var errs []error
	for _, t := range n.targets {
		errs = append(errs, n.detachAll(ctx, t))
	}
	for _, v := range n.sortedVolumes() {
		if err := v.offLine(ctx, "the node stops"); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", v.name(), err))
		}
	}
	return errors.Join(errs...)
}
