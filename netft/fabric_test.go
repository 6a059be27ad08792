package netft

import (
	"testing"
	"time"

	"lunar/netft/detector"
)

// both runs a test by each method, at the same time.
func both(t *testing.T, f func(t *testing.T, o Options)) {
	for name, bpf := range map[string]bool{MethodKernel: true, MethodSocket: false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, Options{Profile: detector.Fast(), BPF: bpf})
		})
	}
}

// TestNetworkLost loses a network in each way there is: the routes move, and connections live on.
func TestNetworkLost(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 2)
		a, b := l.nodes[0], l.nodes[1]
		l.start(o)
		l.healthy(2)
		until(t, 5*time.Second, "routes over netA", func() bool { return a.via(2) == "netA" && b.via(1) == "netA" })
		s := newStream(t, a, b)
		s.flows()
		for name, fault := range map[string]struct{ cut, mend func() }{
			"own link down":     {func() { a.Down("netA") }, func() { a.Up("netA") }},
			"switch port down":  {func() { l.hub.Down(port(2, 0)) }, func() { l.hub.Up(port(2, 0)) }},
			"one way, silently": {func() { l.deaf(b, 0, true) }, func() { l.deaf(b, 0, false) }},
			"other way":         {func() { l.deaf(a, 0, true) }, func() { l.deaf(a, 0, false) }},
		} {
			s.turn()
			fault.cut()
			moved := until(t, 5*time.Second, name+": routes over netB", func() bool { return a.via(2) == "netB" && b.via(1) == "netB" })
			s.flows()
			_, stall := s.turn()
			fault.mend()
			back := until(t, 30*time.Second, name+": routes over netA again", func() bool { return a.via(2) == "netA" && b.via(1) == "netA" })
			t.Logf("%s: moved after %v, connection waited %v, back after %v", name, moved, stall, back)
		}
		for _, n := range l.nodes {
			if got := n.count(detector.NodeLost, detector.DaemonStalled); got != 0 {
				t.Errorf("node %d: %d verdicts on a node that lives", n.number, got)
			}
		}
	})
}
