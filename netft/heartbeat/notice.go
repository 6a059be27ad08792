package heartbeat

import (
	"lunar/netft/beat"
	"lunar/netft/detector"
)

// maxGone bounds the notices that wait for a tick.
const maxGone = 256

// noticeSize is that of a notice: a message of another network than that which carries it, signed as probes are, and
// one byte more. Its sequence is higher than that of the sender's notice before, and its echo is
// the receiver's incarnation, so it does nothing when it comes again.
const noticeSize = beat.Size + 1

// Gone tells all peers, over the other networks, that this node has no carrier on a network. It saves them the time
// until they miss its heartbeats; nothing rests on its arrival.
func (h *Heart) Gone(network uint16) {
	stamps := h.Stamps(nil)
	incarnations := map[uint16]uint64{}
	for i := range stamps {
		if s := &stamps[i]; s.Confirmed {
			incarnations[s.Peer] = max(incarnations[s.Peer], s.Incarnation)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nonce = max(h.nonce+1, uint64(Now())) // higher than before a start, too
	for _, p := range h.paths {
		family := detector.Family(p.stamp.Family)
		s := h.sockets[door{p.index, family}]
		if s == nil || p.stamp.Network == network || incarnations[p.stamp.Peer] == 0 || !p.remote.IsValid() {
			continue
		}
		m := beat.Message{
			Kind: beat.Beat, From: h.o.Number, To: p.stamp.Peer, Network: network, Family: beat.Family(family),
			Incarnation: h.o.Incarnation, Sequence: h.nonce, Sent: uint64(Now()), Echo: incarnations[p.stamp.Peer],
		}
		if h.sendProbe(s, &m, p.remote, noticeSize) != nil {
			h.counters.Unsent++
		}
	}
}

// takeNotice keeps a new notice for the judge. It comes once by each path.
func (h *Heart) takeNotice(m *beat.Message) {
	known := h.byPath[detector.Path{Peer: m.From, Network: m.Network, Family: detector.IPv4}] != nil ||
		h.byPath[detector.Path{Peer: m.From, Network: m.Network, Family: detector.IPv6}] != nil
	if m.Kind != beat.Beat || m.Echo != h.o.Incarnation || !known {
		h.counters.Misplaced++
		return
	}
	if m.Sequence <= h.notices[m.From] || len(h.gone) == maxGone {
		return
	}
	h.notices[m.From] = m.Sequence
	h.gone = append(h.gone, detector.Gone{Peer: m.From, Network: m.Network})
}
