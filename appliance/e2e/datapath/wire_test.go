package datapath

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire"
	"lunar/datapath/wire/wiretest"
)

// overWire puts a wire.Client and Server between every volume and its coordinator; TestOverTheWire sets
// it while it runs.
var overWire bool

// TestOverTheWire runs the tests of a volume beside its coordinator with one on another node: what a
// volume sees of its coordinator is the same.
func TestOverTheWire(t *testing.T) {
	overWire = true
	defer func() { overWire = false }()
	for name, test := range map[string]func(*testing.T){
		"FirstWriteIsRedirected": TestFirstWriteIsRedirectedTheNextOnesAreDirect,
		"IOSpansExtents":         TestIOSpansExtents,
		"BadCalls":               TestBadCalls,
		"ResizeWhileOpen":        TestResizeWhileOpen,
		"Snapshot":               TestSnapshotStaysWhenItsOriginIsWritten,
		"FullVolume":             TestFullVolume,
		"CompareAndWrite":        TestCompareAndWriteCounts,
		"RedirectByRequest":      TestRedirectByRequest,
		"ThickAndEager":          TestThickAndEager,
		"Copy":                   TestCopyIsReflink,
		"PathLost":               TestPathLostIsRedirectedWithoutAnError,
		"Recall":                 TestRecallAgainstSubmission,
		"Model":                  TestAgainstModel,
	} {
		t.Run(name, test)
	}
}

// goAway puts the wire between the volume and the coordinator. Redirected I/O goes straight to it.
func (n *node) goAway() {
	n.t.Helper()
	ca := wiretest.NewAuthority(n.t)
	epoch := n.coord.Epoch()
	sv, err := wire.NewServer(wire.ServerOptions{TLS: ca.Config(n.t, "n1"), Sentinels: coordinator.Sentinels(), Log: quiet(),
		Lookup: func(volume string, of uint64) (wire.Coordinator, error) {
			if of != epoch {
				return nil, fmt.Errorf("%s: epoch %d in %d: %w", volume, of, epoch, protocol.ErrStale)
			}
			return n.coord, nil
		}})
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- sv.Serve(l) }()
	c, err := wire.Dial(wire.ClientOptions{Address: l.Addr().String(), TLS: ca.Config(n.t, "n2"), Volume: "Volume1", Epoch: epoch,
		Node: "n2", Incarnation: 1, Data: n.coord, Sentinels: coordinator.Sentinels(), Log: quiet()})
	if err != nil {
		n.t.Fatal(err)
	}
	n.options.Node, n.options.Coordinator = "n2", c
	n.away = func() {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_ = c.Close()
		if err := sv.Stop(limit); err != nil {
			n.t.Error(err)
		}
		if err := <-served; err != nil {
			n.t.Error(err)
		}
	}
}
