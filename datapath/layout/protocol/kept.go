package protocol

import (
	"slices"
	"time"

	"lunar/datapath/layout"
)

// MaxKept bounds the ranges of an image that its coordinator keeps for itself.
const MaxKept = 64

// kept is a range that no holder has, because COMPARE AND WRITE is used there.
type kept struct {
	layout.Range
	used time.Time
}

// Keep lets the coordinator alone have r from now on: grants withhold it, and changes recall nothing
// there. Atomic: it is called under a Change on r that may run. Let go of it with Release.
func (t *Table) Keep(r layout.Range, now time.Time) {
	for i := range t.kept {
		if t.kept[i].Contains(r) {
			t.kept[i].used = now
			return
		}
	}
	t.kept = slices.DeleteFunc(t.kept, func(k kept) bool { return r.Contains(k.Range) })
	t.kept = append(t.kept, kept{r, now})
}

// Kept tells whether the coordinator keeps all of r.
func (t *Table) Kept(r layout.Range) bool {
	for at := r.Off; at < r.End(); {
		i := slices.IndexFunc(t.kept, func(k kept) bool { return k.Off <= at && at < k.End() })
		if i < 0 {
			return false
		}
		at = t.kept[i].End()
	}
	return true
}

// Quiet is a range to let go of: the one that was not used for longest, when that is since before or
// there are more than MaxKept.
func (t *Table) Quiet(before time.Time) (r layout.Range, ok bool) {
	oldest, ok := t.oldest()
	if !ok || len(t.kept) <= MaxKept && oldest.used.After(before) {
		return r, false
	}
	return oldest.Range, true
}

// Oldest tells when the range that was not used for longest was used; ok is false when none is kept.
func (t *Table) Oldest() (used time.Time, ok bool) {
	k, ok := t.oldest()
	return k.used, ok
}

func (t *Table) oldest() (k kept, ok bool) {
	if len(t.kept) == 0 {
		return k, false
	}
	return slices.MinFunc(t.kept, func(a, b kept) int { return a.used.Compare(b.used) }), true
}

// Release ends Keep of r, unless it was used after before and there is room; ok tells whether. It is
// called under an Op on r that has it; the caller then grants r.
func (t *Table) Release(r layout.Range, before time.Time) (ok bool) {
	i := slices.IndexFunc(t.kept, func(k kept) bool { return k.Range == r })
	if i < 0 || t.kept[i].used.After(before) && len(t.kept) <= MaxKept {
		return false
	}
	t.kept = slices.Delete(t.kept, i, i+1)
	return true
}

// Grantable is extents, in order, without what the coordinator keeps.
func (t *Table) Grantable(extents []layout.Extent) []layout.Extent {
	if len(t.kept) == 0 {
		return extents
	}
	ranges := slices.Clone(t.kept)
	slices.SortFunc(ranges, func(a, b kept) int { return int(min(1, max(-1, a.Off-b.Off))) })
	var out []layout.Extent
	add := func(e layout.Extent) {
		if e.Len > 0 {
			out = append(out, e)
		}
	}
	for _, e := range extents {
		for _, k := range ranges {
			if k.Overlaps(layout.Range{Off: e.FileOff, Len: e.Len}) {
				add(e.Clip(e.FileOff, k.Off))
				own := e.Clip(k.Off, k.End())
				add(layout.Extent{FileOff: own.FileOff, Len: own.Len, State: layout.Withheld})
				e = e.Clip(own.End(), e.End())
			}
			if e.Len <= 0 {
				break
			}
		}
		add(e)
	}
	return out
}
