package coordinator

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// tries has the last COMPARE AND WRITE of each slot of each node, MaxSlots a node: Once. A node's go when another
// process of it says Hello, and when it is expelled.
type tries struct {
	mu    sync.Mutex // guards nodes
	nodes map[protocol.NodeID]map[uint32]*try
}

// try is one COMPARE AND WRITE. Its owner closes done; until then the other fields are the owner's.
type try struct {
	serial     uint64
	done       chan struct{}
	decided    bool // compared, and perhaps written: it is not done again
	miscompare int
	err        error
}

// begin gives the caller a try to execute and close, or with again one whose result is the answer.
func (ts *tries) begin(ctx context.Context, c *Coordinator, call protocol.Call) (t *try, again bool, err error) {
	if err := c.checkEpoch(call.Epoch); err != nil {
		return nil, false, err
	}
	if call.Once.Serial == 0 {
		if call.Retry {
			return nil, false, protocol.ErrOutcome
		}
		return &try{done: make(chan struct{})}, false, nil
	}
	if call.Once.Slot >= protocol.MaxSlots {
		return nil, false, fmt.Errorf("slot %d of %d: %w", call.Once.Slot, protocol.MaxSlots, unix.EINVAL)
	}
	for {
		if err := c.admit(call.Once.Node); err != nil {
			return nil, false, err
		}
		t, own, err := ts.take(call.Once)
		if own || err != nil {
			return t, false, err
		}
		select {
		case <-t.done:
		case <-ctx.Done():
			return nil, false, fmt.Errorf("wait for an earlier try: %w: %w", unix.ETIMEDOUT, ctx.Err())
		}
		if t.decided {
			return t, true, nil
		}
		ts.remove(call.Once, t)
	}
}

// take is the try that o names: the caller's own when there was none.
func (ts *tries) take(o protocol.Once) (t *try, own bool, err error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	slots := ts.nodes[o.Node]
	if slots == nil {
		slots = map[uint32]*try{}
		ts.nodes[o.Node] = slots
	}
	t = slots[o.Slot]
	switch {
	case t == nil || t.serial < o.Serial:
		t = &try{serial: o.Serial, done: make(chan struct{})}
		slots[o.Slot] = t
		return t, true, nil
	case t.serial > o.Serial:
		return nil, false, fmt.Errorf("serial %d after %d: %w", o.Serial, t.serial, ErrStaleEpoch)
	}
	return t, false, nil
}

// remove forgets a try that decided nothing.
func (ts *tries) remove(o protocol.Once, t *try) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.nodes[o.Node][o.Slot] == t {
		delete(ts.nodes[o.Node], o.Slot)
	}
}

// forget drops a node's.
func (ts *tries) forget(node protocol.NodeID) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.nodes, node)
}
