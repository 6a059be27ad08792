package heartbeat

import (
	"math/bits"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/beat"
	"lunar/netft/detector"
)

const (
	// sentRing is how many of our beats may wait for their answer on a path.
	sentRing = 64
	// window is how many sequence numbers below the highest are told apart: seen, or late.
	window = 64
)

// path is what the sockets know of a path; the rules are those of package beat.
type path struct {
	stamp    kernel.Stamp
	told     netip.Addr // the peer's address, as the caller said
	remote   netip.Addr // where beats go
	index    int        // of our interface
	address  unix.Sockaddr
	sequence uint64
	sent     [sentRing]sentBeat
	seen     uint64 // bit i: sequence stamp.Sequence-i was accepted
	echo     uint64 // the peer's latest Sent
	echoAt   time.Duration
	transit  time.Duration // of the latest beat, as RFC 3550 has it
}

type sentBeat struct {
	sequence uint64
	at       time.Duration
}

// aim points the path at a target. An address that was learnt stays until the caller tells another than before.
func (p *path) aim(t Target, index int) {
	if p.told == t.Remote && p.index == index {
		return
	}
	p.told, p.index = t.Remote, index
	p.point(t.Remote)
}

func (p *path) point(remote netip.Addr) {
	p.remote, p.address = remote, nil
}

func (p *path) destination(port uint16) unix.Sockaddr {
	if p.address == nil {
		p.address = sockaddr(p.remote, p.index, port)
	}
	return p.address
}

func sockaddr(a netip.Addr, index int, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	to := &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
	if a.IsLinkLocalUnicast() {
		to.ZoneId = uint32(index)
	}
	return to
}

// next is our next beat.
func (p *path) next(h *Heart, now time.Duration) beat.Message {
	p.sequence++
	p.sent[p.sequence%sentRing] = sentBeat{p.sequence, now}
	m := beat.Message{
		Kind: beat.Beat, From: h.o.Number, To: p.stamp.Peer, Network: p.stamp.Network, Family: beat.Family(p.stamp.Family),
		Incarnation: h.o.Incarnation, Sequence: p.sequence, Sent: uint64(now), Echo: p.echo,
	}
	if p.echo != 0 {
		m.Hold = uint64(now - p.echoAt)
	}
	return m
}

// takeBeat takes a peer's beat that came at some time, and tells whether it was new.
func (p *path) takeBeat(m *beat.Message, at time.Duration) bool {
	s := &p.stamp
	if m.Incarnation < s.Incarnation {
		s.Replayed++
		return false
	}
	if m.Incarnation > s.Incarnation {
		p.renew(m.Incarnation)
	}
	if m.Sequence <= s.Sequence {
		p.late(m.Sequence)
		return false
	}
	p.advance(m.Sequence)
	p.jitter(m, at)
	p.echo, p.echoAt = m.Sent, at
	if s.FirstSeen == 0 {
		s.FirstSeen = at
	}
	s.LastBeat, s.Daemon = max(s.LastBeat, at), max(s.Daemon, at)
	s.Beats++
	return true
}

// renew begins with a new incarnation, which an answer has to confirm.
func (p *path) renew(incarnation uint64) {
	s := &p.stamp
	if s.Incarnation != 0 {
		s.Restarts++
	}
	s.Incarnation, s.Sequence, s.Confirmed = incarnation, 0, false
	p.seen, p.transit = 0, 0
}

func (p *path) late(sequence uint64) {
	s := &p.stamp
	back := s.Sequence - sequence
	switch {
	case back >= window:
		s.Replayed++
	case p.seen&(1<<back) != 0:
		s.Duplicates++
	default:
		p.seen |= 1 << back
		s.Reordered++
	}
}

func (p *path) advance(sequence uint64) {
	s := &p.stamp
	step := sequence - s.Sequence
	if s.Sequence != 0 {
		s.Gaps += step - 1
	}
	if step >= window {
		p.seen = 0
	} else {
		p.seen <<= step
	}
	p.seen |= 1
	s.Sequence = sequence
}

// jitter is that of RFC 3550, §6.4.1; the two clocks' offset cancels out.
func (p *path) jitter(m *beat.Message, at time.Duration) {
	transit := at - time.Duration(m.Sent)
	if p.transit != 0 {
		d := transit - p.transit
		if d < 0 {
			d = -d
		}
		p.stamp.Jitter += (d - p.stamp.Jitter) / 16
	}
	p.transit = transit
}

// takeAnswer takes an answer, once and only to a beat that waits for it.
func (p *path) takeAnswer(m *beat.Message, at time.Duration) bool {
	s, slot := &p.stamp, &p.sent[m.Sequence%sentRing]
	if slot.sequence != m.Sequence || uint64(slot.at) != m.Echo {
		s.Unsolicited++
		return false
	}
	slot.sequence = 0
	s.Answers++
	s.LastAnswer = max(s.LastAnswer, at)
	p.roundTrip(at-slot.at, time.Duration(m.Hold))
	if m.Incarnation > s.Incarnation {
		p.renew(m.Incarnation)
	}
	if m.Incarnation == s.Incarnation {
		s.Confirmed = true
		if age, known := m.Age.Duration(); known && age < at {
			s.Daemon = max(s.Daemon, at-age)
		}
	}
	return true
}

func (p *path) roundTrip(rtt, hold time.Duration) {
	if hold >= 0 && hold < rtt {
		rtt -= hold
	}
	s := &p.stamp
	s.LastRTT = max(rtt, 1)
	if s.MinRTT == 0 || s.LastRTT < s.MinRTT {
		s.MinRTT = s.LastRTT
	}
	s.RTT[min(bits.Len64(uint64(s.LastRTT))-1, kernel.RTTBuckets-1)]++
}

// learns tells whether the path is to go to where its peer's beat came from: nothing answers where it goes now.
func (p *path) learns(from netip.Addr, answered, now, leave time.Duration) bool {
	return from != p.remote && from.IsValid() && from.Is4() == (detector.Family(p.stamp.Family) == detector.IPv4) &&
		(answered == 0 || now-answered > leave)
}
