package wire

import (
	"fmt"
	"testing"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// BenchmarkAttach is the round trip of an Attach over TLS on loopback.
func BenchmarkAttach(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := newPair(b)
			p.coord.image(b, "a", n)
			c := p.client()
			for b.Loop() {
				g, id, err := c.Attach(ctx, "n2", "a", &view{})
				if err != nil || len(g.Extents) != n {
					b.Fatal(len(g.Extents), err)
				}
				b.StopTimer()
				if err := c.Detach(ctx, g.Call, id); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRecall is the round trip of a recall to a holder with nothing under way, and the grant that
// ends it.
func BenchmarkRecall(b *testing.B) {
	p := newPair(b)
	r := p.coord.image(b, "a", 1000)
	h, _, _ := attach(b, p.client(), "a")
	at := layout.Range{Len: 4096}
	extents := []layout.Extent{{DevOff: 1 << 20, Len: 4096, State: layout.Written}}
	for b.Loop() {
		if err := p.coord.change(ctx, r, at, extents); err != nil {
			b.Fatal(err)
		}
		h.mu.Lock()
		h.told = nil
		h.mu.Unlock()
	}
}

// BenchmarkCall is the round trip of the smallest call.
func BenchmarkCall(b *testing.B) {
	c := newPair(b).client()
	for b.Loop() {
		if err := c.Acknowledge(ctx, protocol.NodeID("n2"), 5); err != nil {
			b.Fatal(err)
		}
	}
}
