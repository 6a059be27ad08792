package volume

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// swaps gives COMPARE AND WRITEs their slots.
type swaps struct {
	mu     sync.Mutex // guards what follows
	serial uint64
	slots  uint32   // that there were ever at once
	free   []uint32 // of these
}

// newSwaps numbers from the time since boot: a volume that a process opens again goes on above the serials before.
func newSwaps() (*swaps, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("clock: %w", err)
	}
	return &swaps{serial: uint64(time.Duration(now.Nano()))}, nil
}

// begin names a COMPARE AND WRITE; the caller calls end when it is over. ErrBusy when too many are under way.
func (s *swaps) begin(node protocol.NodeID) (*swap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.slots
	switch n := len(s.free); {
	case n > 0:
		slot, s.free = s.free[n-1], s.free[:n-1]
	case slot == protocol.MaxSlots:
		return nil, ErrBusy
	default:
		s.slots++
	}
	s.serial++
	return &swap{once: protocol.Once{Node: node, Slot: slot, Serial: s.serial}}, nil
}

func (s *swaps) end(w *swap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, w.once.Slot)
}

// swap is a COMPARE AND WRITE on its way.
type swap struct {
	once     protocol.Once
	doubtful uint64 // epoch in which a try may have taken effect; 0: none
}

// try makes the call. Once: in the term of a doubtful try the coordinator knows what came of it; in a later one
// nobody does, and it is not made again (ErrOutcome).
func (s *swap) try(call protocol.Call, do func(protocol.Call) error) error {
	if s.doubtful != 0 && s.doubtful != call.Epoch {
		return fmt.Errorf("the coordinator of term %d has gone: %w", s.doubtful, protocol.ErrOutcome)
	}
	call.Once, call.Retry = s.once, s.doubtful != 0
	err := do(call)
	if err != nil && !errors.Is(err, protocol.ErrStale) && !errors.Is(err, protocol.ErrUnsent) {
		s.doubtful = call.Epoch
	}
	return err
}
