package scsi

import (
	"math/bits"
	"sync/atomic"
)

// attention is a unit attention condition; the value is its place in the order of report, highest
// precedence first (SPC-4 §4.5.7, SAM-5 §5.14).
type attention uint8

const (
	attnPowerOn attention = iota
	attnReset
	attnNexusLoss
	attnCommandsCleared
	attnLUNsChanged
	attnInquiryChanged
	attnCapacityChanged
	attnModeChanged
	attnReservationsPreempted
	attnReservationsReleased
	attnRegistrationsPreempted
	attnALUAChanged
	attnThreshold
	attentionCount
)

// attentionCodes are the additional sense codes of the unit attentions.
var attentionCodes = [attentionCount]uint16{
	attnPowerOn:                0x2900,
	attnReset:                  0x2903,
	attnNexusLoss:              0x2907,
	attnCommandsCleared:        0x2F00,
	attnLUNsChanged:            0x3F0E,
	attnInquiryChanged:         0x3F03,
	attnCapacityChanged:        0x2A09,
	attnModeChanged:            0x2A01,
	attnReservationsPreempted:  0x2A03,
	attnReservationsReleased:   0x2A04,
	attnRegistrationsPreempted: 0x2A05,
	attnALUAChanged:            0x2A06,
	attnThreshold:              0x3807,
}

// attentionSet holds the pending unit attentions of one I_T_L nexus; it may be used from any
// goroutine. Each condition is pending once however often it was raised.
type attentionSet struct{ pending atomic.Uint32 }

// raise makes a pending.
func (s *attentionSet) raise(a attention) { s.pending.Or(1 << a) }

func (s *attentionSet) clear(a attention) { s.pending.And(^(uint32(1) << a)) }

func (s *attentionSet) any() bool { return s.pending.Load() != 0 }

// first is the pending attention to report next; ok is false if there is none.
func (s *attentionSet) first() (a attention, ok bool) {
	p := s.pending.Load()
	return attention(bits.TrailingZeros32(p)), p != 0
}

// take removes the attention to report next.
func (s *attentionSet) take() (a attention, ok bool) {
	if a, ok = s.first(); ok {
		s.clear(a)
	}
	return a, ok
}

func (a attention) sense() sense { return sense{key: unitAttention, code: attentionCodes[a]} }

// attention raises a for every I_T nexus of the unit that match accepts; nil means all.
func (lu *LogicalUnit) attention(a attention, match func(*itl) bool) {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	for _, it := range lu.itls {
		if match == nil || match(it) {
			it.attentions.raise(a)
		}
	}
}

// except matches every I_T_L nexus but it.
func except(it *itl) func(*itl) bool {
	return func(other *itl) bool { return other != it }
}
