package daemon

import (
	"log/slog"
	"testing"
	"time"

	"lunar/appliance/cluster"
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
