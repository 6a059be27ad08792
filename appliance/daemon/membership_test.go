package daemon

import (
	"log/slog"
	"testing"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/config"
)

// TestLostSessionStopsIO: I/O stops for a session that was lost also if the next one was there before anybody looked,
// and the guard's deadline, which is the next one's, stands.
func TestLostSessionStopsIO(t *testing.T) {
	m := &membership{node: newNode("n1", slog.New(slog.DiscardHandler)), ttl: 8 * time.Second}
	m.unguarded.Store(true)
	d := newDeadline(m)
	until := func(left time.Duration) int64 { return cluster.Boottime() + int64(left) }
	d.renewed(until(m.ttl))
	if again := d.look(t.Context()); d.stopped || again <= 0 {
		t.Fatalf("I/O is stopped: %v, again after %v", d.stopped, again)
	}
	d.renewed(0)
	d.over()
	d.renewed(until(m.ttl))
	if again := d.look(t.Context()); !d.stopped || again != 0 || d.isOver() {
		t.Errorf("I/O is stopped: %v, again after %v, over: %v", d.stopped, again, d.isOver())
	}
	d.renewed(until(m.ttl / 16)) // it is about to end
	if again := d.look(t.Context()); !d.stopped || again <= 0 || !d.isOver() {
		t.Errorf("I/O is stopped: %v, again after %v, over: %v", d.stopped, again, d.isOver())
	}
	m.tasks.Wait()
}

// TestNextSessionWaits: the guard's deadline is moved on for the next session only when nothing is mounted by the one
// before; until then that one's stands, and I/O waits.
func TestNextSessionWaits(t *testing.T) {
	if !apart(t) {
		return
	}
	b := newBench(t).inCluster()
	b.config.Cluster.Lease = config.Duration(12 * time.Second)
	c := b.start()
	_, err := c.InitCluster(t.Context())
	must(t, err)
	b.served(b.disk())
	n := b.daemon.node
	m := n.membership.Load()
	v := n.sortedVolumes()[0]
	was := v.mountedBy.Load()
	if was != m.session.Incarnation() {
		t.Fatalf("the volume is mounted by incarnation %d, the session is %d", was, m.session.Incarnation())
	}
	before := m.guard.Load().Deadline()
	eventually(t, 8*time.Second, "a renewal moves the deadline", func() bool { return m.guard.Load().Deadline() > before })
	hangs, err := v.seat.Load().coordinator(0).MountFD() // keeps it mounted
	must(t, err)
	m.session.Renew("for the test")
	eventually(t, 30*time.Second, "the next session", func() bool { return m.session.Incarnation() == was+1 })
	stands, from := m.guard.Load().Deadline(), m.session.Deadline()
	eventually(t, 8*time.Second, "the next session is renewed", func() bool { return m.session.Deadline() > from })
	if now := m.guard.Load().Deadline(); now != stands || now >= time.Duration(from) {
		t.Errorf("the guard's deadline went from %v to %v, the next session's is %v", stands, now, time.Duration(from))
	}
	if !m.owesAnything() || v.mountedBy.Load() != was {
		t.Errorf("the volume counts as mounted by %d", v.mountedBy.Load())
	}
	must(t, hangs.Close())
	eventually(t, 10*time.Second, "the volume is mounted again", func() bool { return v.mountedBy.Load() == was+1 })
	if now := m.guard.Load().Deadline(); m.owesAnything() || now < time.Duration(from) {
		t.Errorf("the guard's deadline is %v, the next session's was %v before", now, time.Duration(from))
	}
}

// TestOrderedFencing: how long a node may still act does not depend on the leases of those who order and who fence, and
// an order that does not say waits the longest.
func TestOrderedFencing(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 10 * time.Second} {
		o := fenceOrder{Node: "n2", Spent: cluster.MaxTTL - 5*time.Second}
		if left := ttl - o.victim(ttl).Silent; left != 5*time.Second {
			t.Errorf("lease %v: left %v", ttl, left)
		}
		o = fenceOrder{Node: "n2"}
		if left := ttl - o.victim(ttl).Silent; left != cluster.MaxTTL {
			t.Errorf("lease %v: left %v of an order that does not say", ttl, left)
		}
	}
}
