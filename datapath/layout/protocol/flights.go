package protocol

import "lunar/datapath/layout"

// Flight is one direct I/O under way. Its owner embeds it and reuses it after End.
type Flight struct {
	layout.Range
	next, prev *Flight
	seq        uint64
}

// Flights are the direct I/Os under way on one lane. It belongs to the lane's thread. Begin and End
// do not allocate.
type Flights struct {
	root   Flight // of the ring of those under way
	seq    uint64
	count  int
	drains []*drain
}

// drain waits for the I/Os in a range that began before it.
type drain struct {
	layout.Range
	before uint64
	left   int
	done   func()
}

// Begin counts f in, before it is submitted.
func (fs *Flights) Begin(f *Flight, r layout.Range) {
	if fs.root.next == nil {
		fs.root.next, fs.root.prev = &fs.root, &fs.root
	}
	fs.seq++
	fs.count++
	f.Range, f.seq = r, fs.seq
	f.prev, f.next = fs.root.prev, &fs.root
	f.prev.next, fs.root.prev = f, f
}

// End counts f out, and answers the drains that waited for it alone.
func (fs *Flights) End(f *Flight) {
	f.prev.next, f.next.prev = f.next, f.prev
	f.prev, f.next = nil, nil
	fs.count--
	if len(fs.drains) > 0 {
		fs.settle(f)
	}
}

func (fs *Flights) settle(f *Flight) {
	var finished []*drain
	kept := fs.drains[:0]
	for _, d := range fs.drains {
		if f.seq <= d.before && d.Overlaps(f.Range) {
			d.left--
		}
		if d.left > 0 {
			kept = append(kept, d)
		} else {
			finished = append(finished, d)
		}
	}
	clear(fs.drains[len(kept):])
	fs.drains = kept
	for _, d := range finished {
		d.done()
	}
}

// Drain calls done, once, when every I/O in r that is under way now has ended: at once if none is.
func (fs *Flights) Drain(r layout.Range, done func()) {
	d := &drain{Range: r, before: fs.seq, done: done}
	for f := fs.root.next; f != nil && f != &fs.root; f = f.next {
		if f.Overlaps(r) {
			d.left++
		}
	}
	if d.left == 0 {
		done()
		return
	}
	fs.drains = append(fs.drains, d)
}

// Count is the number of I/Os under way.
func (fs *Flights) Count() int { return fs.count }
