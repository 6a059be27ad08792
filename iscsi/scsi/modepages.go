package scsi

import "slices"

// modeState is the changeable mode parameters of a unit, shared by all I_T nexuses; immutable.
type modeState struct {
	writeCache        bool // WCE, caching page
	descriptorSense   bool // D_SENSE, control page
	softwareProtect   bool // SWP, control page
	taskAbortedStatus bool // TAS, control page
}

func defaultModes(o *UnitOptions) *modeState { return &modeState{writeCache: !o.NoWriteCache} }

// Mode page codes (SPC-4 §7.5, SBC-3 §6.5).
const (
	pageRecovery   = 0x01
	pageCaching    = 0x08
	pageControl    = 0x0A
	pageExceptions = 0x1C
	pageAll        = 0x3F
)

// modeBit is one changeable bit: its place in the page and in modeState.
type modeBit struct {
	byte  int
	mask  byte
	value func(*modeState) *bool
}

// modePage is a mode page or subpage: either fixed bytes with changeable bits, or one that another
// part of the unit keeps.
type modePage struct {
	code, sub byte
	thin      bool // on thin units only
	fixed     []byte
	bits      []modeBit
	render    func(lu *LogicalUnit, control byte) []byte
	// apply takes a page from MODE SELECT over, or says which byte of it is bad.
	apply func(lu *LogicalUnit, page []byte) (field int, ok bool)
}

// modePages are the mode pages in the order of page 3Fh.
var modePages = []modePage{
	{code: pageRecovery, fixed: []byte{pageRecovery, 0x0A, 11: 0}},
	{code: pageCaching, fixed: []byte{pageCaching, 0x12, 19: 0}, bits: []modeBit{
		{2, 0x04, func(m *modeState) *bool { return &m.writeCache }},
	}},
	{
		// GLTSD; unrestricted reordering allowed; busy timeout unlimited.
		code:  pageControl,
		fixed: []byte{pageControl, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0},
		bits: []modeBit{
			{2, 0x04, func(m *modeState) *bool { return &m.descriptorSense }},
			{4, 0x08, func(m *modeState) *bool { return &m.softwareProtect }},
			{5, 0x40, func(m *modeState) *bool { return &m.taskAbortedStatus }},
		},
	},
	{code: pageExceptions, fixed: []byte{pageExceptions, 0x0A, 0x08, 11: 0}}, // DEXCPT
	{
		code: pageExceptions, sub: 0x02, thin: true,
		render: renderThresholds, apply: (*LogicalUnit).setThresholds,
	},
}

func renderThresholds(lu *LogicalUnit, control byte) []byte {
	switch control {
	case controlChangeable:
		return changeableThresholdPage()
	case controlDefault:
		return lu.defaultThresholdPage()
	}
	return lu.thresholdPage()
}

// asked tells whether MODE SENSE for page and sub includes p.
func (p *modePage) asked(lu *LogicalUnit, page, sub byte) bool {
	return (page == p.code || page == pageAll) && (sub == p.sub || sub == allSubpages) && (lu.opts.Thin || !p.thin)
}

// modePagesFor renders the page, or all of them, by the page control; nil: no such page.
func (lu *LogicalUnit) modePagesFor(control, page, sub byte) []byte {
	state := *lu.modes.Load()
	if control == controlDefault {
		state = *defaultModes(&lu.opts)
	}
	var out []byte
	for i := range modePages {
		p := &modePages[i]
		switch {
		case !p.asked(lu, page, sub):
		case p.render != nil:
			out = append(out, p.render(lu, control)...)
		default:
			out = append(out, p.values(&state, control == controlChangeable)...)
		}
	}
	return out
}

// values is the page with its present values or, for the changeable values, ones where MODE SELECT
// may change a bit.
func (p *modePage) values(state *modeState, changeable bool) []byte {
	out := slices.Clone(p.fixed)
	if changeable {
		clear(out[2:])
	}
	for _, b := range p.bits {
		if changeable || *b.value(state) {
			out[b.byte] |= b.mask
		}
	}
	return out
}

// modeChange is what a MODE SELECT parameter list asks for, checked.
type modeChange struct {
	state modeState
	kept  []keptPage // pages that other parts of the unit keep
}

type keptPage struct {
	page *modePage
	at   int
	data []byte
}

// parseModes checks the mode pages of a parameter list from start on.
func (lu *LogicalUnit) parseModes(list []byte, start int) (change modeChange, s sense, ok bool) {
	change.state = *lu.modes.Load()
	for at := start; at < len(list); {
		p, n, s, ok := lu.locatePage(list, at)
		if !ok {
			return change, s, false
		}
		data := list[at : at+n]
		if p.apply != nil {
			change.kept = append(change.kept, keptPage{p, at, data})
		} else if bad := p.take(&change.state, data); bad >= 0 {
			return change, senseInvalidParameter.inList(at + bad), false
		}
		at += n
	}
	return change, senseNone, true
}

// locatePage finds the page at list[at:], in which PS is reserved here, and its whole length.
func (lu *LogicalUnit) locatePage(list []byte, at int) (p *modePage, n int, s sense, ok bool) {
	header, sub := 2, byte(0)
	if list[at]&0x40 != 0 { // SPF
		header = 4
	}
	if at+header > len(list) {
		return nil, 0, senseParameterLength, false
	}
	length := int(list[at+1])
	if header == 4 {
		sub, length = list[at+1], be16(list[at+2:])
	}
	i := slices.IndexFunc(modePages, func(p modePage) bool {
		return p.code == list[at]&0x3F && p.sub == sub && (sub != 0) == (header == 4) && (lu.opts.Thin || !p.thin)
	})
	n = header + length
	switch {
	case i < 0:
		return nil, 0, senseInvalidParameter.inListBit(at, 5), false
	case n != modePages[i].size(lu):
		return nil, 0, senseInvalidParameter.inList(at + header - 1), false
	case at+n > len(list):
		return nil, 0, senseParameterLength, false
	}
	return &modePages[i], n, senseNone, true
}

func (p *modePage) size(lu *LogicalUnit) int {
	if p.render != nil {
		return len(p.render(lu, controlCurrent))
	}
	return len(p.fixed)
}

// take takes the changeable bits of a page over; it returns the index of a byte which tries to
// change anything else, or -1.
func (p *modePage) take(m *modeState, page []byte) int {
	for _, b := range p.bits {
		*b.value(m) = page[b.byte]&b.mask != 0
	}
	want := p.values(m, false)
	for j := 2; j < len(page); j++ {
		if page[j] != want[j] {
			return j
		}
	}
	return -1
}
