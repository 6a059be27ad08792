package nbd

import (
	"sync/atomic"

	"lunar/datapath/layout/protocol"
)

// aloneFor is how many requests in a row a server has found alone before it takes to the blocking way.
// That is faster for one request at a time, since a thread that blocks spares two wake-ups; with more of
// them its threads take the processors from the Carrier's. So the way is not chosen for each request.
const aloneFor = 64

// crowd tells whether a server's reads and writes come one at a time.
type crowd struct {
	under atomic.Int32 // requests that are executed
	alone atomic.Int32
}

// lonely notes that requests begin, counted in by now.
func (c *crowd) lonely() bool {
	if c.under.Load() > 1 {
		if c.alone.Load() != 0 {
			c.alone.Store(0)
		}
		return false
	}
	return c.alone.Add(1) > aloneFor
}

// collect keeps a read or write for the Carrier, with others that have arrived by now.
func (c *serverConn) collect(op *operation) {
	op.transfer = protocol.Transfer{Buf: op.data(), Off: int64(op.off), Write: op.command == cmdWrite, FUA: op.flags&cmdFUA != 0,
		Caller: op, Executor: op.transfer.Executor}
	c.batch = append(c.batch, &op.transfer)
}

// depart starts what was collected. It has to come before the reader waits for anything.
func (c *serverConn) depart() {
	if len(c.batch) == 0 {
		return
	}
	n := int32(len(c.batch))
	c.running.Add(len(c.batch))
	c.srv.crowd.under.Add(n)
	rest := c.batch
	if c.ctx.Err() == nil && !c.srv.crowd.lonely() {
		rest = c.carrier.Start(c.batch)
	}
	for _, t := range rest {
		c.delegate(t.Caller.(*operation)) //nolint:errcheck // collect set it
	}
	c.batch = c.batch[:0]
}

// carried answers what the Carrier has ended; what it did not do goes the blocking way. It does not block.
func (c *serverConn) carried(batch []*protocol.Transfer) {
	n := 0
	for _, t := range batch {
		op := t.Caller.(*operation) //nolint:errcheck // collect set it
		if !t.Done {
			c.delegate(op)
			continue
		}
		c.outbatch = append(c.outbatch, op)
		n++
	}
	c.srv.crowd.under.Add(int32(-n))
	c.out.post(c.outbatch)
	clear(c.outbatch)
	c.outbatch = c.outbatch[:0]
	c.running.Add(-n) // last: then the connection may end
}
