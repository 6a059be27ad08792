package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/fence"
	"lunar/datapath/layout/protocol"
)

// The bounds of orders about nodes.
const (
	nodeDrainLimit = 2 * time.Minute // for a node's volumes to be others'
	evictWait      = time.Minute     // for a node's volumes to have another coordinator
	nodePoll       = 50 * time.Millisecond
)

// Nodes implements server.Nodes.
func (n *Node) Nodes(ctx context.Context) ([]api.Node, error) {
	c, err := n.Cluster(ctx)
	if err == nil && len(c.Nodes) == 0 {
		err = api.Errorf(api.Unavailable, "the members are not known: %s", c.Reason)
	}
	return c.Nodes, err
}

// describeNodes joins what the members' list, the database and the elections know.
func (n *Node) describeNodes(st *cluster.Status, view *cluster.View) []api.Node {
	members := st.Members
	if st.ID == "" {
		members = []cluster.MemberStatus{n.alone()}
	}
	out := make([]api.Node, len(members))
	for i := range members {
		m := &members[i]
		p, present := view.Nodes[m.Name]
		out[i] = api.Node{
			Name: m.Name, Number: m.Number, Role: m.Role, Vote: string(m.Part), Leader: m.Name == st.Leader, Address: m.Address,
			Portals: p.Portals, Answers: m.Alive, Present: present, Incarnation: p.Incarnation, Draining: p.Draining,
			Coordinates: p.Coordinates, Joined: m.Joined,
		}
		out[i].State = nodeState(m, &out[i])
	}
	return out
}

func nodeState(m *cluster.MemberStatus, n *api.Node) api.NodeState {
	switch {
	case m.Leaving:
		return api.NodeLeaving
	case !n.Present && m.Witness() && n.Answers:
		return api.NodeUp
	case !n.Present:
		return api.NodeDown
	case n.Draining && n.Coordinates > 0:
		return api.NodeDraining
	case n.Draining:
		return api.NodeDrained
	case !n.Answers:
		return api.NodeSilent
	}
	return api.NodeUp
}

// Node implements server.Nodes.
func (n *Node) Node(ctx context.Context, name string) (api.NodeDetail, error) {
	all, err := n.Nodes(ctx)
	if err != nil {
		return api.NodeDetail{}, err
	}
	i := slices.IndexFunc(all, func(m api.Node) bool { return m.Name == name })
	if i < 0 {
		return api.NodeDetail{}, noNode(name)
	}
	out, view := api.NodeDetail{Node: all[i], Volumes: []api.NodePath{}}, n.lastView(ctx)
	for _, v := range n.sortedVolumes() {
		r := n.record(v)
		c := view.Seats[r.ID].Coordinator
		out.Volumes = append(out.Volumes, api.NodePath{
			Volume: r.Name, Path: view.Nodes[name].Paths[r.ID], Coordinates: c != nil && c.Node == name,
		})
	}
	return out, nil
}

func noNode(name string) error {
	return api.Errorf(api.NotFound, "there is no node %q", name).WithHint("`lunarctl node list` shows the nodes")
}

// member finds another or this node in the cluster's database.
func (n *Node) member(ctx context.Context, name string) (cluster.Member, error) {
	if n.db.InCluster() == "" {
		return cluster.Member{}, refusal(fmt.Errorf("node %s: %w", name, cluster.ErrAlone))
	}
	m, err := n.db.Member(ctx, name)
	if errors.Is(err, cluster.ErrNotFound) {
		return m, noNode(name)
	}
	return m, refusal(err)
}

// DrainNode implements server.Nodes: it returns when the node's volumes are others', but for those that no
// other node can take. It goes on by itself after its bound.
func (n *Node) DrainNode(ctx context.Context, name string) (api.Drained, error) {
	out := api.Drained{Node: name, Moved: []string{}}
	if _, err := n.member(ctx, name); err != nil {
		return out, err
	}
	e, err := n.elections(ctx)
	if err != nil {
		return out, err
	}
	before, err := e.View(ctx)
	if err == nil {
		err = e.Drain(ctx, name)
	}
	if err != nil {
		return out, refusal(err)
	}
	defer n.jobs.end(n.jobs.begin("node.drain", name, 0))
	after, err := n.awaitDrained(ctx, e, name)
	if err != nil {
		return out, err
	}
	for id, s := range before.Seats {
		if s.Coordinator == nil || s.Coordinator.Node != name {
			continue
		}
		if c := after.Seats[id].Coordinator; c != nil && c.Node == name {
			out.Stay = append(out.Stay, n.nameOf(id))
		} else {
			out.Moved = append(out.Moved, n.nameOf(id))
		}
	}
	slices.Sort(out.Stay)
	slices.Sort(out.Moved)
	n.note(ctx, cluster.Event{Kind: "node.drain", Text: fmt.Sprintf("node %s is drained: %d volumes moved, %d stay because no other node can take them", name, len(out.Moved), len(out.Stay))})
	return out, nil
}

func (n *Node) awaitDrained(ctx context.Context, e *cluster.Coordinators, name string) (*cluster.View, error) {
	view, err := awaitView(ctx, e, nodeDrainLimit, func(view *cluster.View) bool {
		moving := slices.DeleteFunc(seatsOf(view, name), func(id string) bool { return !othersCan(view, id, name) })
		return len(moving) == 0 && settled(view)
	})
	if isLate(err) {
		return nil, api.Errorf(api.Busy, "node %s still coordinates %d volumes; they go on moving", name, len(seatsOf(view, name))).
			WithHint("`lunarctl node show %s` tells how far it is; `lunarctl node resume %s` calls it off", name, name)
	}
	return view, refusal(err)
}

// seatsOf lists the volumes that a node coordinates.
func seatsOf(v *cluster.View, node string) []string {
	var out []string
	for id, s := range v.Seats {
		if s.Coordinator != nil && s.Coordinator.Node == node {
			out = append(out, id)
		}
	}
	return out
}

// settled tells that no volume is on its way: each that a node can take has a coordinator which serves.
func settled(v *cluster.View) bool {
	for id, s := range v.Seats {
		if len(v.Rank(id)) > 0 && (s.Coordinator == nil || s.Coordinator.State != cluster.StateOpen) {
			return false
		}
	}
	return true
}

func othersCan(v *cluster.View, volumeID, node string) bool {
	return slices.ContainsFunc(v.Rank(volumeID), func(o string) bool { return o != node && !v.Nodes[o].Draining })
}

func (n *Node) nameOf(volumeID string) string {
	if v := n.volumeByID(volumeID); v != nil {
		return n.record(v).Name
	}
	return volumeID
}

// ResumeNode implements server.Nodes.
func (n *Node) ResumeNode(ctx context.Context, name string) error {
	if _, err := n.member(ctx, name); err != nil {
		return err
	}
	e, err := n.elections(ctx)
	if err == nil {
		err = e.Resume(ctx, name)
	}
	if err != nil {
		return refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "node.resume", Text: fmt.Sprintf("node %s may coordinate volumes again", name)})
	return nil
}

// EvictNode implements server.Nodes: the node is fenced from every volume before it is cut off the cluster, and
// once more after it, since a living one may have come back meanwhile.
func (n *Node) EvictNode(ctx context.Context, name string, force bool) (api.Evicted, error) {
	out := api.Evicted{Node: name, Fenced: []string{}}
	m, err := n.member(ctx, name)
	if err != nil {
		return out, err
	}
	if err := n.mayEvict(ctx, name, force); err != nil {
		return out, err
	}
	defer n.jobs.end(n.jobs.begin("node.evict", name, 0))
	first, err := n.incarnationOf(ctx, name)
	if err != nil {
		return out, refusal(err)
	}
	proofs, unproven, err := n.fenceOff(ctx, fenceOrder{Node: name, Number: m.Number, Incarnation: first})
	if err != nil {
		return out, refusal(err)
	}
	if len(unproven) > 0 && !force {
		return out, api.Errorf(api.Refused, "node %s is not evicted: %s", name, unproven[0]).
			WithHint("make sure that it is switched off, then give --force: a node that still writes would destroy data")
	}
	if err := n.db.Evict(ctx, name); err != nil {
		return out, refusal(err)
	}
	ctx = context.WithoutCancel(ctx)
	last, err := n.incarnationOf(ctx, name)
	if err == nil && last != first {
		var notes []string
		proofs, notes, err = n.fenceOff(ctx, fenceOrder{Node: name, Number: m.Number, Incarnation: last})
		unproven = append(unproven, notes...)
	}
	if err != nil {
		unproven = append(unproven, "it may have come back meanwhile: "+err.Error())
	}
	for id, proof := range proofs {
		out.Fenced = append(out.Fenced, n.nameOf(id)+": "+proof)
	}
	slices.Sort(out.Fenced)
	out.Notes = unproven
	n.note(ctx, cluster.Event{Kind: "node.evict", Text: fmt.Sprintf("node %s was evicted, fenced from %d volumes", name, len(out.Fenced))})
	return out, nil
}

func (n *Node) mayEvict(ctx context.Context, name string, force bool) error {
	if name == n.name {
		return api.Errorf(api.Invalid, "%s is the node that was asked", name).WithHint("use `lunarctl cluster leave` there")
	}
	all, err := n.Nodes(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if m := &all[i]; m.Name == name && (m.Answers || m.Present) && !force {
			return api.Errorf(api.Refused, "node %s is alive", name).
				WithHint("let it leave in order: `lunarctl cluster leave` there; `--force` fences it: the I/O of its initiators fails")
		}
	}
	return nil
}

func (n *Node) incarnationOf(ctx context.Context, name string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	return n.db.LastIncarnation(ctx, name)
}

// fenceOff takes a node's seats away and has it fenced from every volume by the volume's coordinator. It says
// in sentences of which volumes that is not proven.
func (n *Node) fenceOff(ctx context.Context, o fenceOrder) (proofs map[string]string, unproven []string, err error) {
	if o.Incarnation == 0 {
		return nil, nil, nil // it never reached a volume
	}
	e, err := n.elections(ctx)
	if err != nil {
		return nil, nil, err
	}
	left, err := e.Suspect(ctx, o.Node, o.Incarnation, "it is evicted by order")
	if err != nil {
		return nil, nil, err
	}
	evicted := time.Now()
	if err := n.awaitOthers(ctx, e, o.Node); err != nil {
		unproven = append(unproven, err.Error())
	}
	o.Spent = cluster.MaxTTL - left + time.Since(evicted)
	answer, notes := n.fenceEverywhere(ctx, o)
	unproven = append(unproven, notes...)
	for id, why := range answer.Failed {
		unproven = append(unproven, n.notFenced(id, why))
	}
	for _, v := range n.sortedVolumes() {
		_, failed := answer.Failed[v.id]
		if _, proven := answer.Proofs[v.id]; !proven && !failed {
			unproven = append(unproven, fmt.Sprintf("it is not fenced from volume %s, which no node coordinates now", n.record(v).Name))
		}
	}
	return answer.Proofs, unproven, nil
}

func (n *Node) notFenced(volumeID, why string) string {
	return fmt.Sprintf("it is not fenced from volume %s: %s", n.nameOf(volumeID), why)
}

// awaitOthers returns when every volume that some node can take is coordinated by another one than name.
func (n *Node) awaitOthers(ctx context.Context, e *cluster.Coordinators, name string) error {
	ctx, cancel := context.WithTimeout(ctx, evictWait)
	defer cancel()
	tick := time.NewTicker(nodePoll)
	defer tick.Stop()
	for {
		view, err := e.View(ctx)
		if err == nil && len(seatsOf(view, name)) == 0 && settled(view) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("the volumes that it coordinated have no other coordinator yet; see `lunarctl volume list`")
		}
	}
}

// fenceEverywhere has every node that lives fence another one; notes tell which did not answer.
func (n *Node) fenceEverywhere(ctx context.Context, o fenceOrder) (all fenceAnswer, notes []string) {
	ctx, cancel := context.WithTimeout(ctx, fenceLimit)
	defer cancel()
	view := n.lastView(ctx)
	all = n.fenceHere(ctx, o)
	others := slices.DeleteFunc(n.peers(), func(m cluster.Member) bool { return m.Name == o.Node })
	for _, h := range askPeers[fenceAnswer](ctx, n, others, fenceLimit, http.MethodPost, pathFence, o) {
		if _, present := view.Nodes[h.peer.Name]; h.err != nil && present {
			notes = append(notes, fmt.Sprintf("node %s does not say whether it fenced it: %v", h.peer.Name, h.err))
		}
		for id, proof := range h.value.Proofs {
			all.Proofs[id] = proof
		}
		for id, why := range h.value.Failed {
			all.Failed[id] = cmp.Or(all.Failed[id], why)
		}
	}
	return all, notes
}

// fenceOut fences a node from the seat's volume, and has the coordinator forget its layouts.
func (s *seat) fenceOut(ctx context.Context, o fenceOrder) (fence.Proof, error) {
	p, release := s.v.borrow()
	if p == nil {
		return fence.Proof{}, errors.New(s.v.why())
	}
	defer release()
	if p.fencer == nil {
		return fence.Proof{Method: "none needed", Detail: "no other node was ever given the volume"}, nil
	}
	proof, err := p.fencer.fence(ctx, o.victim(s.node.membership.Load().ttl))
	s.node.tallies.fencing(proof.Took, err)
	if err != nil {
		return proof, err
	}
	if c := s.coordinator(0); c != nil {
		c.Expel(protocol.NodeID(o.Node))
	}
	return proof, nil
}
