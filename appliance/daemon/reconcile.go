package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lunar/appliance/cluster"
)

// reconciler brings volumes and targets to what the database says, after another node has changed it.
type reconciler struct{ wake chan struct{} }

func newReconciler() *reconciler { return &reconciler{make(chan struct{}, 1)} }

// kick says that something may have changed; it does not block.
func (r *reconciler) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// keepReconciled works until ctx ends. What failed is tried again.
func (n *Node) keepReconciled(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.reconciler.wake:
		case <-again.C:
		}
		if err := n.reconcile(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("this node is not yet as the cluster's database says", "error", err)
			again.Reset(retryInterval)
		}
	}
}

func (n *Node) reconcile(ctx context.Context) error {
	if n.witness {
		return nil
	}
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	volumes, targets, err := n.recorded(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(n.takeAway(ctx, targets), n.reconcileVolumes(ctx, volumes), n.addTargets(ctx, targets))
	n.followStates()
	return err
}

// recorded is what the cluster's database says that there is.
func (n *Node) recorded(ctx context.Context) (volumes []cluster.Volume, targets []cluster.Target, err error) {
	if volumes, err = n.db.Volumes(ctx); err == nil {
		targets, err = n.db.Targets(ctx)
	}
	return volumes, targets, err
}

// takeAway withdraws targets and LUNs that are no more.
func (n *Node) takeAway(ctx context.Context, records []cluster.Target) error {
	var errs []error
	for _, t := range n.sortedTargets() {
		i := slices.IndexFunc(records, func(r cluster.Target) bool { return r.Name == t.name })
		if i < 0 {
			errs = append(errs, n.withdraw(ctx, t))
			continue
		}
		for number, l := range n.lunsOf(t) {
			if now, ok := records[i].LUN(number); !ok || now != l.record {
				errs = append(errs, n.detach(ctx, t, l), n.dropLUN(t, number))
			}
		}
	}
	return errors.Join(errs...)
}

func (n *Node) dropLUN(t *target, number uint16) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(t.luns, number)
	return nil
}

func (n *Node) reconcileVolumes(ctx context.Context, records []cluster.Volume) error {
	var errs []error
	for _, v := range n.sortedVolumes() {
		if !slices.ContainsFunc(records, func(r cluster.Volume) bool { return r.ID == v.id }) {
			errs = append(errs, v.offLine(ctx, ejected), n.forget(v.id))
		}
	}
	for _, r := range records {
		if v := n.volumeByID(r.ID); v == nil {
			n.addVolumeOf(ctx, r)
		} else {
			errs = append(errs, n.updateVolume(ctx, v, r))
		}
	}
	return errors.Join(errs...)
}

// addVolumeOf brings a volume on line that another node has added. Without a path to its LUN it stays off line, and
// is tried again with the others.
func (n *Node) addVolumeOf(ctx context.Context, r cluster.Volume) {
	v := n.know(r)
	err := n.onLine(ctx, v)
	if err == nil {
		err = n.awaitCoordinator(ctx, v)
	}
	if err != nil {
		n.log.Warn("a volume is not available here", "volume", r.Name, "wwid", r.WWID, "error", err)
	}
}

func (n *Node) updateVolume(ctx context.Context, v *volumeState, r cluster.Volume) error {
	if r.Ejecting {
		if err := v.offLine(ctx, "it is being ejected"); err != nil {
			return err
		}
	}
	n.mu.Lock()
	redirected := v.record.RedirectedOn(n.name) != r.RedirectedOn(n.name)
	v.record = r
	n.mu.Unlock()
	if !redirected {
		return nil
	}
	p, release := v.borrow()
	if p == nil {
		return nil
	}
	defer release()
	return p.redirect(ctx, r.RedirectedOn(n.name))
}

// addTargets offers what is new, and gives the others their LUNs and rules.
func (n *Node) addTargets(ctx context.Context, records []cluster.Target) error {
	var errs []error
	for _, r := range records {
		t, err := n.target(r.Name)
		if err != nil {
			_, err = n.export(ctx, r)
		} else {
			err = n.updateTarget(ctx, t, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) updateTarget(ctx context.Context, t *target, r cluster.Target) error {
	known := n.lunsOf(t)
	for _, record := range r.LUNs {
		if known[record.Number] != nil {
			continue
		}
		l := &lun{record: record}
		n.attach(ctx, t, l)
		n.mu.Lock()
		t.luns[record.Number] = l
		n.mu.Unlock()
	}
	policy, accessErr := n.access(&r)
	n.directory.admit(t.name, policy)
	err := n.front.SetAccess(t.name, policy)
	n.mu.Lock()
	defer n.mu.Unlock()
	t.record = r
	if t.reason = ""; accessErr != nil {
		t.reason = accessErr.Error()
	}
	return err
}
