package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
)

// Cluster implements server.Cluster. A database that does not answer gives what is known without it.
func (n *Node) Cluster(ctx context.Context) (api.Cluster, error) {
	st, err := n.db.Status(ctx)
	if err != nil && !errors.Is(err, cluster.ErrUnavailable) {
		return api.Cluster{}, refusal(err)
	}
	out := api.Cluster{
		ID: st.ID, Node: st.Node, Address: st.Address, Leader: st.Leader, Voters: st.Voters, Living: st.Living,
		Full: st.Full, Advice: st.Advice, Nodes: n.describeNodes(&st, n.lastView(ctx)),
	}
	if err != nil {
		out.Reason = err.Error()
		out.Advice = append(out.Advice, "Start the other nodes: the database needs most of its voters. If they are lost for good, `lunarctl cluster restore` begins anew from a saved file.")
	}
	if n.evicted() {
		out.Reason = "this node was evicted from the cluster"
		out.Advice = []string{evictedAdvice}
	}
	return out, nil
}

const evictedAdvice = "`lunarctl cluster leave --force` makes it a node of its own, which can join anew."

func (n *Node) evicted() bool {
	select {
	case <-n.db.Evicted():
		return true
	default:
		return false
	}
}

// lastView is the present state of coordination, or the last one that was seen.
func (n *Node) lastView(ctx context.Context) *cluster.View {
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	if e, err := n.elections(ctx); err == nil {
		if v, err := e.View(ctx); err == nil {
			return v
		}
	}
	if m := n.membership.Load(); m != nil {
		return m.view.Load()
	}
	return &cluster.View{}
}

// elections waits while this node's part in the cluster changes.
func (n *Node) elections(ctx context.Context) (*cluster.Coordinators, error) {
	if m := n.membership.Load(); m != nil {
		select {
		case <-m.ready:
			return m.elections, nil
		case <-ctx.Done():
		}
	}
	return nil, api.Errorf(api.Unavailable, "this node's part in the cluster is changing").
		WithHint("try again; if it lasts, restart lunard")
}

// present refuses what needs a part in the cluster, also in one of its own, while there is none.
func (n *Node) present() error {
	select {
	case <-n.membership.Load().ready:
		return nil
	default:
		return api.Errorf(api.Unavailable, "this node takes no part in the cluster now").WithHint("restart lunard")
	}
}

// InitCluster implements server.Cluster. Volumes, targets and their LUNs stay.
func (n *Node) InitCluster(ctx context.Context) (api.Cluster, error) {
	end, err := n.begin(ctx)
	if err != nil {
		return api.Cluster{}, err
	}
	defer end()
	if err := n.mayEnter("cluster init"); err != nil {
		return api.Cluster{}, err
	}
	if err := n.switchCluster(ctx, n.detachTargets, n.db.Init); err != nil {
		return api.Cluster{}, refusal(err)
	}
	return n.Cluster(ctx)
}

// JoinCluster implements server.Cluster.
func (n *Node) JoinCluster(ctx context.Context, r api.Join) (api.Cluster, error) {
	end, err := n.begin(ctx)
	if err != nil {
		return api.Cluster{}, err
	}
	defer end()
	if err := n.mayEnter("cluster join"); err != nil {
		return api.Cluster{}, err
	}
	err = n.switchCluster(ctx, n.detachTargets, func(ctx context.Context) error { return n.db.Join(ctx, r.Address, r.Token) })
	if err != nil {
		return api.Cluster{}, refusal(err)
	}
	return n.Cluster(ctx)
}

// mayEnter refuses before anything is taken off line.
func (n *Node) mayEnter(what string) error {
	if n.db.InCluster() != "" {
		return refusal(fmt.Errorf("%s: %w", what, cluster.ErrMember))
	}
	return n.noInitiators(what)
}

// noInitiators refuses while I/O would fail. The caller holds Node.changes; who logs in later finds no LUN
// for a moment.
func (n *Node) noInitiators(what string) error {
	for _, s := range n.front.Sessions() {
		if s.Target != "" {
			return api.Errorf(api.Busy, "%s takes this node's LUNs off line for a moment, and %s is logged in to target %s from %s", what, s.Initiator, s.Target, s.Remote).
				WithHint("log the initiators of this node out first; `lunarctl session list` shows them")
		}
	}
	return nil
}

// LeaveCluster implements server.Cluster: the other nodes keep the cluster's volumes and targets.
func (n *Node) LeaveCluster(ctx context.Context, r api.Leave) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	id := n.db.InCluster()
	if id == "" {
		return refusal(fmt.Errorf("cluster leave: %w", cluster.ErrAlone))
	}
	if err := n.mayLeave(ctx); err != nil && !r.Force {
		return err
	}
	err = n.switchCluster(ctx, n.withdrawTargets, func(ctx context.Context) error { return n.db.Leave(ctx, r.Force) })
	if err != nil {
		return refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "cluster.leave", Text: fmt.Sprintf("node %s left cluster %s", n.name, id)})
	return nil
}

// mayLeave refuses before anything is taken off line.
func (n *Node) mayLeave(ctx context.Context) error {
	members, err := n.db.Members(ctx)
	if err != nil {
		return refusal(err)
	}
	if len(members) < 2 {
		return api.Errorf(api.Busy, "this is the last node: leaving ends the cluster and its database").
			WithHint("save it with `lunarctl cluster save`, then give --force")
	}
	return n.noInitiators("cluster leave")
}

// NewToken implements server.Cluster.
func (n *Node) NewToken(ctx context.Context, r api.NewToken) (api.Token, error) {
	life := time.Duration(r.Seconds) * time.Second
	if r.Seconds < 0 || life/time.Second != time.Duration(r.Seconds) {
		return api.Token{}, api.Errorf(api.Invalid, "a token's life of %d s makes no sense", r.Seconds)
	}
	token, err := n.db.NewToken(ctx, life)
	if err != nil {
		return api.Token{}, refusal(err)
	}
	if life == 0 {
		life = cluster.DefaultTokenLife
	}
	n.note(ctx, cluster.Event{Kind: "cluster.token", Text: "a token was made that lets one node join"})
	return api.Token{Token: token, Expires: time.Now().Add(life).UTC().Truncate(time.Second)}, nil
}

// SaveCluster implements server.Cluster. The file has no name any more; it holds the cluster's secrets.
func (n *Node) SaveCluster(ctx context.Context) (api.Saved, io.ReadCloser, error) {
	dir, err := os.MkdirTemp(n.stateDir, "save-*") // of mode 0700
	if err != nil {
		return api.Saved{}, nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := dir + "/cluster"
	saved, err := n.db.Save(ctx, path)
	if err != nil {
		return api.Saved{}, nil, refusal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		return api.Saved{}, nil, err
	}
	n.note(ctx, cluster.Event{Kind: "cluster.save", Text: fmt.Sprintf("the cluster's database was saved at revision %d", saved.Revision)})
	return savedOf(saved), file, nil
}

func savedOf(s cluster.Saved) api.Saved {
	return api.Saved{Cluster: s.Cluster, Node: s.Node, Time: s.Time, Revision: s.Revision, Bytes: s.Bytes}
}

// awaitEviction stops I/O at once when the others have put this node out. The process lives on, so that it can
// be asked and made to leave: the guard is let go as soon as no volume is mounted any more.
func (m *membership) awaitEviction(ctx context.Context) {
	select {
	case <-m.node.db.Evicted():
	case <-ctx.Done():
		return
	}
	m.node.log.Error("this node was evicted from its cluster: its I/O ends. " + evictedAdvice)
	m.node.stopIO(ctx, m.deadline.early())
	for _, v := range m.node.sortedVolumes() {
		if s := v.seat.Load(); s != nil {
			s.lose("this node was evicted from the cluster")
		}
	}
	m.stop() // nothing more is to be heard from the cluster
	for end := time.Now().Add(handOverLimit); m.letGuardGo() != nil && time.Now().Before(end); {
		time.Sleep(nodePoll)
	}
	m.session.Close()
}

// renewGuard moves the guard's deadline on; 0 is none.
func (m *membership) renewGuard(at int64) error {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	g := m.guard.Load()
	if at == 0 || g == nil || m.unguarded.Load() || m.owes {
		return nil
	}
	return g.Renew(time.Duration(at))
}

// letGuardGo ends the guard process; it refuses while it has mounts.
func (m *membership) letGuardGo() error {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	g := m.guard.Load()
	if g == nil || m.unguarded.Load() {
		return nil
	}
	err := g.Close()
	select {
	case <-g.Done(): // also one that had ended by itself
		m.unguarded.Store(true)
	default:
	}
	return err
}

// alone is a node that is in no cluster, as a member.
func (n *Node) alone() cluster.MemberStatus {
	return cluster.MemberStatus{
		Member: cluster.Member{Name: n.name, Address: n.db.Address(), Role: config.RoleNode}, Part: cluster.PartVoter, Alive: true,
	}
}
