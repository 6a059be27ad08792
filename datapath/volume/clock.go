package volume

// Clock times commands of one lane, each known by a mark. It is called on the lane, and neither blocks nor allocates.
type Clock interface {
	// Take is the mark of the command whose I/O begins now, 0 for none.
	Take() uint32
	// Redirected says that a command, or a part of it, goes to the coordinator.
	Redirected(mark uint32)
}

// noClock times nothing.
type noClock struct{}

func (noClock) Take() uint32      { return 0 }
func (noClock) Redirected(uint32) {}

func makeDesks(o *Options) []desk {
	desks := make([]desk, len(o.Lanes))
	for i := range desks {
		desks[i].clock = noClock{}
		if o.Clock != nil {
			desks[i].clock = o.Clock(i)
		}
	}
	return desks
}
