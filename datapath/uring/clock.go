package uring

// Clock times operations of one ring that bear a mark, Op.Mark. It is called on the ring's thread, and neither blocks nor
// allocates.
type Clock interface {
	// Queued says that Submit was called, Issued that the operation goes to the kernel with the next Entered.
	Queued(mark uint32)
	Issued(mark uint32)
	// Entered says that the kernel is given what was issued.
	Entered()
	// Reaped says that completions were taken from the kernel, Completed that one of these was of the operation.
	Reaped()
	Completed(mark uint32)
}

// noClock times nothing.
type noClock struct{}

func (noClock) Queued(uint32)    {}
func (noClock) Issued(uint32)    {}
func (noClock) Entered()         {}
func (noClock) Reaped()          {}
func (noClock) Completed(uint32) {}

// clockOf is the clock of a ring.
func clockOf(o *Options, ring int) Clock {
	if o.Clock == nil {
		return noClock{}
	}
	return o.Clock(ring)
}
