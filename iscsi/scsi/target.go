package scsi

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// Errors of the administrative calls.
var (
	ErrLUNInUse      = errors.New("LUN is in use")
	ErrLUNNotMapped  = errors.New("LUN is not mapped")
	ErrLUNOutOfRange = errors.New("LUN is beyond 16383")
	ErrBadOption     = errors.New("bad option")
)

// MaxLUN is the highest LUN of flat space addressing (SAM-5 §4.7.7.3).
const MaxLUN = 1<<14 - 1

// Buffers is the host's pool of aligned buffers. It is called on the lanes and does not block.
type Buffers interface {
	// Get returns n bytes (at most MaxData), content undefined; nil when the pool has none left.
	Get(n int) []byte
	// Put takes back a buffer that Get returned.
	Put(p []byte)
}

// heapBuffers is the pool of a Target that was given none.
type heapBuffers struct{}

func (heapBuffers) Get(n int) []byte { return make([]byte, n) }
func (heapBuffers) Put([]byte)       {}

// TargetOptions are the properties of a Target. The zero value is usable on a single lane.
type TargetOptions struct {
	// Buffers lends memory to commands that need more than the transport's buffer; nil: the heap.
	Buffers Buffers
	// Post runs fn on a lane, from any goroutine; it fails when the lane has closed. nil: there is
	// one lane only.
	Post func(lane int, fn func()) error
	Log  *slog.Logger // nil: discarded
	// Units finds the units of other targets that EXTENDED COPY names; nil: this target's only.
	Units        UnitResolver
	Reservations ReservationOptions
}

func (o *TargetOptions) setDefaults() {
	if o.Buffers == nil {
		o.Buffers = heapBuffers{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Post == nil {
		o.Post = func(_ int, fn func()) error { fn(); return nil }
	}
}

// mapping is one LUN of a target. Each Map makes a new one, so a nexus sees by the pointer that
// its state of an older mapping is stale.
type mapping struct {
	lun uint16
	lu  *LogicalUnit
}

// lunMap is immutable; byLUN is indexed by LUN and nil where there is none.
type lunMap struct {
	byLUN []*mapping
	luns  []uint16 // ascending
}

func (m *lunMap) get(lun int) *mapping {
	if lun < len(m.byLUN) {
		return m.byLUN[lun]
	}
	return nil
}

func newLUNMap(mappings []*mapping) *lunMap {
	m := &lunMap{}
	for _, e := range mappings {
		m.luns = append(m.luns, e.lun)
	}
	slices.Sort(m.luns)
	if n := len(m.luns); n > 0 {
		m.byLUN = make([]*mapping, int(m.luns[n-1])+1)
	}
	for _, e := range mappings {
		m.byLUN[e.lun] = e
	}
	return m
}

// mappings lists the map's entries by LUN.
func (m *lunMap) mappings() []*mapping {
	out := make([]*mapping, 0, len(m.luns))
	for _, lun := range m.luns {
		out = append(out, m.byLUN[lun])
	}
	return out
}

// Target is the device server behind one iSCSI target name: its logical units and the I_T nexuses
// that use them.
type Target struct {
	name string
	opts TargetOptions
	luns atomic.Pointer[lunMap]

	mu       sync.Mutex // guards changes of luns, nexuses and unmapped
	nexuses  map[*Nexus]struct{}
	unmapped []*LogicalUnit // may still have tasks of this target's nexuses
}

// NewTarget makes a target without logical units; name is its iSCSI name.
func NewTarget(name string, opts TargetOptions) *Target {
	opts.setDefaults()
	t := &Target{name: name, opts: opts, nexuses: map[*Nexus]struct{}{}}
	t.luns.Store(newLUNMap(nil))
	return t
}

// Name is the iSCSI name that the target was made with.
func (t *Target) Name() string { return t.name }

// Map gives the logical unit a LUN; every nexus gets REPORTED LUNS DATA HAS CHANGED.
func (t *Target) Map(lun uint16, lu *LogicalUnit) error {
	if lun > MaxLUN {
		return fmt.Errorf("map LUN %d of %s: %w", lun, t.name, ErrLUNOutOfRange)
	}
	if err := lu.restoreReservations(t.opts.Reservations); err != nil {
		return fmt.Errorf("map LUN %d of %s: %w", lun, t.name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.luns.Load()
	if old.get(int(lun)) != nil {
		return fmt.Errorf("map LUN %d of %s: %w", lun, t.name, ErrLUNInUse)
	}
	t.luns.Store(newLUNMap(append(old.mappings(), &mapping{lun: lun, lu: lu})))
	t.lunsChanged()
	return nil
}

// Unmap takes a LUN away; commands in flight on it still complete.
func (t *Target) Unmap(lun uint16) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.luns.Load()
	gone := old.get(int(lun))
	if gone == nil {
		return fmt.Errorf("unmap LUN %d of %s: %w", lun, t.name, ErrLUNNotMapped)
	}
	rest := slices.DeleteFunc(old.mappings(), func(m *mapping) bool { return m == gone })
	t.luns.Store(newLUNMap(rest))
	gone.lu.detachMapping(gone)
	t.unmapped = append(slices.DeleteFunc(t.unmapped, t.forgotten), gone.lu)
	t.lunsChanged()
	return nil
}

// uses tells whether the I_T_L nexus is one of this target's.
func (t *Target) uses(it *itl) bool { return it.nexus.target == t }

// forgotten tells whether none of the target's nexuses knows the unit any more.
func (t *Target) forgotten(lu *LogicalUnit) bool { return len(lu.nexuses(t.uses)) == 0 }

// leftovers are the units that are not mapped any more and may still have tasks.
func (t *Target) leftovers() (out []*LogicalUnit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unmapped = slices.DeleteFunc(t.unmapped, t.forgotten)
	for _, lu := range t.unmapped {
		mapped := func(m *mapping) bool { return m.lu == lu }
		if !slices.Contains(out, lu) && !slices.ContainsFunc(t.luns.Load().mappings(), mapped) {
			out = append(out, lu)
		}
	}
	return out
}

// lunsChanged is called with t.mu held.
func (t *Target) lunsChanged() {
	for n := range t.nexuses {
		n.lunsChanged()
	}
}

// LUNs lists the mapped LUNs, ascending.
func (t *Target) LUNs() []uint16 { return slices.Clone(t.luns.Load().luns) }

// Unit is the logical unit behind a LUN, nil if there is none.
func (t *Target) Unit(lun uint16) *LogicalUnit {
	if m := t.luns.Load().get(int(lun)); m != nil {
		return m.lu
	}
	return nil
}
