package daemon

import (
	"context"
	"maps"
	"time"

	"lunar/appliance/api"
	"lunar/datapath/volume"
	"lunar/iscsi/scsi"
)

// lookInterval is how often keepWatch looks, and every how many looks it asks the coordinators for the space that is
// left.
const (
	lookInterval = time.Second
	looksPerAsk  = 5
)

// keepWatch tells initiators what changes by itself, until ctx ends: a volume that fills up, and how
// this node reaches it.
func (n *Node) keepWatch(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for looks := 0; ; {
		select {
		case <-tick.C:
			n.look(ctx, looks%looksPerAsk == 0)
			looks++
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) look(ctx context.Context, space bool) {
	n.lookAtVolumes(ctx, space)
	for _, u := range n.exportedUnits() {
		u.lu.CheckSpace()
		u.checkSize()
	}
	n.followStates()
	n.tellStates(ctx)
}

// lookAtVolumes reads what each volume has left, which images answer from memory, and whether its device
// still has its size.
func (n *Node) lookAtVolumes(ctx context.Context, space bool) {
	for _, v := range n.sortedVolumes() {
		p, release := v.tryBorrow()
		if p == nil {
			continue
		}
		if space {
			p.askSpace(ctx, lookInterval) // a failure shows in the volume's state
		}
		n.publishPath(v, p)
		if s := v.seat.Load(); s != nil {
			s.heed(n.holdsOf(v.id)) // also what a volume that came or went at that moment has missed
		}
		if p.checkSize() {
			_, reason := p.state()
			n.log.Error("the size of a volume's device has changed", "volume", n.record(v).Name, "device", p.dev.Path, "reason", reason)
		}
		release()
	}
}

// publishPath tells the cluster whether this node reaches the volume's LUN. A path that was lost counts
// when both ends of the device can be read.
func (n *Node) publishPath(v *volumeState, p *parts) {
	lost := p.vol.Status().Reason&volume.NoDiskConnectivity != 0
	if !lost && v.pathLost.Load() && !p.readable() {
		lost = true
	}
	v.pathLost.Store(lost)
	if m := n.membership.Load(); m != nil && m.session != nil && v.seat.Load() != nil {
		m.session.SetPath(v.id, !lost)
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

// accessStates is ALUA's word for each state of a volume. Paused lasts for moments, and is none of a path. So does
// Unavailable while another coordinator is chosen: I/O waits for that one, and is not refused; see access.
var accessStates = map[api.State]scsi.AccessState{
	api.Direct: scsi.ActiveOptimized, api.Paused: scsi.ActiveOptimized,
	api.Redirected: scsi.ActiveNonOptimized, api.StateAbsent: scsi.ActiveNonOptimized,
}

// absentLimit is how long a volume may have neither path nor coordinator before initiators are sent away: longer
// than a failover takes without a guard that answers.
const absentLimit = 10 * time.Second

// access is the access state of the volume's units on this node.
func (v *volumeState) access(state api.State, now time.Time) scsi.AccessState {
	if state != api.StateAbsent {
		v.absentSince.Store(nil)
		return accessStates[state]
	}
	v.absentSince.CompareAndSwap(nil, &now)
	if since := v.absentSince.Load(); since != nil && now.Sub(*since) >= absentLimit {
		return scsi.Unavailable
	}
	return accessStates[state]
}

// followStates sets each unit's asymmetric access state by that of its volume on this node.
func (n *Node) followStates() {
	n.following.Lock()
	defer n.following.Unlock()
	states := n.volumeStates()
	for key, u := range n.unitsByKey() {
		state, known := states[key.volumeID]
		if !known {
			continue
		}
		if err := u.lu.SetPortGroups(n.groupsFor(key.volumeID, state)); err != nil {
			n.log.Error("the access state was not set", "image", key.path, "error", err)
		}
	}
}

func (n *Node) unitsByKey() map[unitKey]*unit {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return maps.Clone(n.units)
}

// volumeStates leaves out a volume that comes or goes at this moment: it is looked at the next time.
func (n *Node) volumeStates() map[string]scsi.AccessState {
	out := map[string]scsi.AccessState{}
	for _, v := range n.sortedVolumes() {
		if p, release := v.tryBorrow(); p != nil {
			state, _ := p.state()
			out[v.id] = v.access(state, time.Now())
			release()
		}
	}
	return out
}

// portGroups is the one target port group of a node: its number is also that of its target port.
func portGroups(number uint16, state scsi.AccessState) []scsi.PortGroup {
	return []scsi.PortGroup{{ID: number, State: state, Ports: []uint16{number}}}
}
