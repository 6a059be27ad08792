package wire

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// TestMergedGrantsSayTheSame merges random grants and compares with a holder that heard each of them.
func TestMergedGrantsSayTheSame(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		const blocks = 40
		first := protocol.Grant{Generation: 10, Size: blocks, Range: layout.Range{Len: blocks}}
		each, err := protocol.NewView(first)
		if err != nil {
			t.Fatal(err)
		}
		merged := each
		var p *publication
		count := 1 + rng.IntN(30)
		for i := range count {
			g := randomGrant(rng, blocks, 11+uint64(i))
			if g.Ends = uint64(rng.IntN(2) * (i + 1)); g.Ends != 0 {
				r := protocol.Recall{Number: g.Ends, Range: g.Range}
				each, _ = each.Recalled(r)
				merged, _ = merged.Recalled(r)
			}
			if each, err = each.Granted(g); err != nil {
				t.Fatal(err)
			}
			if p == nil {
				p = newPublication(g)
			} else {
				p.add(g)
			}
		}
		out := p.grants()
		if len(out) > count {
			t.Fatalf("seed %d: %d grants of %d", seed, len(out), count)
		}
		for _, g := range out {
			if merged, err = merged.Granted(g); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if !slices.Equal(merged.Layout.Extents(), each.Layout.Extents()) || merged.Recalls() != 0 || merged.Layout.Generation != each.Layout.Generation {
			t.Fatalf("seed %d: %v, %d recalls; want %v", seed, merged.Layout.Extents(), merged.Recalls(), each.Layout.Extents())
		}
	}
}

func randomGrant(rng *rand.Rand, blocks int64, generation uint64) protocol.Grant {
	off := rng.Int64N(blocks)
	r := layout.Range{Off: off, Len: rng.Int64N(min(8, blocks-off) + 1)}
	g := protocol.Grant{Generation: generation, Size: blocks, Range: r}
	for b := r.Off; b < r.End(); b++ {
		if rng.IntN(5) > 0 { // what is left out is a hole
			g.Extents = append(g.Extents, layout.Extent{FileOff: b, DevOff: rng.Int64N(100), Len: 1, State: layout.Written})
		}
	}
	return g
}

// TestOutbox runs an outbox against a node over streams that break, under a seed: every message arrives
// once and in order but for recalls that are not answered, and no grant comes before a recall that it
// followed.
func TestOutbox(t *testing.T) {
	for seed := range uint64(400) {
		newOutboxSim(t, seed).run()
	}
}

// outboxSim is a coordinator of one image, an outbox, and a node.
type outboxSim struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	out  outbox

	generation, recalls uint64
	open                map[uint64]*letter // told, not answered
	now                 *layout.Layout     // at the coordinator
	wire                []*letter          // sent, not arrived
	back                []func()           // acknowledgements and answers on their way

	received uint64
	view     *protocol.View
	returned map[uint64]bool
}

const simBlocks = 16

func newOutboxSim(t *testing.T, seed uint64) *outboxSim {
	s := &outboxSim{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 3)), out: newOutbox(200),
		open: map[uint64]*letter{}, returned: map[uint64]bool{}, generation: 1}
	s.now, _ = layout.New(simBlocks, nil)
	s.out.add(1, protocol.Grant{Generation: 1, Size: simBlocks, Range: layout.Range{Len: simBlocks}})
	return s
}

func (s *outboxSim) run() {
	for range 400 {
		s.step(s.rng.IntN(8))
	}
	s.resume()
	for range 300 {
		s.step(2 + s.rng.IntN(3))
	}
	for n, l := range s.open {
		if len(l.answer) == 0 {
			s.t.Fatalf("seed %d: Progress: recall %d was never answered", s.seed, n)
		}
		s.end(n)
	}
	for range 1000 {
		s.step(2 + s.rng.IntN(3))
	}
	if s.view == nil || !slices.Equal(s.view.Layout.Extents(), s.now.Extents()) || s.view.Layout.Generation != s.generation {
		s.t.Fatalf("seed %d: the node's layout differs", s.seed)
	}
	if s.view.Recalls() != 0 || len(s.out.flying)+len(s.out.queue) != 0 {
		s.t.Fatalf("seed %d: %d recalls, %d letters are left", s.seed, s.view.Recalls(), len(s.out.flying)+len(s.out.queue))
	}
}

func (s *outboxSim) step(dice int) {
	switch {
	case dice == 0 && len(s.open) < 3:
		s.recalls++
		r := protocol.Recall{Number: s.recalls, Range: layout.Range{Off: s.rng.Int64N(simBlocks), Len: 1}}
		s.open[s.recalls] = s.out.recall(1, r, time.Time{})
	case dice == 1:
		s.publish(layout.Range{Off: s.rng.Int64N(simBlocks), Len: 1}, 0)
	case dice == 2:
		if l := s.out.next(); l != nil {
			s.wire = append(s.wire, l)
		}
	case dice == 3 && len(s.wire) > 0:
		l := s.wire[0]
		s.wire = s.wire[1:]
		s.arrive(l)
	case dice == 4 && len(s.back) > 0:
		fn := s.back[0]
		s.back = s.back[1:]
		fn()
	case dice == 5 && s.rng.IntN(4) == 0:
		s.resume()
	case dice > 5:
		for n, l := range s.open {
			if len(l.answer) > 0 || s.rng.IntN(20) == 0 {
				s.end(n)
				break
			}
		}
	}
}

// end ends a change: its recall was answered, or it gives up.
func (s *outboxSim) end(n uint64) {
	l := s.open[n]
	if len(l.answer) == 0 {
		s.out.cancel(l)
	} else if !s.returned[n] {
		s.t.Fatalf("seed %d: recall %d was answered by nobody", s.seed, n)
	}
	delete(s.open, n)
	s.publish(l.recall.Range, n)
}

func (s *outboxSim) publish(r layout.Range, ends uint64) {
	s.generation++
	e := layout.Extent{FileOff: r.Off, DevOff: int64(s.generation), Len: r.Len, State: layout.Written}
	s.now, _ = s.now.Replace(r, []layout.Extent{e})
	s.out.publish(1, protocol.Grant{Generation: s.generation, Size: simBlocks, Range: r, Ends: ends, Extents: []layout.Extent{e}})
}

func (s *outboxSim) resume() {
	s.wire, s.back = nil, nil
	s.out.resume(s.received)
}

func (s *outboxSim) arrive(l *letter) {
	news := l.number > s.received
	switch {
	case l.recall != nil:
		n := l.recall.Number
		if news {
			s.view, _ = s.view.Recalled(*l.recall)
		}
		s.returned[n] = true
		s.back = append(s.back, func() { s.out.answered(1, n, nil) })
	case !news:
		s.t.Fatalf("seed %d: grant %d came twice", s.seed, l.number)
	case s.view == nil:
		s.view, _ = protocol.NewView(l.grants.last)
	default:
		next, err := s.view.Granted(l.grants.last)
		if err != nil {
			s.t.Fatalf("seed %d: %v", s.seed, err)
		}
		s.view = next
	}
	s.received = max(s.received, l.number)
	received := s.received
	s.back = append(s.back, func() { s.out.acknowledged(received) })
}

// TestGrantsDoNotOvertakeRecalls merges a grant into one that waits before a recall.
func TestGrantsDoNotOvertakeRecalls(t *testing.T) {
	o := newOutbox(1 << 20)
	r := layout.Range{Len: 1}
	grant := func(generation uint64) protocol.Grant {
		return protocol.Grant{Generation: generation, Size: simBlocks, Range: r}
	}
	o.add(1, grant(1))
	o.publish(1, grant(2))
	o.recall(1, protocol.Recall{Number: 1, Range: layout.Range{Off: 5, Len: 1}}, time.Time{})
	o.publish(1, grant(3))
	var got []uint64
	for l := o.next(); l != nil; l = o.next() {
		if l.recall != nil {
			got = append(got, 0)
		} else {
			got = append(got, l.grants.last.Generation)
		}
	}
	if want := []uint64{1, 0, 3}; !slices.Equal(got, want) {
		t.Fatal(got, want)
	}
}
