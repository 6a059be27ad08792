package daemon

import (
	"context"
	"fmt"
	"time"

	"lunar/appliance/cluster"
	"lunar/datapath/volume"
)

// The guard's deadline is that of one incarnation of the node's session. It is moved on for the next one only when
// nothing of those before can reach a LUN any more: others take the end of an incarnation's time for its end, and if
// the deadline were moved on before that, nothing would end what hangs.

// owe notes that a session is lost. Until settle, its guard's deadline stands.
func (m *membership) owe() {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	m.owes = m.shared
}

// presentToGuard tells of a session, unless one before it is not over: then settle does it.
func (m *membership) presentToGuard(incarnation uint64) {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	if m.owes {
		return
	}
	m.guarded = guardedAs(incarnation)
	if g := m.guard.Load(); g != nil {
		g.Present(m.guarded)
	}
}

// settle hands the guard over to the present session, if all I/O waits and nothing is mounted by earlier ones. Then it
// calls resumed, before the guard can be told anything else. It is tried again until that is so, or the guard ends it all.
func (m *membership) settle(ctx context.Context, resumed func()) bool {
	if !m.owesAnything() {
		resumed()
		return true
	}
	if err := m.node.suspended(ctx, m.deadline.early()); err != nil {
		m.node.log.Debug("the next session waits for what the one before has under way", "error", err)
		return false
	}
	m.renewing.Lock()
	defer m.renewing.Unlock()
	incarnation, at := m.session.Incarnation(), m.session.Deadline()
	if incarnation == 0 || at == 0 || m.node.mountedByAnother(incarnation) != nil {
		return false
	}
	m.owes, m.guarded = false, guardedAs(incarnation)
	if g := m.guard.Load(); g != nil && !m.unguarded.Load() {
		g.Present(m.guarded)
		if err := g.Renew(time.Duration(at)); err != nil {
			m.node.log.Error("the guard process was not told of the session", "error", err)
		}
	}
	resumed()
	return true
}

func (m *membership) owesAnything() bool {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	return m.owes
}

// suspended has all I/O of this node's volumes wait, and returns when none is under way. It waits for no volume that comes
// or goes.
func (n *Node) suspended(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, v := range n.sortedVolumes() {
		if err := v.suspended(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (v *volumeState) suspended(ctx context.Context) error {
	if !v.use.TryRLock() {
		return fmt.Errorf("volume %s comes or goes", v.name())
	}
	defer v.use.RUnlock()
	if v.parts == nil {
		return nil
	}
	return v.parts.vol.Suspend(ctx, volume.LeaseLost)
}

// claimMount notes that a mount of this term may be there from now on, when the guard counts by the present session.
// ErrInUse: one of an earlier term is there.
func (s *seat) claimMount(ctx context.Context, p *parts, t *cluster.Term) error {
	m := s.node.membership.Load()
	for m.owesAnything() {
		if err := pause(ctx, disarmPause); err != nil {
			return fmt.Errorf("an earlier session of this node is not over: %w", err)
		}
	}
	if s.v.mountedBy.Load() != 0 {
		if err := p.dev.InUse(); err != nil {
			return err
		}
	}
	s.v.mountedBy.Store(t.Incarnation)
	if m.session.Incarnation() != t.Incarnation { // settle for a later one may have looked before
		s.v.mountedBy.Store(0)
		return fmt.Errorf("incarnation %d: %w", t.Incarnation, cluster.ErrSessionLost)
	}
	return nil
}

// disclaimMount is after a mount that failed, and looks whether it left something.
func (s *seat) disclaimMount(p *parts) error {
	err := p.dev.InUse()
	if err == nil {
		s.v.mountedBy.Store(0)
	}
	return err
}
