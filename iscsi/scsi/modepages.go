package scsi

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

// modePages are the mode pages in the order of page 3Fh: what is fixed, and the changeable bits.
var modePages = []struct {
	code  byte
	fixed []byte
	bits  []modeBit
}{
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
}

// modePagesFor renders the page, or all of them, by the page control; nil: no such page.
func (lu *LogicalUnit) modePagesFor(control, page byte) []byte {
	state := *lu.modes.Load()
	if control == controlDefault {
		state = *defaultModes(&lu.opts)
	}
	var out []byte
	for i := range modePages {
		if page == modePages[i].code || page == pageAll {
			out = append(out, renderModePage(i, &state, control == controlChangeable)...)
		}
	}
	return out
}

// renderModePage is page i with its present values or, for the changeable values, ones where
// MODE SELECT may change a bit.
func renderModePage(i int, state *modeState, changeable bool) []byte {
	p := make([]byte, len(modePages[i].fixed))
	copy(p, modePages[i].fixed)
	if changeable {
		clear(p[2:])
	}
	for _, b := range modePages[i].bits {
		if changeable || *b.value(state) {
			p[b.byte] |= b.mask
		}
	}
	return p
}

// selectPages applies the mode pages of a MODE SELECT parameter list from start on; the list is
// good as a whole or changes nothing.
func (m *modeState) selectPages(list []byte, start int) (next modeState, s sense, ok bool) {
	next = *m
	for at := start; at < len(list); {
		i := findModePage(list[at])
		switch {
		case i < 0:
			return next, senseInvalidParameter.inListBit(at, 5), false
		case at+1 >= len(list):
			return next, senseParameterLength, false
		case int(list[at+1])+2 != len(modePages[i].fixed):
			return next, senseInvalidParameter.inList(at + 1), false
		case at+len(modePages[i].fixed) > len(list):
			return next, senseParameterLength, false
		}
		page := list[at : at+len(modePages[i].fixed)]
		if bad := next.selectPage(i, page); bad >= 0 {
			return next, senseInvalidParameter.inList(at + bad), false
		}
		at += len(page)
	}
	return next, senseNone, true
}

// findModePage is the index of the page with the first byte p, in which PS is reserved here; -1 if
// there is none, or if it has subpages.
func findModePage(p byte) int {
	for i := range modePages {
		if p&0x7F == modePages[i].code {
			return i
		}
	}
	return -1
}

// selectPage takes the changeable bits of a page over; it returns the index of a byte which tries
// to change anything else, or -1.
func (m *modeState) selectPage(i int, page []byte) int {
	for _, b := range modePages[i].bits {
		*b.value(m) = page[b.byte]&b.mask != 0
	}
	want := renderModePage(i, m, false)
	for j := 2; j < len(page); j++ {
		if page[j] != want[j] {
			return j
		}
	}
	return -1
}
