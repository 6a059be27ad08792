package daemon

import (
	"context"
	"time"

	"lunar/appliance/api"
	"lunar/iscsi"
	"lunar/iscsi/scsi"
)

// lookInterval is how often keepWatch looks.
const lookInterval = time.Second

// keepWatch tells initiators what changes by itself, until ctx ends: a volume that fills up, and how
// this node reaches it.
func (n *Node) keepWatch(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) look(ctx context.Context) {
	n.lookAtVolumes(ctx)
	for _, u := range n.exportedUnits() {
		u.lu.CheckSpace()
	}
	n.followStates()
}

// lookAtVolumes reads what each volume has left, which images answer from memory, and whether its device
// still has its size.
func (n *Node) lookAtVolumes(ctx context.Context) {
	for _, v := range n.sortedVolumes() {
		p, release := v.tryBorrow()
		if p == nil {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, lookInterval)
		_, _ = p.vol.Space(limited) // a failure shows in the volume's state
		cancel()
		if p.checkSize() {
			_, reason := p.state()
			n.log.Error("the size of a volume's device has changed", "volume", n.record(v).Name, "device", p.dev.Path, "reason", reason)
		}
		release()
	}
}

func (n *Node) exportedUnits() []*unit {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make([]*unit, 0, len(n.units))
	for _, u := range n.units {
		out = append(out, u)
	}
	return out
}

// accessStates is ALUA's word for each state of a volume. Paused lasts for moments, and is none of a path.
var accessStates = map[api.State]scsi.AccessState{
	api.Direct: scsi.ActiveOptimized, api.Paused: scsi.ActiveOptimized,
	api.Redirected: scsi.ActiveNonOptimized, api.StateAbsent: scsi.Unavailable,
}

// followStates sets each target's asymmetric access state by that of its volumes on this node.
func (n *Node) followStates() {
	n.following.Lock()
	defer n.following.Unlock()
	states := n.volumeStates()
	for t, next := range n.targetStates(states) {
		if t.access == next {
			continue
		}
		if err := t.scsi.SetPortGroups(portGroups(next)); err != nil {
			n.log.Error("the access state was not set", "target", t.name, "error", err)
			continue
		}
		t.access = next
	}
}

// volumeStates leaves out a volume that comes or goes at this moment: it is looked at the next time.
func (n *Node) volumeStates() map[string]scsi.AccessState {
	out := map[string]scsi.AccessState{}
	for _, v := range n.sortedVolumes() {
		if p, release := v.tryBorrow(); p != nil {
			state, _ := p.state()
			out[v.record.ID] = accessStates[state]
			release()
		}
	}
	return out
}

// targetStates joins the states of each target's volumes. A target has one access state for all its
// LUNs, so one of them that is unavailable must not stop the others: it counts as non-optimized.
func (n *Node) targetStates(volumes map[string]scsi.AccessState) map[*target]scsi.AccessState {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make(map[*target]scsi.AccessState, len(n.targets))
	for _, t := range n.targets {
		var seen []scsi.AccessState
		for _, l := range t.luns {
			if state, known := volumes[l.record.VolumeID]; known && l.unit != nil {
				seen = append(seen, state)
			}
		}
		out[t] = joinStates(seen)
	}
	return out
}

// joinStates is optimized when all are, unavailable when all are, and non-optimized between.
func joinStates(states []scsi.AccessState) scsi.AccessState {
	count := map[scsi.AccessState]int{}
	for _, s := range states {
		count[s]++
	}
	switch len(states) {
	case count[scsi.ActiveOptimized]:
		return scsi.ActiveOptimized
	case count[scsi.Unavailable]:
		return scsi.Unavailable
	}
	return scsi.ActiveNonOptimized
}

// portGroups is the one target port group of this node.
func portGroups(state scsi.AccessState) []scsi.PortGroup {
	return []scsi.PortGroup{{ID: iscsi.DefaultGroup, State: state, Ports: []uint16{iscsi.DefaultGroup}}}
}
