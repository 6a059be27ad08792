package cluster

import (
	"strings"
	"sync"
	"testing"
	"time"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// stopBar is systemd's: TimeoutStopSec of lunard.service, after which it kills.
const stopBar = 120 * time.Second

// laterStop is how much later than the others the coordinator is told to stop.
const laterStop = time.Second

// TestAllStop ends all nodes by SIGTERM, as a power-down of the whole site does. The coordinator hears of it last, and is
// held up by an initiator that does not log out: the others' votes are there until it is done. No guard has to end
// anything, and the file system is unmounted.
func TestAllStop(t *testing.T) {
	b := newBench(t, 3)
	last, err := b.Coordinator(b.ctx)
	check(t, err)
	stays, err := load.Login(b.ctx, last.Portal(), lab.ClusterTarget, "iqn.2026-01.lunar.test:stays", 1, time.Minute)
	check(t, err)
	var all sync.WaitGroup
	for _, n := range b.Others(last) {
		all.Go(func() { b.stop(n) })
	}
	time.Sleep(laterStop)
	b.stop(last)
	all.Wait()
	stays.Close()
	out, err := lab.Run(b.ctx, "xfs_logprint", "-t", b.Device.Path)
	check(t, err)
	if !strings.Contains(out, "<CLEAN>") {
		t.Errorf("the file system was not unmounted: %s", out)
	}
	check(t, b.Repair(b.ctx))
}

// TestStopWithoutMajority ends a coordinator by SIGTERM that is alone left of three: it stops in order too, within
// systemd's time.
func TestStopWithoutMajority(t *testing.T) {
	b := newBench(t, 3)
	last, err := b.Coordinator(b.ctx)
	check(t, err)
	for _, n := range b.Others(last) {
		n.Kill()
	}
	b.stop(last)
	check(t, b.Repair(b.ctx))
}

// stop ends a node in order.
func (b *bench) stop(n *lab.ClusterNode) {
	b.t.Helper()
	began := time.Now()
	err := n.StopWithin(stopBar)
	b.t.Logf("%s ended after %v", n.Name, time.Since(began).Round(time.Millisecond))
	if err != nil {
		b.t.Errorf("node %s: %v", n.Name, err)
	}
	if strings.Contains(n.Log(), "shutting volumes down") {
		b.t.Errorf("node %s was ended by its guard", n.Name)
	}
}
