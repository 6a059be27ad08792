package netft

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"lunar/netft/detector"
	"lunar/netft/heartbeat"
)

// TestColdStart starts again without the cluster's database: the routes come from the file.
func TestColdStart(t *testing.T) {
	l := newLab(t, 2, 1)
	a, b := l.nodes[0], l.nodes[1]
	o := Options{Profile: detector.Fast(), StateFile: filepath.Join(t.TempDir(), "peers")}
	a.start(o)
	b.start(Options{Profile: o.Profile})
	l.introduce()
	l.healthy(1)
	a.stop()
	if via := a.via(2); via != "" {
		t.Errorf("a route by %s is left after Close", via)
	}
	if err := a.fabric.SetPeers(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("SetPeers after Close: %v", err)
	}
	a.start(o)
	until(t, 10*time.Second, "route from the file", func() bool { return a.via(2) == "netA" })
	l.healthy(1)
	until(t, 10*time.Second, "the peer's word of the restart", func() bool { return b.count(detector.NodeRestarted) == 1 })
}

// TestAddressMoves changes a node's IPv4 address without a word to its peers. They learn it from its heartbeats.
func TestAddressMoves(t *testing.T) {
	l := newLab(t, 2, 1)
	a, b := l.nodes[0], l.nodes[1]
	l.start(Options{Profile: detector.Fast()})
	l.healthy(1)
	b.NoAddress("netA", "10.1.0.2/24")
	b.Address("netA", "10.1.0.77/24")
	until(t, 20*time.Second, "the new address", func() bool {
		for _, p := range a.fabric.Paths() {
			if p.Family == detector.IPv4 {
				return p.Remote.String() == "10.1.0.77" && p.State == detector.Up
			}
		}
		return false
	})
}

// TestProbeMTU finds what a network carries.
func TestProbeMTU(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 1)
		a := l.nodes[0]
		l.start(o)
		l.healthy(1)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1500); err != nil {
			t.Error(err)
		}
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1501); !errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("more than the own MTU: %v", err)
		}
		l.nodes[1].MTU("netA", 1400)
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1450); !errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("more than the peer's MTU: %v", err)
		}
		if err := a.fabric.ProbeMTU(ctx, 2, "nowhere", 1400); err == nil || errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("a network that is not there: %v", err)
		}
	})
}

func TestOptionsValidate(t *testing.T) {
	good := Options{Name: "n", Number: 1, Incarnation: 1, Key: labKey}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"name": func(o *Options) { o.Name = "" }, "number": func(o *Options) { o.Number = 0 },
		"incarnation": func(o *Options) { o.Incarnation = 0 }, "key": func(o *Options) { o.Key = [16]byte{} },
		"profile": func(o *Options) { o.Profile.Missed = 1 },
	} {
		o := good
		change(&o)
		if _, err := Start(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSetPeersRefuses(t *testing.T) {
	f := &Fabric{o: Options{Number: 1}}
	many := []Peer{{Name: "me", Number: 1}, {Name: "none"}, {Name: "two", Number: 2}, {Name: "twice", Number: 2}}
	for i := range MaxPeers {
		many = append(many, Peer{Name: "n", Number: uint16(100 + i)})
	}
	good, err := f.usable(many)
	if len(good) != MaxPeers || err == nil {
		t.Errorf("%d peers, %v", len(good), err)
	}
}
