package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
)

// offLineHere is why a volume is off line that the user took off line on this node.
func offLineHere(name string) string {
	return fmt.Sprintf("it was taken off line on this node; `lunarctl volume online %s` brings it back", name)
}

// OnlineVolume implements server.Lines.
func (n *Node) OnlineVolume(ctx context.Context, name string) (api.Volume, error) {
	end, err := n.begin(ctx)
	if err != nil {
		return api.Volume{}, err
	}
	defer end()
	v, err := n.volume(name)
	if err != nil {
		return api.Volume{}, err
	}
	if err := n.wishOffLine(ctx, v, false); err != nil {
		return api.Volume{}, refusal(err)
	}
	if p, release := v.borrow(); p != nil {
		release()
		return n.describe(ctx, v), refusal(n.awaitCoordinator(ctx, v))
	}
	if err = n.onLine(ctx, v); err == nil {
		err = n.awaitCoordinator(ctx, v)
	}
	if err != nil {
		return api.Volume{}, refusal(fmt.Errorf("volume %s is not on line yet, and is tried again: %w", name, err))
	}
	n.retryLUNs(ctx)
	n.followStates()
	n.note(ctx, cluster.Event{Kind: "volume.online", Volume: name, Text: fmt.Sprintf("volume %s is on line on node %s again", name, n.name)})
	return n.describe(ctx, v), nil
}

// OfflineVolume implements server.Lines. The wish outlives a restart.
func (n *Node) OfflineVolume(ctx context.Context, name string, force bool) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	if r := n.record(v); r.OffLineOn(n.name) {
		return nil
	}
	if err := n.unheld(v); err != nil {
		return err
	}
	if err := n.unservedHere(v); err != nil && !force {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := n.wishOffLine(ctx, v, true); err != nil {
		return refusal(err)
	}
	reason := offLineHere(name)
	if err := errors.Join(n.detachVolume(ctx, v, reason), v.offLine(ctx, reason)); err != nil {
		err = errors.Join(err, n.wishOffLine(ctx, v, false))
		n.retryLUNs(ctx)
		return refusal(err)
	}
	v.set(nil, reason) // also where it was off line for another reason
	n.followStates()
	n.note(ctx, cluster.Event{Kind: "volume.offline", Volume: name, Text: fmt.Sprintf("volume %s was taken off line on node %s", name, n.name)})
	return nil
}

// end says that the daemon begins to end: who follows something waits no longer.
func (n *Node) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.halt:
	default:
		close(n.halt)
	}
}

// wishOffLine records whether this node is to take part in a volume.
func (n *Node) wishOffLine(ctx context.Context, v *volumeState, off bool) error {
	if r := n.record(v); r.OffLineOn(n.name) == off {
		return nil
	}
	record, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error { r.SetOffLine(n.name, off); return nil })
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v.record = record
	return nil
}

// unservedHere refuses while an initiator is logged in on this node to a target with LUNs on the volume.
func (n *Node) unservedHere(v *volumeState) error {
	exported := map[string]bool{}
	for _, t := range n.sortedTargets() {
		for _, l := range n.lunsOf(t) {
			exported[t.name] = exported[t.name] || l.unit != nil && l.record.VolumeID == v.id
		}
	}
	for _, s := range n.front.Sessions() {
		if exported[s.Target] {
			return api.Errorf(api.Refused, "%s is logged in to target %s on this node from %s, and its LUNs on volume %s would go", s.Initiator, s.Target, s.Remote, v.name()).
				WithHint("log it out, or give --force: I/O by this node fails then, and goes on by other nodes where the initiator has a path to them")
		}
	}
	return nil
}

// detachVolume takes the LUNs of a volume off line on this node. The caller holds Node.changes.
func (n *Node) detachVolume(ctx context.Context, v *volumeState, reason string) error {
	var errs []error
	for _, t := range n.sortedTargets() {
		for _, l := range n.lunsOf(t) {
			if l.record.VolumeID != v.id {
				continue
			}
			errs = append(errs, n.detach(ctx, t, l))
			n.mu.Lock()
			l.reason = reason
			n.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// lineInterval is how often FollowVolume looks; it only reads memory.
const lineInterval = 250 * time.Millisecond

// FollowVolume implements server.Lines.
func (n *Node) FollowVolume(ctx context.Context, name string, fn func(api.VolumeLine) error) error {
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lineInterval)
	defer tick.Stop()
	var told api.VolumeLine
	for {
		now, known := n.line(v, name)
		if known && now != told {
			if told = now; fn(now) != nil {
				return nil // nobody listens any more
			}
		}
		if told.End != "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-n.halt:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// line is how this node has a volume that was found by name; not known is that of one that comes or goes at this moment.
func (n *Node) line(v *volumeState, name string) (_ api.VolumeLine, known bool) {
	out := api.VolumeLine{Volume: name, Node: n.name, State: api.StateAbsent}
	r := n.record(v)
	switch {
	case n.volumeByID(v.id) != v:
		out.End = "it was ejected"
	case r.Name != name:
		out.End = "it is volume " + r.Name + " now"
	case r.OffLineOn(n.name):
		out.End = offLineHere(name)
	}
	if out.End != "" {
		return out, true
	}
	if !v.use.TryRLock() {
		return out, false
	}
	defer v.use.RUnlock()
	if v.parts == nil {
		out.Reason = v.reason
		return out, true
	}
	out.State, out.Reason = v.parts.state()
	out.Coordinator, out.Epoch = v.coordinator(), v.parts.vol.Status().Epoch
	return out, true
}
