package daemon

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/wire/nbd"
)

// The bounds of what is read to tell which blocks of a backup have changed.
const (
	changeUnit  = 64 << 10 // what is told apart
	changePiece = 1 << 20  // what is read at once
	changeScan  = 64 << 20 // for one question; it is answered as far as that goes
	maxChanges  = 1 << 20  // ranges of an image; beyond that nothing more is told apart
)

// changes are where an image has changed. Ranges that had no data before may only have been allocated ahead of writes:
// what of them reads as zeroes has not changed, which is found out when a tool asks.
type changes struct {
	read func(ctx context.Context, p []byte, off int64) error

	mu  sync.Mutex // guards all, and is held while it is read
	all []coordinator.Change
}

// clip leaves out what is beyond the image's end.
func (c *changes) clip(size int64) {
	for i := range c.all {
		c.all[i].Range = c.all[i].Intersect(layout.Range{Len: size})
	}
	c.all = slices.DeleteFunc(c.all, func(x coordinator.Change) bool { return x.Len <= 0 })
}

// bytes is how much has changed at most.
func (c *changes) bytes() (sum int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.all {
		sum += x.Len
	}
	return sum
}

// marks tells what of a range has changed, as far as changeScan allows at once.
func (c *changes) marks(ctx context.Context, off, n int64, each func(nbd.Mark) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	end, err := c.settle(ctx, off, off+n)
	if err != nil {
		return err
	}
	marks(c.all, off, end, each)
	return nil
}

// settle reads what is not sure from off to end, and returns how far it has come.
func (c *changes) settle(ctx context.Context, off, end int64) (int64, error) {
	for left := int64(changeScan); ; {
		i := slices.IndexFunc(c.all[c.from(off):], func(x coordinator.Change) bool { return x.New })
		if i < 0 || len(c.all) >= maxChanges {
			return end, nil
		}
		i += c.from(off)
		at := max(c.all[i].Off, off/changeUnit*changeUnit)
		if at >= end {
			return end, nil
		}
		if left <= 0 {
			return at, nil
		}
		r := layout.Range{Off: at, Len: min(changePiece-at%changePiece, c.all[i].End()-at)}
		found, err := c.look(ctx, r)
		if err != nil {
			return 0, err
		}
		c.replace(i, r, found)
		left -= r.Len
	}
}

// from is the place of the first range that ends after off.
func (c *changes) from(off int64) int {
	i, _ := slices.BinarySearchFunc(c.all, off, func(x coordinator.Change, at int64) int {
		if x.End() <= at {
			return -1
		}
		return 1
	})
	return i
}

// look reads r, and returns the parts of it that have data.
func (c *changes) look(ctx context.Context, r layout.Range) (found []coordinator.Change, err error) {
	p := make([]byte, r.Len)
	if err := c.read(ctx, p, r.Off); err != nil {
		return nil, err
	}
	for off := r.Off; off < r.End(); {
		n := min(changeUnit-off%changeUnit, r.End()-off)
		if data := p[off-r.Off:][:n]; !zero(data) {
			found = join(found, layout.Range{Off: off, Len: n})
		}
		off += n
	}
	return found, nil
}

func join(all []coordinator.Change, r layout.Range) []coordinator.Change {
	if n := len(all); n > 0 && all[n-1].End() == r.Off {
		all[n-1].Len += r.Len
		return all
	}
	return append(all, coordinator.Change{Range: r})
}

var zeroUnit [changeUnit]byte

func zero(p []byte) bool { return bytes.Equal(p, zeroUnit[:len(p)]) }

// replace puts what was found in the place of r, a part of the range i.
func (c *changes) replace(i int, r layout.Range, found []coordinator.Change) {
	x := c.all[i]
	var in []coordinator.Change
	if x.Off < r.Off {
		in = append(in, coordinator.Change{Range: layout.Range{Off: x.Off, Len: r.Off - x.Off}, New: true})
	}
	in = append(in, found...)
	if r.End() < x.End() {
		in = append(in, coordinator.Change{Range: layout.Range{Off: r.End(), Len: x.End() - r.End()}, New: true})
	}
	c.all = slices.Replace(c.all, i, i+1, in...)
}

// marks tells of the bytes from off to end which lie in ranges, which are in order and apart.
func marks(ranges []coordinator.Change, off, end int64, each func(nbd.Mark) bool) {
	c := changes{all: ranges}
	for i := c.from(off); off < end; i++ {
		next := layout.Range{Off: end}
		if i < len(ranges) {
			next = ranges[i].Range
		}
		if gap := min(next.Off, end) - off; gap > 0 {
			if !each(nbd.Mark{Len: gap}) {
				return
			}
			off += gap
		}
		if n := min(next.End(), end) - off; n > 0 {
			if !each(nbd.Mark{Len: n, Marked: true}) {
				return
			}
			off += n
		}
	}
}
