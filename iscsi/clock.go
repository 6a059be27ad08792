package iscsi

// Clock times the commands of one lane. It is called on the lane, and neither blocks nor allocates. A mark names a command
// that is timed; 0 is one that is not.
type Clock interface {
	// Now is the time at which bytes came, 0 while nothing is timed.
	Now() int64
	// Open is the number under which the commands of an initiator to a LUN of a target are counted, until Close. The
	// LUN is as in the PDU.
	Open(initiator, target string, lun uint64) (series uint32)
	Close(series uint32)
	// Begin marks a command whose header came at received and has been decoded; waits: for data from the initiator.
	Begin(series uint32, received int64, cdb *[16]byte, bytes int, waits bool) (mark uint32)
	// Start says that all its data is here and Execute is called next, Left that Execute has returned.
	Start(mark uint32)
	Left()
	// Executed says that the device server is done with it.
	Executed(mark uint32, status uint8)
	// Sent says that the answers that are given back until Resumed are in the socket.
	Sent()
	Resumed()
	// End says that the command is over, answered or not.
	End(mark uint32)
}

// noClock times nothing.
type noClock struct{}

func (noClock) Now() int64                                       { return 0 }
func (noClock) Open(string, string, uint64) uint32               { return 0 }
func (noClock) Close(uint32)                                     {}
func (noClock) Begin(uint32, int64, *[16]byte, int, bool) uint32 { return 0 }
func (noClock) Start(uint32)                                     {}
func (noClock) Left()                                            {}
func (noClock) Executed(uint32, uint8)                           {}
func (noClock) Sent()                                            {}
func (noClock) Resumed()                                         {}
func (noClock) End(uint32)                                       {}

// timed is what a connection remembers for the clock.
type timed struct {
	arrived int64 // when bytes last came
	lun     uint64
	last    uint32            // the series of lun
	series  map[uint64]uint32 // by LUN
}

// mark begins to time a command.
func (c *conn) mark(t *task) {
	if c.timed.arrived != 0 {
		t.mark = c.reactor.clock.Begin(c.seriesOf(t.cmd.LUN), c.timed.arrived, &t.cmd.CDB, t.need, t.out.want > 0)
	}
}

func (c *conn) seriesOf(lun uint64) uint32 {
	w := &c.timed
	if w.last != 0 && w.lun == lun {
		return w.last
	}
	n, known := w.series[lun]
	if !known {
		if w.series == nil {
			w.series = map[uint64]uint32{}
		}
		n = c.reactor.clock.Open(c.session.key.initiator, c.session.key.target, lun)
		w.series[lun] = n
	}
	w.lun, w.last = lun, n
	return n
}

// endTimed closes what seriesOf has opened.
func (c *conn) endTimed() {
	for _, n := range c.timed.series {
		c.reactor.clock.Close(n)
	}
	c.timed = timed{}
}
