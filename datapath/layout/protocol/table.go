package protocol

import (
	"slices"

	"lunar/datapath/layout"
)

// Everywhere is a range that overlaps all of an image, of any size.
var Everywhere = layout.Range{Off: 0, Len: layout.MaxSize}

// Op is one operation of the coordinator on a range of an image. Its fields are the Table's after
// Begin, except for Range and Change.
type Op struct {
	Range layout.Range
	// Change marks an operation that frees, moves, shares or allocates blocks, or must be atomic:
	// it has its range alone, and every holder returns the range first. Others share their ranges.
	Change bool

	Number   uint64     // of its recall, for a change
	admitted bool       // it has its range
	awaited  []HolderID // holders that have not returned the range
}

// HolderID tells the holders of one image apart.
type HolderID uint32

// Table orders the operations on one image. The zero value has no holder.
type Table struct {
	Epoch      uint64
	generation uint64
	recalls    uint64
	holders    []HolderID
	ops        []*Op // in order of arrival
	kept       []kept
}

// Join adds a holder. The caller grants it the whole image under an admitted Op over Everywhere.
func (t *Table) Join(h HolderID) { t.holders = append(t.holders, h) }

// Leave removes a holder that holds nothing any more, and says which operations may run now.
func (t *Table) Leave(h HolderID) (runnable []*Op) {
	t.holders = slices.DeleteFunc(t.holders, func(o HolderID) bool { return o == h })
	for _, op := range t.ops {
		if op.admitted && t.forget(op, h) {
			runnable = append(runnable, op)
		}
	}
	return runnable
}

// Holders is the number of holders.
func (t *Table) Holders() int { return len(t.holders) }

// NextGeneration numbers a grant.
func (t *Table) NextGeneration() uint64 {
	t.generation++
	return t.generation
}

// Begin queues op and returns the operations that got their range by that: op, or none.
func (t *Table) Begin(op *Op) (admitted []*Op) {
	t.ops = append(t.ops, op)
	return t.admit()
}

// admit gives ranges out, oldest operation first, so that none starves.
func (t *Table) admit() (admitted []*Op) {
	for i, op := range t.ops {
		if op.admitted || slices.ContainsFunc(t.ops[:i], op.conflicts) {
			continue
		}
		op.admitted = true
		if op.Change {
			t.recalls++
			op.Number = t.recalls
			if !t.Kept(op.Range) {
				op.awaited = slices.Clone(t.holders)
			}
		}
		admitted = append(admitted, op)
	}
	return admitted
}

func (op *Op) conflicts(o *Op) bool {
	return (op.Change || o.Change) && op.Range.Overlaps(o.Range)
}

// Awaited lists the holders that op's range must be recalled from before it may run.
// It is the caller's own list.
func (op *Op) Awaited() []HolderID { return slices.Clone(op.awaited) }

// Runnable tells whether op may run: it has its range, and every holder has returned it.
func (op *Op) Runnable() bool { return op.admitted && len(op.awaited) == 0 }

// Returned notes that a holder has returned the range of op, and tells whether op may run by that.
func (t *Table) Returned(op *Op, h HolderID) bool { return t.forget(op, h) }

func (t *Table) forget(op *Op, h HolderID) (runnable bool) {
	before := len(op.awaited)
	op.awaited = slices.DeleteFunc(op.awaited, func(o HolderID) bool { return o == h })
	return before > 0 && len(op.awaited) == 0
}

// End takes op out, run or given up, and returns the operations that got their range by that.
func (t *Table) End(op *Op) (admitted []*Op) {
	t.ops = slices.DeleteFunc(t.ops, func(o *Op) bool { return o == op })
	return t.admit()
}
