package heartbeat

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Stamp reads what the kernel knows of a path, without a system call. It returns false if SetPaths did not name it,
// or after Close.
func (h *Heartbeat) Stamp(p Path, to *Stamp) bool {
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	slot, ok := h.slotOf[p]
	return ok && h.stamp(p, slot, to)
}

// Stamps appends the stamps of all paths, in no order, without a system call.
func (h *Heartbeat) Stamps(to []Stamp) []Stamp {
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	var s Stamp
	for p, slot := range h.slotOf {
		if h.stamp(p, slot, &s) {
			to = append(to, s)
		}
	}
	return to
}

func (h *Heartbeat) stamp(p Path, slot uint32, to *Stamp) bool {
	var s programSlot
	if !h.memory.read(slot, &s) {
		return false
	}
	*to = Stamp{
		Path:        p,
		Incarnation: s.Incarnation, Sequence: s.Sequence,
		Confirmed: s.Confirmed != 0, Silent: s.Silent != 0,
		FirstSeen: time.Duration(s.FirstSeen), LastBeat: time.Duration(s.LastBeat),
		LastAnswer: time.Duration(s.LastAnswer), Daemon: time.Duration(s.Daemon), LastSent: time.Duration(s.LastSent),
		Beats: s.Beats, Answers: s.Answers, Sent: s.Sent,
		Gaps: s.Gaps, Reordered: s.Reordered, Duplicates: s.Duplicates, Replayed: s.Replayed,
		Unsolicited: s.Unsolicited, Forged: s.Forged, Restarts: s.Restarts,
		Jitter: time.Duration(s.Jitter / 16), LastRTT: time.Duration(s.LastRtt), MinRTT: time.Duration(s.MinRtt),
		RTT: s.Rtt, Source: sourceOf(&s),
	}
	return true
}

// sourceOf has the words in the order of the packet's bytes.
func sourceOf(s *programSlot) netip.Addr {
	if s.LastBeat == 0 {
		return netip.Addr{}
	}
	var b [16]byte
	for i, w := range s.Source {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	if Family(s.Path.Family) == IPv4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// Node reads what the kernel knows of this node, without a system call. Each value is right, but they may be of
// different moments. After Close it is zero.
func (h *Heartbeat) Node() Node {
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	if h.memory.node == nil {
		return Node{}
	}
	n := h.memory.readNode()
	return Node{
		Daemon:   time.Duration(n.Daemon),
		LastTick: time.Duration(n.LastTick), LateTick: time.Duration(n.LateTick), MaxLate: time.Duration(n.MaxLate),
		Ticks: n.Ticks, LateTicks: n.LateTicks, Answered: n.Answered,
		Forged: n.Forged, Foreign: n.Foreign, Malformed: n.Malformed, Misplaced: n.Misplaced, Unknown: n.Unknown,
		LostEvents: n.LostEvents,
	}
}
