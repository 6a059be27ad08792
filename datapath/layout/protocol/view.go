package protocol

import (
	"fmt"
	"slices"

	"lunar/datapath/layout"
)

// View is what a holder knows about an image at one moment. It is immutable.
type View struct {
	Layout *layout.Layout
	// Redirected sends all I/O to the coordinator, whatever the layout says.
	Redirected bool
	// Paused makes all I/O wait.
	Paused   bool
	recalled []recalled
}

// recalled is a range that I/O waits for: until a grant ends the recall, or the hold is let go.
type recalled struct {
	number uint64
	held   bool
	layout.Range
}

// NewView is the view that a first grant, of the whole image, gives.
func NewView(g Grant) (*View, error) {
	l, err := layout.New(g.Size, g.Extents)
	if err != nil {
		return nil, err
	}
	return &View{Layout: l.With(g.Epoch, g.Generation)}, nil
}

// Granted is v after g. ErrStale means that g is older than v and changes nothing.
func (v *View) Granted(g Grant) (*View, error) {
	l := v.Layout
	if g.Epoch < l.Epoch || g.Epoch == l.Epoch && g.Generation <= l.Generation {
		return v, fmt.Errorf("grant %d.%d after %d.%d: %w", g.Epoch, g.Generation, l.Epoch, l.Generation, ErrStale)
	}
	var err error
	if g.Size != l.Size() {
		if l, err = l.Resize(g.Size); err != nil {
			return v, err
		}
	}
	if l, err = l.Replace(g.Range, g.Extents); err != nil {
		return v, err
	}
	next := *v
	next.Layout = l.With(g.Epoch, g.Generation)
	next.recalled = slices.DeleteFunc(slices.Clone(v.recalled), func(r recalled) bool { return !r.held && r.number == g.Ends })
	return &next, nil
}

// Recalled is v after r. Direct I/O under way in the range has to be drained before r is answered.
func (v *View) Recalled(r Recall) (*View, error) {
	if r.Epoch < v.Layout.Epoch {
		return v, fmt.Errorf("recall of epoch %d in %d: %w", r.Epoch, v.Layout.Epoch, ErrStale)
	}
	next := *v
	next.recalled = append(slices.Clone(v.recalled), recalled{number: r.Number, Range: r.Range})
	return &next, nil
}

// Held is v with a range that I/O waits for until LetGo with the same number: a late write of this
// holder may still reach it.
func (v *View) Held(number uint64, r layout.Range) *View {
	next := *v
	next.recalled = append(slices.Clone(v.recalled), recalled{number: number, held: true, Range: r})
	return &next
}

// LetGo is v without a hold.
func (v *View) LetGo(number uint64) *View {
	next := *v
	next.recalled = slices.DeleteFunc(slices.Clone(v.recalled), func(r recalled) bool { return r.held && r.number == number })
	return &next
}

// Redirect is v with direct I/O forbidden, or allowed again.
func (v *View) Redirect(on bool) *View {
	next := *v
	next.Redirected = on
	return &next
}

// Pause is v with all I/O made to wait, or no longer.
func (v *View) Pause(on bool) *View {
	next := *v
	next.Paused = on
	return &next
}

// After is v, the first view under a new attachment, with what outlives the one before: the holds of
// late writes and what the node itself decided. The recalls of before have ended. old may be nil.
func (v *View) After(old *View) *View {
	next := *v
	if old == nil {
		return &next
	}
	next.Redirected, next.Paused = old.Redirected, old.Paused
	next.recalled = slices.Clone(v.recalled)
	for _, r := range old.recalled {
		if r.held {
			next.recalled = append(next.recalled, r)
		}
	}
	return &next
}

// Waits tells whether I/O in r has to wait: for a pause to end, or for the grant that ends a recall.
// It does not allocate.
func (v *View) Waits(r layout.Range) bool {
	if v.Paused {
		return true
	}
	for i := range v.recalled {
		if v.recalled[i].Overlaps(r) {
			return true
		}
	}
	return false
}

// Holds tells whether a late write of this holder may still reach r: no recall of it can succeed.
func (v *View) Holds(r layout.Range) bool {
	return slices.ContainsFunc(v.recalled, func(o recalled) bool { return o.held && o.Overlaps(r) })
}

// Recalls is the number of ranges that I/O waits for.
func (v *View) Recalls() int { return len(v.recalled) }

// Direct is the extent at off, and whether I/O there may be direct (or needs none: a Hole's read).
// It does not allocate.
func (v *View) Direct(off int64, write bool) (layout.Extent, bool) {
	e, ok := v.Layout.At(off)
	switch {
	case !ok || v.Redirected:
		return e, false
	case write:
		return e, e.State.Writable()
	default:
		return e, e.State.Readable() || e.State.Zero()
	}
}
