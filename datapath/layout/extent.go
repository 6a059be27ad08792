package layout

import "fmt"

// State says what a range of a file is on the device, and so how it may be reached.
type State uint8

// States. The zero value allows nothing.
const (
	Withheld  State = iota // not granted, or no plain blocks: only the coordinator may touch it
	Hole                   // no blocks: reads as zeroes
	Unwritten              // blocks that were never written: reads as zeroes
	Shared                 // blocks that other files have too: may be read, never written
	Written                // blocks of this file alone: may be read and written
	numStates
)

var stateNames = [numStates]string{"Withheld", "Hole", "Unwritten", "Shared", "Written"}

// String is the state's name.
func (s State) String() string {
	if s >= numStates {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return stateNames[s]
}

// Readable tells whether the range's blocks may be read on the device.
func (s State) Readable() bool { return s == Written || s == Shared }

// Writable tells whether the range's blocks may be written on the device.
func (s State) Writable() bool { return s == Written }

// Zero tells whether the range reads as zeroes without I/O.
func (s State) Zero() bool { return s == Hole || s == Unwritten }

// Allocated tells whether the range takes space on the device, as far as is known.
func (s State) Allocated() bool { return s >= Unwritten || s == Withheld }

// located tells whether DevOff means something.
func (s State) located() bool { return s >= Unwritten && s < numStates }

// Extent is a run of a file that lies in one piece on the device and has one state.
type Extent struct {
	FileOff int64 // where it begins in the file
	DevOff  int64 // where it begins on the device; 0 for Hole and Withheld
	Len     int64
	State   State
}

// End is the first offset of the file behind the extent.
func (e Extent) End() int64 { return e.FileOff + e.Len }

// Clip is the part of e inside [off, end) of the file; its Len is not positive when there is none.
func (e Extent) Clip(off, end int64) Extent {
	if cut := off - e.FileOff; cut > 0 {
		e.FileOff, e.Len = off, e.Len-cut
		if e.State.located() {
			e.DevOff += cut
		}
	}
	e.Len = min(e.Len, end-e.FileOff)
	return e
}

// Split cuts e at the file's offset off, which must lie inside it.
func (e Extent) Split(off int64) (head, tail Extent) {
	return e.Clip(e.FileOff, off), e.Clip(off, e.End())
}

// String is "file [off,end) state @device".
func (e Extent) String() string {
	if !e.State.located() {
		return fmt.Sprintf("[%d,%d) %v", e.FileOff, e.End(), e.State)
	}
	return fmt.Sprintf("[%d,%d) %v @%d", e.FileOff, e.End(), e.State, e.DevOff)
}

// normal gives extents that mean the same the same value.
func (e Extent) normal() Extent {
	if !e.State.located() {
		e.DevOff = 0
	}
	return e
}

// joins tells whether b, which begins where a ends, is a's continuation on the device too.
func joins(a, b Extent) bool {
	return a.State == b.State && a.End() == b.FileOff && (!a.State.located() || a.DevOff+a.Len == b.DevOff)
}

// appendMerged appends e to a run of extents, to the last of them if it continues it.
func appendMerged(run []Extent, e Extent) []Extent {
	if e.Len <= 0 {
		return run
	}
	if n := len(run); n > 0 && joins(run[n-1], e) {
		run[n-1].Len += e.Len
		return run
	}
	return append(run, e)
}

// Range is a range of bytes.
type Range struct{ Off, Len int64 }

// End is the first offset behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Overlaps tells whether r and o have a byte in common.
func (r Range) Overlaps(o Range) bool { return r.Off < o.End() && o.Off < r.End() }

// Contains tells whether all of o lies in r.
func (r Range) Contains(o Range) bool { return r.Off <= o.Off && o.End() <= r.End() }

// Intersect is what r and o have in common; its Len is 0 when there is nothing.
func (r Range) Intersect(o Range) Range {
	off := max(r.Off, o.Off)
	return Range{off, max(0, min(r.End(), o.End())-off)}
}

// Align widens r outwards to multiples of unit.
func (r Range) Align(unit int64) Range {
	off := r.Off / unit * unit
	return Range{off, (r.End()+unit-1)/unit*unit - off}
}
