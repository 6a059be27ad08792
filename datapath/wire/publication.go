package wire

import (
	"slices"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// publication is one or more grants of an image that a node was not told yet, as one description: of
// each byte the newest. However many are merged, it is bounded by the image's layout.
type publication struct {
	last  protocol.Grant // the newest
	known *layout.Layout // what the grants say, once there is more than one
	spans []span         // that they describe: apart from each other, in order
}

// span is a range with the recalls that its grant ends.
type span struct {
	layout.Range
	ends []uint64
}

func newPublication(g protocol.Grant) *publication {
	return &publication{last: g, spans: []span{spanOf(g)}}
}

func spanOf(g protocol.Grant) span {
	s := span{Range: g.Range}
	if g.Ends != 0 {
		s.ends = []uint64{g.Ends}
	}
	return s
}

// add merges g, which is newer than what p has.
func (p *publication) add(g protocol.Grant) {
	if p.known == nil {
		p.known, _ = layout.New(layout.MaxSize, nil) // cannot fail
		p.draw(p.last)
	}
	p.draw(g)
	p.last = g
	p.spans = join(p.spans, spanOf(g))
}

// draw withholds a range whose extents make no sense: a holder would not take them either.
func (p *publication) draw(g protocol.Grant) {
	next, err := p.known.Replace(g.Range, g.Extents)
	if err != nil {
		next, err = p.known.Replace(g.Range, []layout.Extent{{FileOff: g.Range.Off, Len: g.Range.Len}})
	}
	if err == nil {
		p.known = next
	}
}

// join puts s among spans, and makes one of those that touch it.
func join(spans []span, s span) []span {
	first := 0
	for first < len(spans) && spans[first].End() < s.Off {
		first++
	}
	last := first
	for last < len(spans) && spans[last].Off <= s.End() {
		end := max(s.End(), spans[last].End())
		s.Off = min(s.Off, spans[last].Off)
		s.Len = end - s.Off
		s.ends = append(slices.Clone(spans[last].ends), s.ends...)
		last++
	}
	return slices.Replace(spans, first, last, s)
}

// grants are what p says, in order, no more of them than were merged. A recall ends after its range is
// described; the generations are the last of those that were merged.
func (p *publication) grants() []protocol.Grant {
	if p.known == nil {
		return []protocol.Grant{p.last}
	}
	var out []protocol.Grant
	for _, s := range p.spans {
		g := p.last
		g.Range, g.Ends, g.Extents = s.Range, 0, slices.Collect(p.known.In(s.Range))
		for i, ends := range s.ends {
			if i > 0 {
				out = append(out, g)
				g.Range, g.Extents = layout.Range{Off: s.Off}, nil
			}
			g.Ends = ends
		}
		out = append(out, g)
	}
	for i := range out {
		out[i].Generation = p.last.Generation - uint64(len(out)-1-i)
	}
	return out
}

// size is about how many bytes a grant takes on the wire.
func size(g protocol.Grant) int { return 64 + 12*len(g.Extents) }
