package scsi

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// blockSize is the logical block length in bytes.
const blockSize = 512

// UnitOptions are the properties of a LogicalUnit.
type UnitOptions struct {
	// NAA is the unit's worldwide name, 8 bytes (NAA 2h, 3h or 5h) or 16 bytes (NAA 6h): the first
	// four bits name the format. It is the same on every node and path.
	NAA []byte
	// Serial is the unit serial number, printable ASCII, at most 36 bytes.
	Serial string
	// Vendor, Product and Revision fill the INQUIRY fields, at most 8, 16 and 4 bytes.
	// Empty: LUNAR, Virtual Disk, 1.
	Vendor, Product, Revision string
	// Thin announces logical block provisioning: UNMAP, WRITE SAME with UNMAP, GET LBA STATUS.
	Thin bool
	// ReadOnly refuses every write with DATA PROTECT.
	ReadOnly bool
	// NoWriteCache starts with WCE 0: each write is durable before GOOD. Mode page 08h changes it.
	NoWriteCache bool
	// PhysicalBlock is the physical block length told in READ CAPACITY(16), 512 or 4096 bytes;
	// 0: 4096.
	PhysicalBlock int
	// Shared says that other servers present the unit too, with the same ReservationStore: every
	// change of its persistent reservations goes there, and those of SPC-2, RESERVE(6) and
	// RELEASE(6), are not supported.
	Shared bool
	// Removable announces a removable medium, which START STOP UNIT loads and ejects.
	Removable bool
}

// Validate says what is wrong with the options.
func (o *UnitOptions) Validate() error {
	switch {
	case len(o.NAA) != 8 && len(o.NAA) != 16:
		return fmt.Errorf("%w: NAA has %d bytes, want 8 or 16", ErrBadOption, len(o.NAA))
	case (o.NAA[0]>>4 == 6) != (len(o.NAA) == 16):
		return fmt.Errorf("%w: NAA %X is not of %d bytes", ErrBadOption, o.NAA[0]>>4, len(o.NAA))
	case o.Serial == "" || len(o.Serial) > 36 || !printable(o.Serial):
		return fmt.Errorf("%w: serial %q is not 1 to 36 printable ASCII characters", ErrBadOption, o.Serial)
	case len(o.Vendor) > 8 || len(o.Product) > 16 || len(o.Revision) > 4:
		return fmt.Errorf("%w: vendor, product or revision is longer than 8, 16, 4", ErrBadOption)
	case o.PhysicalBlock != 0 && o.PhysicalBlock != 512 && o.PhysicalBlock != 4096:
		return fmt.Errorf("%w: physical block of %d bytes, want 512 or 4096", ErrBadOption, o.PhysicalBlock)
	case !printable(o.Vendor + o.Product + o.Revision):
		return fmt.Errorf("%w: vendor, product or revision is not printable ASCII", ErrBadOption)
	}
	return nil
}

func (o *UnitOptions) setDefaults() {
	if o.Vendor == "" {
		o.Vendor = "LUNAR"
	}
	if o.Product == "" {
		o.Product = "Virtual Disk"
	}
	if o.Revision == "" {
		o.Revision = "1"
	}
	if o.PhysicalBlock == 0 {
		o.PhysicalBlock = 4096
	}
}

// physicalExponent is LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT.
func (o *UnitOptions) physicalExponent() byte {
	if o.PhysicalBlock == 4096 {
		return 3
	}
	return 0
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7E {
			return false
		}
	}
	return true
}

// LogicalUnit is one disk. It may be mapped in several targets at once; reservations, mode
// parameters and power state are the unit's own.
type LogicalUnit struct {
	backend Backend
	opts    UnitOptions
	modes   atomic.Pointer[modeState]
	power   atomic.Uint32 // powerActive and its like

	mu         sync.Mutex // guards itls and preventing
	itls       []*itl
	preventing map[*itl]struct{} // those which prevent medium removal

	alua         unitALUA
	reservations unitReservations
	thresholds   unitThresholds
}

// NewLogicalUnit makes a disk of b, which it uses until the caller has unmapped it everywhere and
// its last command is done.
func NewLogicalUnit(b Backend, opts UnitOptions) (*LogicalUnit, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("new logical unit: %w", err)
	}
	opts.setDefaults()
	lu := &LogicalUnit{backend: b, opts: opts, preventing: map[*itl]struct{}{}}
	lu.modes.Store(defaultModes(&opts))
	return lu, nil
}

// CapacityChanged tells every I_T nexus that Backend.Size is another than before.
func (lu *LogicalUnit) CapacityChanged() { lu.attention(attnCapacityChanged, nil) }

// blocks is the present capacity in logical blocks.
func (lu *LogicalUnit) blocks() uint64 { return uint64(lu.backend.Size()) / blockSize }

func (lu *LogicalUnit) attachNexus(it *itl) {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	lu.itls = append(lu.itls, it)
}

func (lu *LogicalUnit) detachNexus(it *itl) {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	if i := slices.Index(lu.itls, it); i >= 0 {
		lu.itls = slices.Delete(lu.itls, i, i+1)
	}
	delete(lu.preventing, it)
}

// detachMapping lets go of what the I_T nexuses that used the unit by m hold of it. Their tasks go on,
// within reach of task management.
func (lu *LogicalUnit) detachMapping(m *mapping) {
	for _, it := range lu.nexuses(func(it *itl) bool { return it.mapping == m }) {
		lu.mu.Lock()
		delete(lu.preventing, it)
		lu.mu.Unlock()
		lu.nexusLost(it)
	}
}

// nexuses lists the unit's I_T_L nexuses that match accepts, oldest first; nil means all.
func (lu *LogicalUnit) nexuses(match func(*itl) bool) []*itl {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	var out []*itl
	for _, it := range lu.itls {
		if match == nil || match(it) {
			out = append(out, it)
		}
	}
	return out
}
