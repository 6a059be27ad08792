package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/iscsi"
	"lunar/iscsi/scsi"
)

// duties brings the news of elections to the volumes' seats.
func (m *membership) duties() cluster.Duties {
	n := m.node
	return cluster.Duties{
		Won: func(t *cluster.Term) {
			if s := n.seatOf(t.Volume); s != nil {
				s.elected(t)
				return
			}
			m.tasks.Go(func() { // the volume went off line meanwhile
				ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
				defer cancel()
				if err := t.Release(ctx, ""); err != nil {
					n.log.Warn("a seat was not given back", "volume", t.Volume, "error", err)
				}
			})
		},
		Leave: func(t *cluster.Term, next, reason string) {
			if s := n.seatOf(t.Volume); s != nil {
				s.leave(t, next, reason)
			}
		},
		Over: func(t *cluster.Term, reason string) {
			if s := n.seatOf(t.Volume); s != nil {
				s.over(t, reason)
			}
		},
		Changed: m.viewChanged,
	}
}

func (m *membership) viewChanged(v *cluster.View) {
	m.view.Store(v)
	for id, seen := range v.Seats {
		if s := m.node.seatOf(id); s != nil {
			s.saw(seen)
			s.attend(v)
		}
	}
	m.heedHolds(v)
	m.node.tellPeers()
	m.node.followStates()
}

// viewPoll is between the looks of awaitView.
const viewPoll = 20 * time.Millisecond

// viewLate is the context's error when the elections did not come to what awaitView waits for.
type viewLate struct{ error }

func (l viewLate) Unwrap() error { return l.error }

func isLate(err error) bool {
	var late viewLate
	return errors.As(err, &late)
}

// awaitView looks at the elections until done has what it wants, for limit. The view is the last one that done saw.
func awaitView(ctx context.Context, e *cluster.Coordinators, limit time.Duration, done func(*cluster.View) bool) (*cluster.View, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(viewPoll)
	defer tick.Stop()
	for {
		view, err := e.View(ctx)
		if err != nil || done(view) {
			return view, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return view, viewLate{ctx.Err()}
		}
	}
}

// seatOf is nil while the volume is off line here: then this node says that it has no path, and wins nothing.
func (n *Node) seatOf(volumeID string) *seat {
	v := n.volumeByID(volumeID)
	if v == nil {
		return nil
	}
	return v.seat.Load()
}

// noPath says that this node cannot coordinate the volume before its path is back; keepWatch says when.
func (n *Node) noPath(v *volumeState) {
	v.pathLost.Store(true)
	if m := n.membership.Load(); m != nil && m.session != nil {
		m.session.SetPath(v.id, false)
	}
}

func (n *Node) forgetPath(volumeID string) {
	if m := n.membership.Load(); m != nil && m.session != nil {
		m.session.ForgetPath(volumeID)
	}
}

// tellPeers tells initiators the portals of the other nodes.
func (n *Node) tellPeers() {
	m := n.membership.Load()
	if m == nil || !m.shared {
		return
	}
	view := m.view.Load()
	var peers []iscsi.Peer
	for _, o := range m.others() {
		for _, address := range view.Nodes[o.Name].Portals {
			peers = append(peers, iscsi.Peer{Address: address, Group: o.Number})
		}
	}
	n.front.SetPeers(peers)
}

// groupsFor is the target port groups of a volume's units, one per node: own is this node's state.
func (n *Node) groupsFor(volumeID string, own scsi.AccessState) []scsi.PortGroup {
	m := n.membership.Load()
	if m == nil || !m.shared {
		return portGroups(iscsi.DefaultGroup, own)
	}
	groups := portGroups(n.db.Number(), own)
	view := m.view.Load()
	for _, o := range m.others() {
		groups = append(groups, portGroups(o.Number, n.stateElsewhere(view, volumeID, o.Name))...)
	}
	slices.SortFunc(groups, func(a, b scsi.PortGroup) int { return int(a.ID) - int(b.ID) })
	return groups
}

// stateElsewhere is how another node reaches a volume, as far as the cluster knows.
func (n *Node) stateElsewhere(view *cluster.View, volumeID, node string) scsi.AccessState {
	present, ok := view.Nodes[node]
	reached, known := present.Paths[volumeID]
	v := n.volumeByID(volumeID)
	switch {
	case !ok || !known:
		return scsi.Unavailable
	case !reached:
		return scsi.ActiveNonOptimized
	case v != nil:
		if r := n.record(v); r.RedirectedOn(node) || redirects(view.Holds[volumeID]) != 0 {
			return scsi.ActiveNonOptimized
		}
	}
	return scsi.ActiveOptimized
}

// MoveVolume implements server.Volumes: it returns when the next coordinator serves.
func (n *Node) MoveVolume(ctx context.Context, name, to string) (api.MovedVolume, error) {
	v, err := n.volume(name)
	if err != nil {
		return api.MovedVolume{}, err
	}
	e, err := n.elections(ctx)
	if err != nil {
		return api.MovedVolume{}, err
	}
	after, err := e.Move(ctx, v.id, to)
	if err != nil {
		return api.MovedVolume{}, refusal(err)
	}
	seat, err := e.Await(ctx, v.id, after)
	if err != nil {
		return api.MovedVolume{}, refusal(err)
	}
	where := strings.TrimSpace(to)
	if seat.Coordinator != nil {
		where = seat.Coordinator.Node
	}
	n.note(ctx, cluster.Event{Kind: "volume.move", Volume: name, Epoch: seat.Epoch, Text: fmt.Sprintf("volume %s was moved to node %s by order", name, where)})
	return api.MovedVolume{Volume: name, Node: where, Epoch: seat.Epoch}, nil
}
