package daemon

import (
	"bytes"
	"encoding/hex"
	"strings"
	"sync"

	"lunar/iscsi"
	"lunar/iscsi/scsi"
)

// directory knows which units are exported where, and who may reach them. EXTENDED COPY asks it, on
// lanes, for units beyond those of its own target.
type directory struct {
	mu       sync.RWMutex // guards what follows; held for a look only
	units    map[string]*entry
	policies map[string]*iscsi.Policy // by target
}

// entry is an exported unit.
type entry struct {
	lu      *scsi.LogicalUnit
	targets map[string]int // LUNs that lead to it
}

func newDirectory() *directory {
	return &directory{units: map[string]*entry{}, policies: map[string]*iscsi.Policy{}}
}

// add notes that a LUN of a target leads to the unit with an NAA, in hex.
func (d *directory) add(target, naa string, lu *scsi.LogicalUnit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.units[naa]
	if e == nil {
		e = &entry{lu: lu, targets: map[string]int{}}
		d.units[naa] = e
	}
	e.targets[target]++
}

// remove takes back one add.
func (d *directory) remove(target, naa string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.units[naa]
	if e == nil {
		return
	}
	if e.targets[target]--; e.targets[target] <= 0 {
		delete(e.targets, target)
	}
	if len(e.targets) == 0 {
		delete(d.units, naa)
	}
}

// admit notes who may reach a target's units; without it nobody may. A nil policy forgets it.
func (d *directory) admit(target string, p *iscsi.Policy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.policies[target] = p; p == nil {
		delete(d.policies, target)
	}
}

// viewFrom is the directory as initiators that are logged in to a target see it.
func (d *directory) viewFrom(target string) scsi.UnitResolver { return &directoryView{d, target} }

type directoryView struct {
	directory *directory
	target    string
}

// UnitByNAA implements scsi.UnitResolver: the unit counts when a target that has it would let the
// same initiator in, and asks for no other CHAP credentials than those that it has shown.
func (v *directoryView) UnitByNAA(initiatorPort string, naa []byte) *scsi.LogicalUnit {
	initiator, _, _ := strings.Cut(initiatorPort, ",i,")
	d := v.directory
	d.mu.RLock()
	defer d.mu.RUnlock()
	e := d.units[hex.EncodeToString(naa)]
	if e == nil {
		return nil
	}
	for target := range e.targets {
		if p := d.policies[target]; p != nil && p.Allows(initiator) && covers(d.policies[v.target], p) {
			return e.lu
		}
	}
	return nil
}

// covers tells whether who logged in under one policy has shown what the other asks for.
func covers(shown, asked *iscsi.Policy) bool {
	switch {
	case asked.CHAP == nil:
		return true
	case shown == nil || shown.CHAP == nil:
		return false
	}
	return shown.CHAP.User == asked.CHAP.User && bytes.Equal(shown.CHAP.Secret, asked.CHAP.Secret)
}
