package scsi

import (
	"encoding/binary"
	"sync"
)

// A threshold set is 2^thresholdExponent logical blocks, 1 MiB: the unit of THRESHOLD COUNT and of
// the logical block provisioning log page, as VPD page B2h says (SBC-3 §4.7.3.8).
const (
	thresholdExponent = 11
	thresholdSet      = blockSize << thresholdExponent
)

const (
	thresholdPageLength = 16 + 8*thresholdCount // mode page 1Ch, subpage 02h, whole
	thresholdCount      = 2
)

// threshold is a threshold descriptor of the logical block provisioning mode page (SBC-3 §6.5.8).
type threshold struct {
	enabled    bool
	resource   byte // 01h: available, 02h: used LBA mapping resource
	increasing bool // arming: reached when at or above the count, else at or below it
	count      uint32
}

const (
	resourceAvailable byte = 1
	resourceUsed      byte = 2
)

// unitThresholds is the state of the thin-provisioning thresholds of a logical unit.
type unitThresholds struct {
	mu      sync.Mutex // guards what follows
	set     bool       // by MODE SELECT, else the defaults hold
	list    [thresholdCount]threshold
	reached [thresholdCount]bool
}

// spaceSets are Backend.Space's numbers in threshold sets, the available ones rounded down.
func (lu *LogicalUnit) spaceSets() (available, used uint32) {
	usedBytes, free := lu.backend.Space()
	return thresholdSets(free), thresholdSets(usedBytes + thresholdSet - 1)
}

func thresholdSets(n int64) uint32 {
	return uint32(min(max(n, 0)/thresholdSet, 0xFFFFFFFF))
}

// defaultThresholds: warn when the volume has less left than a tenth of the unit's capacity.
func (lu *LogicalUnit) defaultThresholds() [thresholdCount]threshold {
	return [thresholdCount]threshold{
		{enabled: true, resource: resourceAvailable, count: thresholdSets(lu.backend.Size() / 10)},
		{resource: resourceUsed, increasing: true},
	}
}

// current is called with lu.thresholds.mu held.
func (lu *LogicalUnit) currentThresholds() [thresholdCount]threshold {
	if lu.thresholds.set {
		return lu.thresholds.list
	}
	return lu.defaultThresholds()
}

// CheckSpace compares the space that the Backend has left with the thresholds of a thin unit and
// raises THIN PROVISIONING SOFT THRESHOLD REACHED on every I_T nexus when one is newly reached. It
// may be called from any goroutine and does not block; call it about once a second.
func (lu *LogicalUnit) CheckSpace() {
	if !lu.opts.Thin {
		return
	}
	if lu.thresholds.crossed(lu) {
		lu.attention(attnThreshold, nil)
	}
}

func (u *unitThresholds) crossed(lu *LogicalUnit) (crossed bool) {
	available, used := lu.spaceSets()
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, t := range lu.currentThresholds() {
		reached := t.reached(available, used)
		crossed = crossed || reached && !u.reached[i]
		u.reached[i] = reached
	}
	return crossed
}

func (t threshold) reached(available, used uint32) bool {
	now := available
	if t.resource == resourceUsed {
		now = used
	}
	switch {
	case !t.enabled:
		return false
	case t.increasing:
		return now >= t.count
	}
	return now <= t.count
}

// thresholdPage is the logical block provisioning mode page (1Ch, 02h) with the current values.
func (lu *LogicalUnit) thresholdPage() []byte {
	lu.thresholds.mu.Lock()
	defer lu.thresholds.mu.Unlock()
	return encodeThresholds(lu.currentThresholds())
}

// defaultThresholdPage is the mode page with the default values.
func (lu *LogicalUnit) defaultThresholdPage() []byte { return encodeThresholds(lu.defaultThresholds()) }

// changeableThresholdPage is the mode page's mask of changeable values: ENABLED and THRESHOLD COUNT.
func changeableThresholdPage() []byte {
	p := encodeThresholds([thresholdCount]threshold{})
	for i := 16; i < len(p); i += 8 {
		p[i] = 0x80
		binary.BigEndian.PutUint32(p[i+4:], 0xFFFFFFFF)
	}
	return p
}

func encodeThresholds(list [thresholdCount]threshold) []byte {
	p := make([]byte, 16, thresholdPageLength)
	p[0], p[1] = 0x40|0x1C, 0x02
	binary.BigEndian.PutUint16(p[2:], thresholdPageLength-4)
	for _, t := range list {
		p = t.append(p)
	}
	return p
}

func (t threshold) append(p []byte) []byte {
	var flags byte
	if t.enabled {
		flags |= 0x80
	}
	if t.increasing {
		flags |= 0x01
	}
	return binary.BigEndian.AppendUint32(append(p, flags, t.resource, 0, 0), t.count)
}

// setThresholds takes the mode page of a MODE SELECT, whole; field is the first byte of the page
// that may not be what it is, ok is false then and nothing changes.
func (lu *LogicalUnit) setThresholds(page []byte) (field int, ok bool) {
	if len(page) != thresholdPageLength {
		return 2, false
	}
	lu.thresholds.mu.Lock()
	defer lu.thresholds.mu.Unlock()
	list := lu.currentThresholds()
	for i := range list {
		d := page[16+8*i:]
		list[i].enabled, list[i].count = d[0]&0x80 != 0, be32(d[4:])
	}
	for i, b := range encodeThresholds(list) {
		if page[i]&^psBit(i) != b {
			return i, false
		}
	}
	lu.thresholds.set, lu.thresholds.list = true, list
	lu.thresholds.reached = [thresholdCount]bool{}
	return 0, true
}

// psBit is the PS bit of a mode page, reserved in MODE SELECT, where it does not count.
func psBit(i int) byte {
	if i == 0 {
		return 0x80
	}
	return 0
}

// resetThresholds brings the defaults back, at a logical unit reset.
func (lu *LogicalUnit) resetThresholds() {
	lu.thresholds.mu.Lock()
	defer lu.thresholds.mu.Unlock()
	lu.thresholds.set, lu.thresholds.reached = false, [thresholdCount]bool{}
}
