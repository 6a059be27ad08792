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
		l.blameless()
	})
}

// TestDefaults cuts a network silently at the default profile: the connection waits for less than a second.
func TestDefaults(t *testing.T) {
	l := newLab(t, 2, 2)
	a, b := l.nodes[0], l.nodes[1]
	l.start(Options{BPF: true})
	l.healthy(2)
	until(t, 5*time.Second, "routes over netA", func() bool { return a.via(2) == "netA" && b.via(1) == "netA" })
	s := newStream(t, a, b)
	s.flows()
	s.turn()
	l.deaf(b, 0, true)
	moved := until(t, 5*time.Second, "routes over netB", func() bool { return a.via(2) == "netB" && b.via(1) == "netB" })
	s.flows()
	_, stall := s.turn()
	t.Logf("moved after %v, connection waited %v", moved, stall)
	if stall > 10*time.Second { // under 0.5 s on an idle machine
		t.Errorf("the connection waited %v", stall)
	}
	if got := a.count(detector.PathLost); got != 0 {
		t.Errorf("%d paths given up before the threshold", got)
	}
	l.blameless()
}
