package daemon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
	"lunar/datapath/device"
	"lunar/datapath/layout/protocol"
)

// leaseMargin is for the guard to do its work, and for clocks that run at other rates.
func leaseMargin(ttl time.Duration) time.Duration { return max(250*time.Millisecond, ttl/20) }

// fencing is how the nodes of one volume are kept from writing to it. A node has a place there per
// incarnation of its session. A nil *fencing is that of a node without others.
type fencing struct {
	node    *Node
	options fence.Options
	lun     *device.Reservations // nil: the device has none

	mu     sync.Mutex // guards what follows
	fencer *fence.Fencer
}

// fenceable refuses a device whose nodes could not be fenced, before anything is written to it.
func (n *Node) fenceable(ctx context.Context, r api.AddVolume, path string) error {
	m := n.membership.Load()
	if !m.shared || len(m.others()) == 0 {
		return nil
	}
	f := n.newFencing(cluster.Volume{Name: n.volumeName(r.Name), AllowUnfenced: r.AllowUnfenced}, path)
	f.options.Self.Incarnation = uint32(n.incarnation.Load())
	_, err := fence.Open(ctx, f.options)
	return errors.Join(err, f.close(ctx))
}

// openFencing enters this node among those of the volume, before its first I/O there.
func (n *Node) openFencing(ctx context.Context, r cluster.Volume, path string) (*fencing, error) {
	m := n.membership.Load()
	if !m.shared {
		return nil, nil
	}
	f := n.newFencing(r, path)
	_, err := f.present(ctx)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, fence.ErrUnfenced) && len(m.others()) == 0:
		n.log.Warn("no other node of the cluster will be given this volume", "volume", r.Name, "reason", err)
		return nil, f.close(ctx)
	}
	return nil, errors.Join(err, f.close(ctx))
}

func (n *Node) newFencing(r cluster.Volume, path string) *fencing {
	m := n.membership.Load()
	f := &fencing{node: n, options: fence.Options{
		Volume: r.Name, Device: path, Cluster: n.db.InCluster(), Self: fence.Node{Name: n.name, Number: n.db.Number()},
		Admission: n, Log: n.log, AllowUnfenced: r.AllowUnfenced, Agent: n.fenceAgent,
		Lease: fence.LeaseOptions{TTL: m.ttl, InFlight: n.inFlight, Margin: leaseMargin(m.ttl), Ask: n.askGuard},
	}}
	if lun, err := device.OpenReservations(path); err == nil {
		f.lun, f.options.LUN = lun, lun
	}
	return f
}

// present is the fencer of this node's present incarnation.
func (f *fencing) present(ctx context.Context) (*fence.Fencer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	incarnation := uint32(f.node.incarnation.Load())
	if f.fencer != nil && f.options.Self.Incarnation == incarnation {
		return f.fencer, nil
	}
	f.options.Self.Incarnation = incarnation
	next, err := fence.Open(ctx, f.options)
	if err == nil {
		err = next.Admit(ctx)
	}
	if err != nil {
		return nil, err
	}
	f.fencer = next
	return next, nil
}

func (f *fencing) fence(ctx context.Context, v fence.Victim) (fence.Proof, error) {
	if f == nil {
		return fence.Proof{}, errors.New("the volume is this node's alone")
	}
	fencer, err := f.present(ctx)
	if err != nil {
		return fence.Proof{}, err
	}
	return fencer.Fence(ctx, v)
}

// renew takes this node's place for its present incarnation.
func (f *fencing) renew(ctx context.Context) error {
	if f == nil {
		return nil
	}
	_, err := f.present(ctx)
	return err
}

// describe says in plain words what keeps a node that is out from writing.
func (f *fencing) describe() string {
	if f == nil {
		return "not needed: this node is the only one"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fencer == nil {
		return "none yet"
	}
	return f.fencer.Describe()
}

// close gives this node's right to write up.
func (f *fencing) close(ctx context.Context) (err error) {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fencer != nil {
		err = f.fencer.Leave(ctx)
	}
	if f.lun != nil {
		err = errors.Join(err, f.lun.Close())
	}
	return err
}

// fencedOff is told that the LUN refuses this node's writes: its incarnation is over, unless a path of it only
// came back without its key.
func (n *Node) fencedOff(volumeID string, cause error) {
	n.log.Error("the LUN refuses this node's writes", "volume", volumeID, "error", cause)
	if m := n.membership.Load(); m != nil && m.session != nil {
		m.session.Renew("a LUN refuses this node's writes: it was fenced")
	}
}

// fencePrevious makes sure that who had the volume mounted before cannot write to it. What this node's own
// earlier terms had mounted is gone with their end, or with the process that held the state directory.
func (s *seat) fencePrevious(ctx context.Context, p *parts, t *cluster.Term) error {
	prev := t.Previous
	if prev == nil || prev.Node == s.node.name {
		return nil
	}
	return s.fenceParty(ctx, p, *prev, fmt.Sprintf("node %s did not hand volume %s over", prev.Node, s.name()))
}

// outgoing is the node that was fenced for this term.
func outgoing(t *cluster.Term, self string) (protocol.NodeID, bool) {
	if t.Previous == nil || t.Previous.Node == self {
		return "", false
	}
	return protocol.NodeID(t.Previous.Node), true
}

// fence is the coordinator's: a node that does not answer recalls.
func (s *seat) fence(ctx context.Context, p *parts, node string) error {
	incarnation, err := s.node.db.LastIncarnation(ctx, node)
	if err != nil {
		return err
	}
	return s.fenceParty(ctx, p, cluster.Party{Node: node, Incarnation: incarnation}, "it does not give volume "+s.name()+"'s layouts back")
}

// fenceParty evicts an incarnation of a node, and proves that it cannot write to this volume any more.
func (s *seat) fenceParty(ctx context.Context, p *parts, who cluster.Party, why string) error {
	m := s.node.membership.Load()
	left, err := m.elections.Suspect(ctx, who.Node, who.Incarnation, why)
	if err != nil {
		return fmt.Errorf("evict node %s: %w", who.Node, err)
	}
	evicted := time.Now()
	victim := fence.Victim{
		Node:   fence.Node{Name: who.Node, Number: s.node.numberOf(who.Node), Incarnation: uint32(who.Incarnation)},
		Silent: m.ttl - left,
	}
	proof, err := p.fencer.fence(ctx, victim)
	s.node.tallies.fencing(proof.Took, err)
	if err != nil {
		return fmt.Errorf("fence node %s: %w", who.Node, err)
	}
	if proof.Method == fence.Reservations {
		// Its writes are refused; until its deadline it may still answer reads by layouts of old.
		if err := pause(ctx, left-time.Since(evicted)); err != nil {
			return err
		}
	}
	s.note(ctx, "node.fenced", 0, fmt.Sprintf("node %s was fenced from volume %s: %s; by %s, within %v (%s)",
		who.Node, s.name(), why, proof.Method, proof.Took.Round(time.Millisecond), strings.ReplaceAll(proof.Detail, "\n", "; ")))
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attend has the members fenced that are present no more while this node coordinates: what they held is
// awaited by every change.
func (s *seat) attend(view *cluster.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here == nil || s.here.why != "" || s.here.finished {
		return
	}
	for _, o := range s.node.membership.Load().others() {
		if _, present := view.Nodes[o.Name]; present || s.here.absent[o.Name] {
			continue
		}
		here := s.here
		here.absent[o.Name] = true
		here.tasks.Go(func() { s.expel(here, o.Name) })
	}
}

// expel fences a member that is absent, and counts it out of the term, unless it came back meanwhile: then it
// says itself what it holds.
func (s *seat) expel(here *tenure, node string) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(here.absent, node)
	}()
	p, release := s.v.borrow()
	if p == nil {
		return
	}
	defer release()
	gone, err := s.fenceAbsent(here.ctx, p, node)
	switch {
	case err != nil && here.ctx.Err() == nil:
		s.log.Error("an absent node was not fenced", "node", node, "error", err)
	case gone:
		here.coord.Expel(protocol.NodeID(node))
	}
	_ = pause(here.ctx, absentAgain) // once in a while, and not at each change of the view
}

// fenceAbsent tells whether the node is out: its last incarnation is fenced, and there is no other one.
func (s *seat) fenceAbsent(ctx context.Context, p *parts, node string) (gone bool, err error) {
	m := s.node.membership.Load()
	last, err := s.node.db.LastIncarnation(ctx, node) // before the view, which would tell a later one
	if err != nil {
		return false, err
	}
	if present, err := m.present(ctx, node); err != nil || present {
		return false, err
	}
	if last > 0 {
		err = s.fenceParty(ctx, p, cluster.Party{Node: node, Incarnation: last}, "it is not present")
	}
	if err != nil {
		return false, err
	}
	present, err := m.present(ctx, node)
	return !present, err
}

// present asks the database.
func (m *membership) present(ctx context.Context, node string) (bool, error) {
	view, err := m.elections.View(ctx)
	if err != nil {
		return false, err
	}
	_, ok := view.Nodes[node]
	return ok, nil
}

// absentAgain is how long an absent node is left alone after it was fenced, or could not be.
const absentAgain = 5 * time.Second

// suspect evicts an incarnation of a node whose process is gone for certain: its machine refuses connections.
func (n *Node) suspect(node string, incarnation uint64) {
	m := n.membership.Load()
	if m == nil || m.elections == nil || m.view.Load().Nodes[node].Incarnation != incarnation {
		return
	}
	m.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
		defer cancel()
		if _, err := m.elections.Suspect(ctx, node, incarnation, "its machine refuses connections: lunard has ended"); err != nil {
			n.log.Warn("a node was not evicted", "node", node, "error", err)
		}
	})
}

// holders are the other nodes that may hold layouts of older terms.
func (n *Node) holders() []protocol.NodeID {
	var out []protocol.NodeID
	for _, o := range n.membership.Load().others() {
		out = append(out, protocol.NodeID(o.Name))
	}
	return out
}

// guardProcess is nil where no other node could take this one's volumes.
func (n *Node) guardProcess() *guard.Guard {
	if m := n.membership.Load(); m != nil && !m.unguarded.Load() {
		return m.guard.Load()
	}
	return nil
}

func (n *Node) numberOf(node string) uint16 {
	for _, o := range *n.membership.Load().members.Load() {
		if o.Name == node {
			return o.Number
		}
	}
	return 0
}

func (n *Node) addressOf(node string) (string, bool) {
	for _, o := range *n.membership.Load().members.Load() {
		if o.Name == node {
			return o.Address, true
		}
	}
	return "", false
}

// Admitted implements fence.Admission: what the database says now.
func (n *Node) Admitted(ctx context.Context, who fence.Node) (bool, error) {
	view, err := n.membership.Load().elections.View(ctx)
	if err != nil {
		return false, err
	}
	present, ok := view.Nodes[who.Name]
	return ok && present.Incarnation&math.MaxUint32 == uint64(who.Incarnation), nil
}
