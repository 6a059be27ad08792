package protocol

import (
	"fmt"
	"maps"
	"slices"
)

// Term is what a coordinator knows of the nodes of its volume. It holds the barrier: while a node may
// still hold layouts of an older epoch, no change runs, because nobody can recall them. Reads,
// overwrites in place and grants of what is there need no barrier: they change no mapping, and what
// the older coordinator had granted is durable (CommitBeforeGrant).
type Term struct {
	epoch    uint64
	awaited  map[NodeID]bool   // may hold something of an older epoch
	process  map[NodeID]uint64 // incarnation that was heard last
	expelled map[NodeID]bool   // and has not come back as another process
	ended    bool
}

// NewTerm begins a term; members may hold layouts of older ones.
func NewTerm(epoch uint64, members []NodeID) *Term {
	t := &Term{epoch: epoch, awaited: map[NodeID]bool{}, process: map[NodeID]uint64{}, expelled: map[NodeID]bool{}}
	for _, node := range members {
		t.awaited[node] = true
	}
	return t
}

// Epoch is the term's number.
func (t *Term) Epoch() uint64 { return t.epoch }

// Check refuses what bears another epoch, and everything once the term has ended: EpochOrder.
func (t *Term) Check(epoch uint64) error {
	switch {
	case t.ended:
		return fmt.Errorf("term %d has ended: %w", t.epoch, ErrStale)
	case epoch != t.epoch:
		return fmt.Errorf("epoch %d in term %d: %w", epoch, t.epoch, ErrStale)
	}
	return nil
}

// Hello notes a node's process. lost is true when it is another one than before: what that held is
// gone. A process that was expelled, or is older than one that was heard, is refused.
func (t *Term) Hello(node NodeID, incarnation uint64) (lost bool, err error) {
	if err := t.Check(t.epoch); err != nil {
		return false, err
	}
	known, heard := t.process[node]
	if incarnation < known || t.expelled[node] && heard && incarnation == known {
		return false, fmt.Errorf("node %s, incarnation %d after %d: %w", node, incarnation, known, ErrStale)
	}
	t.process[node] = incarnation
	delete(t.expelled, node)
	return heard && incarnation > known, nil
}

// Admit refuses a node that was expelled until another process of it has said Hello.
func (t *Term) Admit(node NodeID) error {
	if err := t.Check(t.epoch); err != nil {
		return err
	}
	if t.expelled[node] {
		return fmt.Errorf("node %s was fenced in term %d: it has to start anew: %w", node, t.epoch, ErrStale)
	}
	return nil
}

// Acknowledge notes that a node holds nothing of an older epoch; passed is true when it was the last.
func (t *Term) Acknowledge(node NodeID, epoch uint64) (passed bool, err error) {
	if err := t.Check(epoch); err != nil {
		return false, err
	}
	if err := t.Admit(node); err != nil {
		return false, err
	}
	return t.forget(node), nil
}

// Expel notes that a node is fenced; passed is true when it was the last that the barrier waited for.
func (t *Term) Expel(node NodeID) (passed bool) {
	t.expelled[node] = true
	return t.forget(node)
}

func (t *Term) forget(node NodeID) (passed bool) {
	before := len(t.awaited)
	delete(t.awaited, node)
	return before > 0 && len(t.awaited) == 0
}

// Passed tells whether changes may run.
func (t *Term) Passed() bool { return len(t.awaited) == 0 && !t.ended }

// Awaited lists the nodes that the barrier waits for, in order.
func (t *Term) Awaited() []NodeID { return slices.Sorted(maps.Keys(t.awaited)) }

// End refuses everything from now on.
func (t *Term) End() { t.ended = true }

// Ended tells whether End was called.
func (t *Term) Ended() bool { return t.ended }
