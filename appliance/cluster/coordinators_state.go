package cluster

import (
	"errors"
	"fmt"
	"time"
)

// TermState is how far a coordinator's term has come.
type TermState string

// The states, in their order. A term that is Elected has touched nothing; from Fenced on it may have
// the volume mounted.
const (
	StateElected TermState = "elected" // won; Previous, if any, is still to be fenced
	StateFenced  TermState = "fenced"  // Previous is proven out; mounting is allowed
	StateMounted TermState = "mounted" // the file system is mounted; holders of older layouts are awaited
	StateOpen    TermState = "open"    // every node has acknowledged the term
	StateClosing TermState = "closing" // handing over; unmounting
)

var (
	// ErrTermOver says that the term is another's, or nobody's, by now: stop, and touch nothing.
	ErrTermOver = errors.New("the coordinator's term is over")
	// ErrTermState says that a step was taken out of order, which is a bug of the caller.
	ErrTermState = errors.New("the coordinator's term is not in the state for this")
	// ErrNotEligible says that a node cannot coordinate a volume now.
	ErrNotEligible = errors.New("cannot be the coordinator")
)

// Coordinator is the holder of a volume's seat. Its key lives as long as the holder's lease.
type Coordinator struct {
	Node        string    `json:"node"`
	Incarnation uint64    `json:"incarnation"`
	Epoch       uint64    `json:"epoch"`
	State       TermState `json:"state"`
}

// Party names one incarnation of a node that may have a volume mounted.
type Party struct {
	Node        string        `json:"node"`
	Incarnation uint64        `json:"incarnation"`
	Epoch       uint64        `json:"epoch"`
	TTL         time.Duration `json:"ttl"` // of its session
}

// Order asks the term of an epoch to hand the volume over.
type Order struct {
	To    string `json:"to,omitempty"` // empty: to whoever is best
	Epoch uint64 `json:"epoch"`
}

// Succession is what outlives a coordinator's lease.
type Succession struct {
	Epoch    uint64 `json:"epoch"`              // of the last term
	Previous *Party `json:"previous,omitempty"` // must be fenced before a mount, unless it is the term's own
	Next     string `json:"next,omitempty"`     // who should win
	Order    *Order `json:"order,omitempty"`
	Released uint64 `json:"released,omitempty"` // epoch of the last term that ended in order
	Reason   string `json:"reason,omitempty"`   // why the last term ended, if it was ended
}

// Seat is all that is known of a volume's coordination.
type Seat struct {
	Succession
	Volume      string       // ID
	Term        int64        // CreateRevision of the coordinator's key; 0: vacant
	Coordinator *Coordinator // nil: vacant
}

// heldBy tells whether one incarnation of a node has the seat.
func (s *Seat) heldBy(node string, incarnation uint64) bool {
	return s.Coordinator != nil && s.Coordinator.Node == node && s.Coordinator.Incarnation == incarnation
}

// win gives a vacant seat to p under the next epoch; floor is an epoch that was used already.
func (s Seat) win(p Party, floor uint64) (Seat, error) {
	if s.Coordinator != nil {
		return s, fmt.Errorf("%w: node %s coordinates it", ErrInUse, s.Coordinator.Node)
	}
	s.Epoch = max(s.Epoch, floor) + 1
	s.Next, s.Order, s.Reason = "", nil, ""
	s.Coordinator = &Coordinator{Node: p.Node, Incarnation: p.Incarnation, Epoch: s.Epoch, State: StateElected}
	return s, nil
}

// steps are the ways from state to state; closing is reached from any state that may be mounted.
var steps = map[TermState][]TermState{
	StateElected: {StateFenced},
	StateFenced:  {StateMounted, StateClosing},
	StateMounted: {StateOpen, StateClosing},
	StateOpen:    {StateClosing},
}

// advance takes the holder's term to the state to. With StateFenced the holder becomes the one that
// a successor has to fence.
func (s Seat) advance(to TermState, holder Party) (Seat, error) {
	from := s.Coordinator.State
	if from == to {
		return s, nil
	}
	allowed := false
	for _, next := range steps[from] {
		allowed = allowed || next == to
	}
	if !allowed {
		return s, fmt.Errorf("%w: from %s to %s", ErrTermState, from, to)
	}
	if to == StateFenced {
		s.Previous = &holder
	}
	c := *s.Coordinator
	c.State = to
	s.Coordinator = &c
	return s, nil
}

// release vacates the seat in order: nothing of the term reaches the LUN any more. A term that is
// only elected leaves whom it should have fenced to the next one.
func (s Seat) release(next string) (Seat, error) {
	switch s.Coordinator.State {
	case StateElected:
	case StateClosing:
		s.Previous = nil
	default:
		return s, fmt.Errorf("%w: a term that is %s closes first", ErrTermState, s.Coordinator.State)
	}
	if next == "" && s.Order != nil {
		next = s.Order.To
	}
	s.Released, s.Next = s.Coordinator.Epoch, next
	s.Order, s.Coordinator, s.Term = nil, nil, 0
	return s, nil
}

// evict vacates the seat while its holder may still be at work: Previous stays.
func (s Seat) evict(reason string) Seat {
	s.Order, s.Coordinator, s.Term, s.Reason = nil, nil, 0, reason
	return s
}
