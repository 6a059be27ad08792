package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/appliance/fence/guard"
	"lunar/datapath/volume"
	"lunar/datapath/wire"
	"lunar/datapath/wire/nbd"
)

// The life of this node's session. A node that is in no cluster shares its LUNs with nobody: its
// session is long, so that a slow disk of the database ends no term.
const (
	aloneTTL   = cluster.MaxTTL
	joinLimit  = 30 * time.Second // for the session to begin
	serveLimit = 10 * time.Second // for calls of other nodes to end
)

// membership is this node's part in the cluster, also in one of its own: its session, the elections of
// coordinators, what serves other nodes, and the guard. It lives from openMembership to close; Init,
// Join and Leave begin another one.
type membership struct {
	node      *Node
	session   *cluster.Session
	elections *cluster.Coordinators
	shared    bool // with other nodes, or such may come
	ttl       time.Duration

	ready chan struct{} // closed when session and elections are there

	guard      atomic.Pointer[guard.Guard] // nil unless shared
	known      atomic.Pointer[guard.Guard] // the one that knows all devices, and may answer other nodes
	equipNow   chan struct{}               // there is a new one
	unguarded  atomic.Bool                 // the guard was let go
	renewing   sync.Mutex                  // held while the guard is renewed, disarmed, replaced or let go
	guarded    uint64                      // the incarnation that the guard was told of; under renewing
	owes       bool                        // that one's session is lost, and what it did may be under way still; under renewing
	layouts    *wire.Server
	redirected *nbd.Server

	view     atomic.Pointer[cluster.View]
	members  atomic.Pointer[[]cluster.Member]
	deadline *deadline
	stop     context.CancelFunc
	tasks    sync.WaitGroup
}

// openMembership begins this node's part. Volumes are brought on line by it; nothing is exported yet.
func (n *Node) openMembership(ctx context.Context) (_ *membership, err error) {
	m := &membership{node: n, shared: n.db.InCluster() != "", ttl: aloneTTL, ready: make(chan struct{}), equipNow: make(chan struct{}, 1)}
	m.deadline = newDeadline(m)
	m.view.Store(&cluster.View{})
	m.members.Store(&[]cluster.Member{})
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close(context.WithoutCancel(ctx)))
		}
	}()
	if m.shared {
		m.ttl = n.lease
		if err := m.openShared(ctx); err != nil {
			return m, err
		}
	}
	n.membership.Store(m) // the session's callbacks need it
	m.session, err = n.db.StartSession(ctx, cluster.SessionOptions{
		Address: n.db.Address(), Portals: n.portalAddresses(), TTL: m.ttl, Log: n.log,
		Established: m.established, Renewed: m.deadline.renewed, Lost: m.lost,
	})
	if err != nil {
		return m, err
	}
	m.elections = n.db.Coordinators(m.session)
	close(m.ready)
	return m, nil
}

// openShared starts what a node needs beside others.
func (m *membership) openShared(ctx context.Context) (err error) {
	members, err := m.node.db.Members(ctx)
	if err != nil {
		return err
	}
	m.members.Store(&members)
	m.networksOf(ctx)
	if err := m.startGuard(ctx); err != nil {
		return fmt.Errorf("guard process: %w", err)
	}
	m.known.Store(m.guard.Load())
	m.node.front.SetGroup(m.node.db.Number())
	return m.serve(ctx)
}

// run takes part in elections and follows changes, until close.
func (m *membership) run(ctx context.Context) {
	ctx, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	m.tasks.Go(func() { m.repeat(ctx, "elections", func() error { return m.elections.Run(ctx, m.duties()) }) }) //nolint:contextcheck // news outlives the elections
	m.tasks.Go(func() { m.deadline.keep(ctx) })
	m.tasks.Go(func() {
		m.repeat(ctx, "configuration", func() error { return m.node.db.WatchExports(ctx, m.node.reconciler.kick) })
	})
	m.tasks.Go(func() { m.repeat(ctx, "reservations", func() error { return m.node.reservations.follow(ctx) }) })
	if m.shared {
		m.tasks.Go(func() { m.awaitEviction(ctx) })
		m.tasks.Go(func() { m.keepEquipped(ctx) })
		m.tasks.Go(func() { m.keepGuard(ctx) })
		m.tasks.Go(func() {
			m.repeat(ctx, "members", func() error {
				return m.node.db.WatchMembers(ctx, func(members []cluster.Member) error { return m.changed(ctx, members) })
			})
		})
		m.tasks.Go(func() { m.repeat(ctx, "networks", func() error { return m.followNetworks(ctx) }) })
		m.tasks.Go(func() { m.keepPublishing(ctx) })
	}
}

// watchPause is between the tries to follow what the cluster database could not tell.
const watchPause = 200 * time.Millisecond

// repeat does what needs the database again when it failed.
func (m *membership) repeat(ctx context.Context, what string, do func() error) {
	for ctx.Err() == nil {
		if err := do(); err != nil && ctx.Err() == nil {
			m.node.log.Warn("followed anew", "what", what, "error", err)
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
		}
	}
}

// changed takes the list of members over.
func (m *membership) changed(ctx context.Context, members []cluster.Member) error {
	m.members.Store(&members)
	m.networksOf(ctx)
	m.node.tellPeers()
	return nil
}

// established begins another incarnation: I/O that waited for it goes on under new layouts.
func (m *membership) established(incarnation uint64) {
	m.node.log.Info("this node is present in the cluster", "incarnation", incarnation)
	m.presentToGuard(incarnation)
	m.node.incarnation.Store(incarnation)
}

func (m *membership) lost(incarnation uint64, reason error) {
	m.node.log.Error("this node is not present in the cluster any more", "incarnation", incarnation, "reason", reason)
	m.owe()
	m.deadline.over()
}

// sayStopping tells the other nodes that this one ends.
func (n *Node) sayStopping() {
	if m := n.membership.Load(); m != nil && m.session != nil {
		m.session.SetStopping()
	}
}

// close ends this node's part, in the reverse order; the volumes were handed over before. So the guard goes first: a
// deadline that passes from here on, since the others have stopped too, is no reason to end anything.
func (m *membership) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serveLimit)
	defer cancel()
	_ = m.letGuardGo() // while it has mounts it refuses, which is said below
	if m.stop != nil {
		m.stop()
	}
	errs := []error{m.stopServing(ctx)}
	m.tasks.Wait()
	_ = m.letGuardGo() // before the others miss this node, and have its guard end it
	if m.session != nil {
		m.session.Close()
	}
	return errors.Join(append(errs, m.letGuardGo())...)
}

// others lists the names of the other members that may hold layouts.
func (m *membership) others() []cluster.Member {
	var out []cluster.Member
	for _, o := range *m.members.Load() {
		if o.Name != m.node.name && o.Role != config.RoleWitness {
			out = append(out, o)
		}
	}
	return out
}

// deadline stops this node's I/O when its session may have ended in the eyes of the others.
type deadline struct {
	m    *membership
	wake chan struct{}

	mu      sync.Mutex // guards what follows
	at      int64      // CLOCK_BOOTTIME, ns; 0: there is no session
	lost    bool       // a session was, since I/O was stopped or resumed last
	stopped bool       // I/O was stopped
	waiting bool       // to resume it, for what an earlier incarnation has under way
}

func newDeadline(m *membership) *deadline { return &deadline{m: m, wake: make(chan struct{}, 1)} }

// renewed is the session's; it does not block.
func (d *deadline) renewed(at int64) {
	d.mu.Lock()
	d.at = at
	d.mu.Unlock()
	if err := d.m.renewGuard(at); err != nil {
		d.m.node.log.Error("the guard process was not told of the session", "error", err)
	}
	d.kick()
}

// over says that the session is lost already.
func (d *deadline) over() {
	d.mu.Lock()
	d.at, d.lost = 0, true
	d.mu.Unlock()
	d.kick()
}

func (d *deadline) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// keep stops and resumes I/O, until ctx ends. A node that is alone has nobody to stop for.
func (d *deadline) keep(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		if d.m.shared {
			timer.Reset(d.look(ctx))
		}
	}
}

// early is how long before the deadline direct I/O stops: enough for what is under way to end, and less than
// what a session has left while the database chooses another leader.
func (d *deadline) early() time.Duration { return d.m.ttl / 8 }

// look does what the time asks for, and tells when to look again. I/O stops for a session that was lost also if there
// is another one by now: what was done under it is fenced.
func (d *deadline) look(ctx context.Context) time.Duration {
	d.mu.Lock()
	left := time.Duration(d.at-cluster.Boottime()) - d.early()
	near := d.near()
	again := d.lost && !near
	gone := near || d.lost
	stop, resume := gone && (!d.stopped || d.waiting), !gone && d.stopped
	d.lost, d.stopped, d.waiting = false, gone || d.stopped, resume
	d.mu.Unlock()
	switch {
	case stop:
		if d.m.node.stopIO(ctx, d.early()) && !d.m.unguarded.Load() {
			d.m.tasks.Go(func() { d.m.disarm(ctx) })
		}
	case resume && !d.m.settle(ctx, d.resumed):
		return disarmPause
	case resume:
		d.m.node.resumeIO(ctx)
	}
	switch {
	case again:
		return 0
	case gone:
		return d.early()
	}
	return left
}

func (d *deadline) resumed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped, d.waiting = false, false
}

// near tells that there is no session, or none for long enough. It needs d.mu.
func (d *deadline) near() bool {
	return d.at == 0 || time.Duration(d.at-cluster.Boottime()) <= d.early()
}

// stopIO makes all volumes wait, within limit, and ends the terms of this node when that was too long: what
// is under way then is left to the guard. all tells that nothing is.
func (n *Node) stopIO(ctx context.Context, limit time.Duration) (all bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	n.log.Error("I/O stops: this node cannot renew its session with the cluster")
	var volumes sync.WaitGroup
	var busy atomic.Bool
	for _, v := range n.sortedVolumes() {
		p, release := v.borrow()
		if p == nil {
			continue
		}
		volumes.Go(func() {
			defer release()
			if err := p.vol.Suspend(ctx, volume.LeaseLost); err != nil {
				busy.Store(true)
				n.log.Error("I/O is still under way", "volume", n.record(v).Name, "error", err)
				return
			}
			if s := v.seat.Load(); s != nil {
				s.lose("the session with the cluster is lost")
			}
		})
	}
	volumes.Wait()
	return !busy.Load()
}

// resumeIO lets I/O go on under the present session: each volume takes its place anew among those that
// may write to its LUN.
func (n *Node) resumeIO(ctx context.Context) {
	n.log.Info("I/O goes on: this node's session with the cluster is renewed")
	if err := n.reservations.renew(ctx); err != nil {
		n.log.Error("the records of reservations were not renewed", "error", err)
	}
	for _, v := range n.sortedVolumes() {
		p, release := v.borrow()
		if p == nil {
			continue
		}
		if err := p.fencer.renew(ctx); err != nil {
			n.log.Error("the volume waits: this node may not write to its LUN", "volume", n.record(v).Name, "error", err)
		} else {
			p.vol.Resume(volume.LeaseLost | volume.Fenced)
		}
		if s := v.seat.Load(); s != nil {
			s.kick() // the coordinator may have counted the earlier incarnation out: it is followed anew
		}
		release()
	}
}
